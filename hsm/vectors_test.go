package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSA-OAEP's default, which all devices have
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

// Published vectors, and the edge cases that Project Wycheproof made known,
// through the HSM with imported keys. Those of RSA and elliptic curves go
// through the whole service: see softhsm-test.

// known imports a secret that the test knows.
func known(t testing.TB, i *importer, spec string, use Use, material []byte) EKT {
	t.Helper()
	wrapped, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, i.public, material, nil) //nolint:gosec // as above
	if err != nil {
		t.Fatal(err)
	}
	made, err := i.d.Import(t.Context(), i.ekt, "RSAES_OAEP_SHA_1", spec, use, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	return made.EKT
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// gcmAnswers are test cases 13 to 16 of McGrew and Viega, "The Galois/Counter
// Mode of Operation", appendix B: AES-256 with 96-bit IVs.
var gcmAnswers = []struct{ key, iv, aad, plain, sealed string }{
	{strings.Repeat("00", 32), strings.Repeat("00", 12), "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
	{strings.Repeat("00", 32), strings.Repeat("00", 12), "", strings.Repeat("00", 16),
		"cea7403d4d606b6e074ec5d3baf39d18 d0d1c8a799996bf0265b98b5d48ab919"},
	{strings.Repeat("feffe9928665731c6d6a8f9467308308", 2), "cafebabefacedbaddecaf888", "",
		"d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
		"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad" +
			"b094dac5d93471bdec1a502270e3cc6c"},
	{strings.Repeat("feffe9928665731c6d6a8f9467308308", 2), "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2",
		"d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
		"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" +
			"76fc6ece0f4e1768cddf8853bb2d551b"},
}

// encryptWith is Encrypt with a published IV.
func encryptWith(t *testing.T, d *Member, ekt EKT, iv, aad, plain []byte) (sealed []byte, err error) {
	t.Helper()
	err = d.onKeeper(t.Context(), func(s *session, keys *domainKeys) error {
		k, err := ekt.parse()
		if err != nil {
			return err
		}
		key, err := s.unwrapFor(keys, k, pkcs11.CKA_ENCRYPT)
		if err != nil {
			return err
		}
		defer s.destroy(key)
		sealed = make([]byte, len(plain)+tagSize)
		n, code := s.t.module.native.gcm(false, s.handle, key, iv, aad, append(make([]byte, 0, len(plain)+1), plain...), sealed)
		if code != pkcs11.CKR_OK {
			return &DeviceError{Doing: "encrypting", Code: code}
		}
		sealed = sealed[:n]
		return nil
	})
	return sealed, err
}

func TestVectorsGCM(t *testing.T) {
	d := newDomain(t, nil)
	i := newImporter(t, d, "RSA_2048")
	count := 0
	good := func(ekt EKT, iv, aad, plain, sealed []byte) {
		t.Helper()
		count++
		if got, err := encryptWith(t, d, ekt, iv, aad, plain); err != nil || !bytes.Equal(got, sealed) {
			t.Errorf("IV %x: encrypted to %x, want %x (%v)", iv, got, sealed, err)
		}
		if got, err := d.Decrypt(t.Context(), ekt, iv, aad, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("IV %x: decrypted to %x, want %x (%v)", iv, got, plain, err)
		}
	}
	bad := func(what string, ekt EKT, iv, aad, sealed []byte) {
		t.Helper()
		count++
		if got, err := d.Decrypt(t.Context(), ekt, iv, aad, sealed); !errors.Is(err, ErrInvalidCiphertext) || got != nil {
			t.Errorf("%s: %x, %v", what, got, err)
		}
	}
	for _, v := range gcmAnswers {
		good(known(t, i, "SYMMETRIC_DEFAULT", UseEncrypt, unhex(t, v.key)), unhex(t, v.iv), unhex(t, v.aad), unhex(t, v.plain), unhex(t, v.sealed))
	}
	key := unhex(t, gcmAnswers[2].key)
	ekt := known(t, i, "SYMMETRIC_DEFAULT", UseEncrypt, key)
	for _, iv := range append(counterIVs(t, key), make([]byte, 12), bytes.Repeat([]byte{0xFF}, 12), make([]byte, 16), bytes.Repeat([]byte{0xFF}, 16)) {
		for _, size := range []int{1, 15, 16, 17, 64, 255, 4096} {
			for _, aad := range []int{0, 1, 16, 300} {
				plain, aad := bytes.Repeat([]byte{byte(size)}, size), bytes.Repeat([]byte{byte(aad)}, aad)
				good(ekt, iv, aad, plain, gcmOf(t, key, len(iv)).Seal(nil, iv, plain, aad))
			}
		}
	}
	iv, aad, plain := []byte("sixteen byte IV!"), []byte("aad"), []byte("plaintext of more than a block")
	sealed := gcmOf(t, key, 16).Seal(nil, iv, plain, aad)
	for bit := range 8 * len(sealed) { // of ciphertext and tag
		forged := bytes.Clone(sealed)
		forged[bit/8] ^= 1 << (bit % 8)
		bad("flipped", ekt, iv, aad, forged)
	}
	tag := len(sealed) - 16
	bad("tag of zeros", ekt, iv, aad, append(bytes.Clone(sealed[:tag]), make([]byte, 16)...))
	bad("tag of ones", ekt, iv, aad, append(bytes.Clone(sealed[:tag]), bytes.Repeat([]byte{0xFF}, 16)...))
	bad("tag of 12 bytes", ekt, iv, aad, sealed[:len(sealed)-4])
	bad("tag alone", ekt, iv, aad, sealed[tag:])
	bad("nothing", ekt, iv, aad, nil)
	bad("a byte more", ekt, iv, aad, append(bytes.Clone(sealed), 0))
	bad("other AAD", ekt, iv, []byte("aae"), sealed)
	bad("no AAD", ekt, iv, nil, sealed)
	bad("AAD as text", ekt, iv, nil, append([]byte("aad"), sealed...))
	bad("other IV", ekt, []byte("sixteen byte iv!"), aad, sealed)
	bad("cut IV", ekt, iv[:12], aad, sealed)
	bad("other key", newAES(t, d), iv, aad, sealed)
	t.Logf("%d vectors", count)
}

func gcmOf(t testing.TB, key []byte, iv int) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCMWithNonceSize(block, iv)
	if err != nil {
		t.Fatal(err)
	}
	return gcm
}

// counterIVs are 16-byte IVs whose counter blocks wrap, or nearly: J0 =
// (IV·H ⊕ length)·H (SP 800-38D §7.1), so that IV = (J0·H⁻¹ ⊕ length)·H⁻¹.
func counterIVs(t testing.TB, key []byte) (list [][]byte) {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	h := make([]byte, 16)
	block.Encrypt(h, h)
	inverse := append([]byte{0x80}, make([]byte, 15)...) // one
	for range 127 {                                      // h^(2^128-2) = Π h^(2^i), i = 1…127
		h = times(h, h)
		inverse = times(inverse, h)
	}
	for _, counter := range []uint32{0, 1, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF} {
		for _, rest := range []byte{0x00, 0xFF} {
			j0 := binary.BigEndian.AppendUint32(bytes.Repeat([]byte{rest}, 12), counter)
			iv := times(j0, inverse)
			iv[15] ^= 128 // the length of the IV in bits
			list = append(list, times(iv, inverse))
		}
	}
	return list
}

// times multiplies in GCM's field (SP 800-38D §6.3).
func times(x, y []byte) []byte {
	z, v := make([]byte, 16), bytes.Clone(y)
	for bit := range 128 {
		if x[bit/8]>>(7-bit%8)&1 == 1 {
			for i := range z {
				z[i] ^= v[i]
			}
		}
		carry := byte(0)
		for i := range v {
			carry, v[i] = v[i]<<7, v[i]>>1|carry
		}
		if carry != 0 {
			v[0] ^= 0xE1
		}
	}
	return z
}

// macAnswers are test cases 1 to 4 of RFC 4231: SHA-224, 256, 384, 512. HMAC
// fills short keys up with zeros, as is done here to AWS's lengths.
var macAnswers = []struct {
	key, message string
	macs         [4]string
}{
	{strings.Repeat("0b", 20), hex.EncodeToString([]byte("Hi There")), [4]string{
		"896fb1128abbdf196832107cd49df33f47b4b1169912ba4f53684b22",
		"b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
		"afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6",
		"87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854"}},
	{hex.EncodeToString([]byte("Jefe")), hex.EncodeToString([]byte("what do ya want for nothing?")), [4]string{
		"a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44",
		"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
		"af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
		"164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"}},
	{strings.Repeat("aa", 20), strings.Repeat("dd", 50), [4]string{
		"7fb3cb3588c6c1f6ffa9694d7d6ad2649365b0c1f65d69d1ec8333ea",
		"773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
		"88062608d3e6ad8a0aa2ace014c8a86f0aa635d947ac9febe83ef4e55966144b2a5ab39dc13814b94e3ab6e101a34f27",
		"fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39bf3e848279a722c806b485a47e67c807b946a337bee8942674278859e13292fb"}},
	{"0102030405060708090a0b0c0d0e0f10111213141516171819", strings.Repeat("cd", 50), [4]string{
		"6c11506874013cac6a2abc1bb382627cec6a90d86efc012de7afec5a",
		"82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
		"3e8a69b7783c25851933ab6290af6ca77a9981480850009cc5577c6e1f573b4e6801dd23c4a7d679ccf8a386c674cffb",
		"b0ba465637458c6990e5a8c5f61d4af7e576d97ff94b872de76f8050361ee3dba91ca5c11aa25eb4d679275cc5788063a5f19741120c4f2de2adebeb10a298dd"}},
}

func TestVectorsHMAC(t *testing.T) {
	d := newDomain(t, nil)
	i := newImporter(t, d, "RSA_2048")
	count := 0
	for at, spec := range []string{"HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512"} {
		algorithm := strings.Replace(spec, "_", "_SHA_", 1)
		check := func(ekt EKT, message, want []byte) {
			t.Helper()
			count++
			if got, err := d.MAC(t.Context(), ekt, algorithm, message); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s of %d bytes: %x, want %x (%v)", algorithm, len(message), got, want, err)
			}
		}
		for _, v := range macAnswers {
			key := make([]byte, specs[spec].size)
			copy(key, unhex(t, v.key))
			check(known(t, i, spec, UseMAC, key), unhex(t, v.message), unhex(t, v.macs[at]))
		}
		hashes := []func() hash.Hash{sha256.New224, sha256.New, sha512.New384, sha512.New}
		key := bytes.Repeat([]byte{0xFF}, specs[spec].size)
		ekt := known(t, i, spec, UseMAC, key)
		for _, size := range []int{1, 55, 56, 63, 64, 65, 111, 112, 119, 120, 127, 128, 129, 4095, 4096} { // around blocks and paddings
			message := bytes.Repeat([]byte{0x80}, size)
			h := hmac.New(hashes[at], key)
			h.Write(message)
			check(ekt, message, h.Sum(nil))
		}
	}
	t.Logf("%d vectors", count)
}

