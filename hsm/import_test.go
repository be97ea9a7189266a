package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/testenv"
)

// importer wraps material as AWS's documentation has it done, by openssl.
type importer struct {
	t       testing.TB
	d       *Member
	openssl string
	ekt     EKT
	public  *rsa.PublicKey
	spki    []byte
}

func newImporter(t testing.TB, d *Member, spec string) *importer {
	t.Helper()
	ekt, spki, err := d.GenerateWrappingKey(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return &importer{t, d, testenv.Program(t, "openssl"), ekt, publicKey[*rsa.PublicKey](t, spki), spki}
}

func (i *importer) run(args ...string) []byte {
	i.t.Helper()
	out, err := exec.Command(i.openssl, args...).Output()
	if err != nil {
		i.t.Fatalf("openssl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (i *importer) file(b []byte) string {
	i.t.Helper()
	path := filepath.Join(i.t.TempDir(), "file")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		i.t.Fatal(err)
	}
	return path
}

func (i *importer) wrap(algorithm string, material []byte) []byte {
	i.t.Helper()
	hash := "sha1"
	if strings.HasSuffix(algorithm, "256") {
		hash = "sha256"
	}
	oaep := func(b []byte) []byte {
		return i.run("pkeyutl", "-encrypt", "-in", i.file(b), "-inkey", i.file(i.spki), "-keyform", "DER", "-pubin",
			"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:"+hash, "-pkeyopt", "rsa_mgf1_md:"+hash)
	}
	if strings.HasPrefix(algorithm, "RSAES") {
		return oaep(material)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	wrapped := i.run("enc", "-id-aes256-wrap-pad", "-K", hex.EncodeToString(key), "-iv", "A65959A6", "-in", i.file(material))
	return append(oaep(key), wrapped...)
}

func (i *importer) do(algorithm, spec string, use Use, material []byte) (Material, error) {
	i.t.Helper()
	return i.d.Import(i.t.Context(), i.ekt, algorithm, spec, use, i.wrap(algorithm, material))
}

func TestImportSecrets(t *testing.T) {
	d := newDomain(t, nil)
	i := newImporter(t, d, "RSA_2048")
	key := []byte("exactly thirty-two bytes of key!")
	for _, algorithm := range []string{"RSAES_OAEP_SHA_1", "RSA_AES_KEY_WRAP_SHA_1"} {
		made, err := i.do(algorithm, "SYMMETRIC_DEFAULT", UseEncrypt, key)
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		if made.Provenance.Local || len(made.CheckValue) != 16 || made.PublicKey != nil {
			t.Errorf("%s: %+v", algorithm, made)
		}
		again, err := i.do(algorithm, "SYMMETRIC_DEFAULT", UseEncrypt, key)
		if err != nil || !bytes.Equal(again.CheckValue, made.CheckValue) {
			t.Errorf("%s: the same material has check values %x and %x (%v)", algorithm, made.CheckValue, again.CheckValue, err)
		}
		iv, sealed, err := d.Encrypt(t.Context(), made.EKT, testAAD, []byte("plain"))
		if err != nil {
			t.Fatal(err)
		}
		if want := sealGCM(t, key, iv, []byte("plain")); !bytes.Equal(sealed, want) {
			t.Errorf("%s: the key is not what was imported", algorithm)
		}
		checkCopy(t, d, algorithm, made.EKT, []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT}, false)
		for spec, size := range map[string]int{"HMAC_224": 28, "HMAC_256": 32, "HMAC_384": 48, "HMAC_512": 64} {
			secret := bytes.Repeat([]byte{9}, size)
			made, err := i.do(algorithm, spec, UseMAC, secret)
			if err != nil {
				t.Errorf("%s %s: %v", algorithm, spec, err)
				continue
			}
			mac := strings.Replace(spec, "_", "_SHA_", 1)
			got, err := d.MAC(t.Context(), made.EKT, mac, []byte("message"))
			if err != nil || len(got) != macs[mac].size {
				t.Errorf("%s: %v", spec, err)
			}
			hash := sha256.New
			if size < 32 {
				hash = sha256.New224
			}
			check := hmac.New(hash, secret)
			check.Write(checkMessage)
			if !hmac.Equal(check.Sum(nil), made.CheckValue) {
				t.Errorf("%s %s: it is not the secret that was imported", algorithm, spec)
			}
		}
	}
}

func TestImportKeyPairs(t *testing.T) {
	d := newDomain(t, nil)
	i := newImporter(t, d, "RSA_3072")
	before := countObjects(t, d)
	const inner, direct = "RSA_AES_KEY_WRAP_SHA_1", "RSAES_OAEP_SHA_1"
	for _, test := range []struct {
		algorithm, spec string
		use             Use
		make            []string
	}{
		{inner, "RSA_2048", UseSign, []string{"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}},
		{inner, "RSA_2048", UseEncrypt, []string{"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}},
		{inner, "RSA_3072", UseSign, []string{"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"}},
		{inner, "ECC_NIST_P256", UseSign, ecKey("P-256")},
		{inner, "ECC_NIST_P384", UseSign, ecKey("P-384")},
		{inner, "ECC_NIST_P521", UseAgree, ecKey("P-521")},
		{inner, "ECC_NIST_P256", UseAgree, ecKey("P-256")},
		{inner, "ECC_SECG_P256K1", UseSign, ecKey("secp256k1")},
		{direct, "ECC_NIST_P256", UseSign, ecKey("P-256")},
		{direct, "ECC_NIST_P384", UseSign, ecKey("P-384")},
		{direct, "ECC_SECG_P256K1", UseSign, ecKey("secp256k1")},
	} {
		for range 3 { // either of two points may be the key's
			block, _ := pem.Decode(i.run(test.make...))
			public := i.run("pkey", "-inform", "DER", "-in", i.file(block.Bytes), "-pubout", "-outform", "DER")
			made, err := i.do(test.algorithm, test.spec, test.use, block.Bytes)
			if err != nil {
				t.Errorf("%s by %s: %v", test.spec, test.algorithm, err)
				continue
			}
			if !bytes.Equal(made.PublicKey, public) {
				t.Errorf("%s by %s: public key %x, want %x", test.spec, test.algorithm, made.PublicKey, public)
			}
			checkCopy(t, d, test.spec, made.EKT, useFlags[test.use], true)
			if test.spec == "RSA_2048" || test.spec == "RSA_3072" {
				break
			}
		}
	}
	if after := countObjects(t, d); after != before {
		t.Errorf("%d objects are left on the token", after-before)
	}
}

func ecKey(curve string) []string {
	return []string{"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:" + curve, "-pkeyopt", "ec_param_enc:named_curve"}
}

func TestImportRefuses(t *testing.T) {
	d := newDomain(t, nil)
	i := newImporter(t, d, "RSA_2048")
	other := newImporter(t, d, "RSA_2048")
	key := bytes.Repeat([]byte{5}, 32)
	const inner, direct = "RSA_AES_KEY_WRAP_SHA_1", "RSAES_OAEP_SHA_1"
	good := i.wrap(direct, key)
	goodInner := i.wrap(inner, key)
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	p256Key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256DER, err := x509.MarshalPKCS8PrivateKey(p256Key)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, _, err := d.GenerateDataKeyPair(t.Context(), "RSA_2048")
	if err != nil {
		t.Fatal(err)
	}
	bent := flip(rsaDER, 100) // in the modulus
	before := countObjects(t, d)
	for name, test := range map[string]struct {
		algorithm, spec string
		use             Use
		wrapped         []byte
		want            error
	}{
		"flipped":                  {direct, "SYMMETRIC_DEFAULT", UseEncrypt, flip(good, 200), ErrInvalidCiphertext},
		"cut":                      {direct, "SYMMETRIC_DEFAULT", UseEncrypt, good[:255], ErrInvalidCiphertext},
		"long":                     {direct, "SYMMETRIC_DEFAULT", UseEncrypt, goodInner, ErrInvalidCiphertext},
		"empty":                    {direct, "SYMMETRIC_DEFAULT", UseEncrypt, nil, ErrInvalidCiphertext},
		"another wrapping key":     {direct, "SYMMETRIC_DEFAULT", UseEncrypt, other.wrap(direct, key), ErrInvalidCiphertext},
		"no inner":                 {inner, "SYMMETRIC_DEFAULT", UseEncrypt, good, ErrInvalidCiphertext},
		"inner's key flipped":      {inner, "SYMMETRIC_DEFAULT", UseEncrypt, flip(goodInner, 7), ErrInvalidCiphertext},
		"inner flipped":            {inner, "SYMMETRIC_DEFAULT", UseEncrypt, flip(goodInner, 260), ErrInvalidCiphertext},
		"inner cut":                {inner, "SYMMETRIC_DEFAULT", UseEncrypt, goodInner[:len(goodInner)-8], ErrInvalidCiphertext},
		"inner cut oddly":          {inner, "SYMMETRIC_DEFAULT", UseEncrypt, goodInner[:len(goodInner)-3], ErrInvalidCiphertext},
		"inner a byte":             {inner, "SYMMETRIC_DEFAULT", UseEncrypt, goodInner[:257], ErrInvalidCiphertext},
		"another hash":             {direct, "SYMMETRIC_DEFAULT", UseEncrypt, i.wrap("RSAES_OAEP_SHA_256", key), ErrInvalidCiphertext},
		"a byte":                   {direct, "SYMMETRIC_DEFAULT", UseEncrypt, i.wrap(direct, key[:1]), ErrMaterial},
		"a byte of an HMAC key":    {direct, "HMAC_256", UseMAC, i.wrap(direct, key[:1]), ErrMaterial},
		"16 bytes":                 {direct, "SYMMETRIC_DEFAULT", UseEncrypt, i.wrap(direct, key[:16]), ErrMaterial},
		"31 bytes":                 {direct, "SYMMETRIC_DEFAULT", UseEncrypt, i.wrap(direct, key[:31]), ErrMaterial},
		"33 bytes":                 {direct, "SYMMETRIC_DEFAULT", UseEncrypt, i.wrap(direct, append(key, 1)), ErrMaterial},
		"16 inner bytes":           {inner, "SYMMETRIC_DEFAULT", UseEncrypt, i.wrap(inner, key[:16]), ErrMaterial},
		"short HMAC key":           {direct, "HMAC_256", UseMAC, i.wrap(direct, key[:31]), ErrMaterial},
		"long HMAC key":            {direct, "HMAC_256", UseMAC, i.wrap(direct, make([]byte, 65)), ErrMaterial},
		"RSA as AES":               {inner, "SYMMETRIC_DEFAULT", UseEncrypt, i.wrap(inner, rsaDER), ErrMaterial},
		"EC as RSA":                {inner, "RSA_2048", UseSign, i.wrap(inner, p256DER), ErrMaterial},
		"RSA as EC":                {inner, "ECC_NIST_P256", UseSign, i.wrap(inner, rsaDER), ErrMaterial},
		"P-256 as P-384":           {inner, "ECC_NIST_P384", UseSign, i.wrap(inner, p256DER), ErrMaterial},
		"P-256 as secp256k1":       {inner, "ECC_SECG_P256K1", UseSign, i.wrap(inner, p256DER), ErrMaterial},
		"2048 as 3072 bits":        {inner, "RSA_3072", UseSign, i.wrap(inner, rsaDER), ErrMaterial},
		"a bent modulus":           {inner, "RSA_2048", UseSign, i.wrap(inner, bent), ErrMaterial},
		"noise as EC":              {inner, "ECC_NIST_P256", UseSign, i.wrap(inner, key), ErrMaterial},
		"noise as RSA":             {inner, "RSA_2048", UseEncrypt, i.wrap(inner, key), ErrMaterial},
		"EC flipped":               {inner, "ECC_NIST_P256", UseSign, flip(i.wrap(inner, p256DER), 270), ErrInvalidCiphertext},
		"EC short":                 {inner, "ECC_NIST_P256", UseSign, i.wrap(inner, p256DER)[:320], ErrInvalidCiphertext},
		"RSA in OAEP":              {direct, "RSA_2048", UseSign, good, ErrArgument},
		"PKCS #1 v1.5":             {"RSAES_PKCS1_V1_5", "SYMMETRIC_DEFAULT", UseEncrypt, good, ErrArgument},
		"a spec for another usage": {direct, "SYMMETRIC_DEFAULT", UseSign, good, ErrArgument},
	} {
		if _, err := d.Import(t.Context(), i.ekt, test.algorithm, test.spec, test.use, test.wrapped); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	if after := countObjects(t, d); after != before {
		t.Errorf("%d objects are left on the token", after-before)
	}
	var unsupported *UnsupportedError
	for _, algorithm := range []string{"RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_256"} {
		_, err := i.do(algorithm, "SYMMETRIC_DEFAULT", UseEncrypt, key)
		if !errors.As(err, &unsupported) || unsupported.Spec != algorithm || unsupported.Mechanism != "CKM_RSA_PKCS_OAEP" {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	if err := d.SupportsImport(inner, "ECC_NIST_EDWARDS25519", UseSign); !errors.As(err, &unsupported) {
		t.Error(err)
	}
	for _, bad := range []EKT{nil, newAES(t, d), newKey(t, d, "ECC_NIST_P256", UseSign).EKT} {
		if _, err := d.Import(t.Context(), bad, direct, "SYMMETRIC_DEFAULT", UseEncrypt, good); !errors.Is(err, ErrInvalidEKT) {
			t.Errorf("wrapping key %d bytes: %v", len(bad), err)
		}
	}
	if _, err := d.Import(t.Context(), i.ekt, direct, "SYMMETRIC_DEFAULT", UseEncrypt, good); err != nil {
		t.Errorf("after all refusals: %v", err)
	}
}

// TestWrappingKeyIsLocked: a copy of a wrapping key, and the inner key that it
// unwraps, bring out nothing readable.
func TestWrappingKeyIsLocked(t *testing.T) {
	d := newDomain(t, nil)
	i := newImporter(t, d, "RSA_2048")
	wrapped := i.wrap("RSAES_OAEP_SHA_1", bytes.Repeat([]byte{5}, 32))
	k, err := i.ekt.parse()
	if err != nil {
		t.Fatal(err)
	}
	w := wrappings["RSAES_OAEP_SHA_1"]
	if err := d.onKeeper(t.Context(), func(s *session, keys *domainKeys) error {
		good := materialTemplate(specs["SYMMETRIC_DEFAULT"])
		unwrapper, err := s.unwrapper(keys, k, good)
		if err != nil {
			return err
		}
		defer s.destroy(unwrapper)
		try := func(template []*pkcs11.Attribute) error {
			object, err := s.t.module.p11.UnwrapKey(s.handle,
				byOAEP(w.oaep), unwrapper, wrapped, template)
			if err == nil {
				s.destroy(object)
			}
			return err
		}
		if err := try(good); err != nil {
			t.Errorf("as it should be: %v", err)
		}
		for _, bad := range []*pkcs11.Attribute{
			attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_DECRYPT, true),
			attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_DERIVE, true), attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		} {
			if try(altered(good, bad)) == nil {
				t.Errorf("it unwraps with attribute 0x%X = %v", bad.Type, bad.Value)
			}
		}
		plain := make([]byte, 256)
		if _, code := s.t.module.native.use(true, pkcs11.CKM_RSA_PKCS_OAEP, oaepParameters("RSAES_OAEP_SHA_1"), s.handle, unwrapper, wrapped, plain); code == pkcs11.CKR_OK {
			t.Error("a wrapping key decrypts")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// sealGCM is what Encrypt answers for iv and testAAD under key.
func sealGCM(t *testing.T, key, iv, plain []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm.Seal(nil, iv, plain, testAAD)
}

// TestKnownAnswers: what imported keys compute is what is published, or what
// Go computes with the same key.
func TestKnownAnswers(t *testing.T) {
	d := newDomain(t, nil)
	i := newImporter(t, d, "RSA_2048")
	const inner = "RSA_AES_KEY_WRAP_SHA_1"
	number := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	pkcs8 := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	// RFC 5903 §8.1.
	own, err := ecdh.P256().NewPrivateKey(number("C88F01F5 10D9AC3F 70A292DA A2316DE5 44E9AAB8 AFE84049 C62A9C57 862D1433"))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ecdh.P256().NewPublicKey(number("04" +
		"D12DFB52 89C8D4F8 1208B702 70398C34 2296970A 0BCCB74C 736FC755 4494BF63" +
		"56FBF3CA 366CC23E 8157854C 13C58D6A AC23F046 ADA30F83 53E74F33 039872AB"))
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(peer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := i.do(inner, "ECC_NIST_P256", UseAgree, pkcs8(own))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := d.Agree(t.Context(), made.EKT, spki)
	if want := number("D6840F6B 42F6EDAF D13116E0 E1256520 2FEF8E9E CE7DCE03 812464D0 4B9442DE"); err != nil || !bytes.Equal(secret, want) {
		t.Errorf("RFC 5903: %x, want %x (%v)", secret, want, err)
	}

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	made, err = i.do(inner, "RSA_2048", UseSign, pkcs8(key))
	if err != nil {
		t.Fatal(err)
	}
	for algorithm, a := range signing {
		if a.prefix == nil {
			continue
		}
		digest := make([]byte, a.hash.Size())
		want, err := rsa.SignPKCS1v15(nil, key, a.hash, digest)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.Sign(t.Context(), made.EKT, algorithm, digest); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x (%v)", algorithm, got, want, err)
		}
	}

	// RFC 4231 §4.3 has a key of 4 bytes, which zeros fill up.
	made, err = i.do(inner, "HMAC_256", UseMAC, append([]byte("Jefe"), make([]byte, 28)...))
	if err != nil {
		t.Fatal(err)
	}
	mac, err := d.MAC(t.Context(), made.EKT, "HMAC_SHA_256", []byte("what do ya want for nothing?"))
	if want := number("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"); err != nil || !bytes.Equal(mac, want) {
		t.Errorf("RFC 4231: %x, want %x (%v)", mac, want, err)
	}
}