// TestVectorsECDSA verifies NIST's signatures in the HSM and by Go, which must
// come to the published result.
func TestVectorsECDSA(t *testing.T) {
	d := newDomain(t, nil)
	text, err := os.ReadFile("testdata/ecdsa_sigver.rsp")
	if err != nil {
		t.Fatal(err)
	}
	type kind struct {
		spec, algorithm string
		curve           elliptic.Curve
		hash            func() hash.Hash
	}
	kinds := map[string]kind{
		"[P-256,SHA-256]": {"ECC_NIST_P256", "ECDSA_SHA_256", elliptic.P256(), sha256.New},
		"[P-384,SHA-384]": {"ECC_NIST_P384", "ECDSA_SHA_384", elliptic.P384(), sha512.New384},
		"[P-521,SHA-512]": {"ECC_NIST_P521", "ECDSA_SHA_512", elliptic.P521(), sha512.New},
	}
	var k kind
	v, count := map[string]string{}, 0
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			k = kinds[line]
		}
		name, value, _ := strings.Cut(line, " = ")
		v[name] = value
		if name != "Result" {
			continue
		}
		count++
		integer := func(name string) *big.Int { return new(big.Int).SetBytes(unhex(t, even(v[name]))) }
		size := (k.curve.Params().BitSize + 7) / 8
		point := append([]byte{4}, integer("Qx").FillBytes(make([]byte, size))...)
		public, err := ecdsa.ParseUncompressedPublicKey(k.curve, append(point, integer("Qy").FillBytes(make([]byte, size))...))
		if err != nil {
			t.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := asn1.Marshal(struct{ R, S *big.Int }{integer("R"), integer("S")})
		if err != nil {
			t.Fatal(err)
		}
		h := k.hash()
		h.Write(unhex(t, v["Msg"]))
		want := strings.HasPrefix(value, "P")
		err = d.VerifySignature(t.Context(), k.spec, spki, k.algorithm, h.Sum(nil), signature)
		if (err == nil) != want || err != nil && !errors.Is(err, ErrSignature) {
			t.Errorf("vector %d, %s %s: %v", count, k.spec, value, err)
		}
		if got := ecdsa.VerifyASN1(public, h.Sum(nil), signature); got != want {
			t.Errorf("vector %d, %s %s: Go says %v", count, k.spec, value, got)
		}
	}
	if count != 45 {
		t.Errorf("%d vectors", count)
	}
}

func even(digits string) string { return strings.Repeat("0", len(digits)%2) + digits }
