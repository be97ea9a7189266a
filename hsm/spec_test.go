package hsm

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"hash"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crypto/hmac"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/testenv"
)

func newKey(t testing.TB, d *Member, spec string, use Use) Material {
	t.Helper()
	made, err := d.Generate(t.Context(), spec, use)
	if err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	return made
}

func publicKey[K any](t testing.TB, spki []byte) K {
	t.Helper()
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		t.Fatal(err)
	}
	return key.(K)
}

// TestSpecs: every key spec of AWS's either works or is refused by name.
func TestSpecs(t *testing.T) {
	d := newDomain(t, nil)
	softhsm := map[string]string{
		"ECC_NIST_EDWARDS25519": "CKM_AES_KEY_WRAP_PAD",
		"ML_DSA_44":             "CKM_ML_DSA_KEY_PAIR_GEN",
		"ML_DSA_65":             "CKM_ML_DSA_KEY_PAIR_GEN",
		"ML_DSA_87":             "CKM_ML_DSA_KEY_PAIR_GEN",
		"ML_KEM_512":            "CKM_ML_KEM_KEY_PAIR_GEN",
		"ML_KEM_768":            "CKM_ML_KEM_KEY_PAIR_GEN",
		"ML_KEM_1024":           "CKM_ML_KEM_KEY_PAIR_GEN",
	}
	if len(specs) != 19 {
		t.Errorf("%d specs; AWS has 20, of which SM2 is for China alone", len(specs))
	}
	for name, sp := range specs {
		for use := range sp.uses {
			err := d.Supports(name, use)
			var unsupported *UnsupportedError
			if missing := softhsm[name]; missing == "" {
				if err != nil {
					t.Errorf("%s for %d: %v", name, use, err)
				}
			} else if !errors.As(err, &unsupported) || unsupported.Mechanism != missing || unsupported.Spec != name {
				t.Errorf("%s for %d: %v, want it refused for %s", name, use, err, missing)
			}
			if again := d.Supports(name, use); !errors.Is(again, err) {
				t.Errorf("%s: %v, then %v", name, err, again)
			}
			if err != nil {
				if _, other := d.Generate(t.Context(), name, use); !errors.Is(other, err) {
					t.Errorf("generating %s: %v, want %v", name, other, err)
				}
			}
		}
	}
	for _, bad := range []struct {
		spec string
		use  Use
	}{{"SM2", UseSign}, {"", UseSign}, {"RSA_2048", UseAgree}, {"ECC_SECG_P256K1", UseAgree}, {"HMAC_256", UseEncrypt}, {"RSA_2048", 0}} {
		if err := d.Supports(bad.spec, bad.use); !errors.Is(err, ErrArgument) {
			t.Errorf("%s for %d: %v", bad.spec, bad.use, err)
		}
		if _, err := d.Generate(t.Context(), bad.spec, bad.use); !errors.Is(err, ErrArgument) {
			t.Errorf("generating %s for %d: %v", bad.spec, bad.use, err)
		}
	}
}

func TestGenerateSymmetric(t *testing.T) {
	d := newDomain(t, nil)
	made := newKey(t, d, "SYMMETRIC_DEFAULT", UseEncrypt)
	check, err := d.CheckValue(t.Context(), made.EKT)
	if err != nil || !slices.Equal(check, made.CheckValue) || made.PublicKey != nil {
		t.Errorf("check value %x, want %x (%v)", made.CheckValue, check, err)
	}
	if p := made.Provenance; !p.Local || p.Mechanism != "CKM_AES_KEY_GEN" || !p.AlwaysSensitive {
		t.Errorf("provenance %+v", p)
	}
	if _, _, err := d.Encrypt(t.Context(), made.EKT, nil, []byte("x")); err != nil {
		t.Error(err)
	}
}

func TestSign(t *testing.T) {
	d := newDomain(t, nil)
	openssl := testenv.Program(t, "openssl")
	for _, test := range []struct {
		spec       string
		algorithms []string
	}{
		{"RSA_2048", rsaSigning},
		{"RSA_3072", rsaSigning},
		{"ECC_NIST_P256", []string{"ECDSA_SHA_256"}},
		{"ECC_NIST_P384", []string{"ECDSA_SHA_384"}},
		{"ECC_NIST_P521", []string{"ECDSA_SHA_512"}},
		{"ECC_SECG_P256K1", []string{"ECDSA_SHA_256"}},
	} {
		made := newKey(t, d, test.spec, UseSign)
		if made.CheckValue != nil || !made.Provenance.Local || !made.Provenance.AlwaysSensitive {
			t.Errorf("%s: %+v", test.spec, made.Provenance)
		}
		for _, algorithm := range test.algorithms {
			h := signing[algorithm].hash
			digest := h.New()
			digest.Write([]byte("message"))
			sum := digest.Sum(nil)
			for range 3 {
				signature, err := d.Sign(t.Context(), made.EKT, algorithm, sum)
				if err != nil {
					t.Fatalf("%s %s: %v", test.spec, algorithm, err)
				}
				verify(t, openssl, made.PublicKey, algorithm, sum, signature)
			}
			if _, err := d.Sign(t.Context(), made.EKT, algorithm, sum[1:]); !errors.Is(err, ErrArgument) {
				t.Errorf("%s with a short digest: %v", algorithm, err)
			}
		}
		if _, err := d.Sign(t.Context(), made.EKT, "SM2DSA", make([]byte, 32)); !errors.Is(err, ErrArgument) {
			t.Errorf("unknown algorithm: %v", err)
		}
	}
	ec := newKey(t, d, "ECC_NIST_P256", UseSign)
	if _, err := d.Sign(t.Context(), ec.EKT, "RSASSA_PSS_SHA_256", make([]byte, 32)); !errors.Is(err, ErrArgument) {
		t.Errorf("RSA by an EC key: %v", err)
	}
	if _, err := d.Sign(t.Context(), newAES(t, d), "ECDSA_SHA_256", make([]byte, 32)); !errors.Is(err, ErrArgument) {
		t.Errorf("ECDSA by an AES key: %v", err)
	}
	for i := range ec.EKT {
		bad := slices.Clone(ec.EKT)
		bad[i] ^= 1
		_, err := d.Sign(t.Context(), bad, "ECDSA_SHA_256", make([]byte, 32))
		if k, parsed := bad.parse(); parsed == nil && k.mechanism == ckmAESKeyWrapKWP {
			if err != nil { // another number of the same form, as another device may have it
				t.Errorf("CKM_AES_KEY_WRAP_KWP for CKM_AES_KEY_WRAP_PAD: %v", err)
			}
		} else if !errors.Is(err, ErrInvalidEKT) && !errors.Is(err, ErrArgument) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}
}

var rsaSigning = []string{
	"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
}

// verify checks a signature by Go's crypto and by openssl, which alone knows
// secp256k1.
func verify(t *testing.T, openssl string, spki []byte, algorithm string, digest, signature []byte) {
	t.Helper()
	h := signing[algorithm].hash
	key, err := x509.ParsePKIXPublicKey(spki)
	if err == nil {
		switch key := key.(type) {
		case *rsa.PublicKey:
			if strings.Contains(algorithm, "PSS") {
				err = rsa.VerifyPSS(key, h, digest, signature, &rsa.PSSOptions{SaltLength: h.Size()})
			} else {
				err = rsa.VerifyPKCS1v15(key, h, digest, signature)
			}
			if len(signature) != key.Size() {
				t.Errorf("%s: %d bytes", algorithm, len(signature))
			}
		case *ecdsa.PublicKey:
			if !ecdsa.VerifyASN1(key, digest, signature) {
				t.Errorf("%s on %s does not verify", algorithm, key.Params().Name)
			}
		}
		if err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{"pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", write("key", spki),
		"-in", write("digest", digest), "-sigfile", write("signature", signature),
		"-pkeyopt", "digest:" + strings.ReplaceAll(h.String(), "-", "")}
	if strings.Contains(algorithm, "PSS") {
		args = append(args, "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:digest")
	}
	if out, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
		t.Errorf("%s: openssl says %s", algorithm, out)
	}
}

func TestMAC(t *testing.T) {
	d := newDomain(t, nil)
	key := []byte("a key that is as long as SHA-512 needs: sixty-four bytes, no more")[:64]
	secret, err := d.ImportSecret(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for algorithm, new := range map[string]func() hash.Hash{
		"HMAC_SHA_224": crypto.SHA224.New, "HMAC_SHA_256": crypto.SHA256.New,
		"HMAC_SHA_384": crypto.SHA384.New, "HMAC_SHA_512": crypto.SHA512.New,
	} {
		for _, size := range []int{1, 63, 64, 65, 4096} {
			message := make([]byte, size)
			want := hmac.New(new, key)
			want.Write(message)
			got, err := d.MAC(t.Context(), secret, algorithm, message)
			if err != nil || !hmac.Equal(got, want.Sum(nil)) {
				t.Errorf("%s of %d bytes: %x, %v", algorithm, size, got, err)
			}
		}
		made := newKey(t, d, strings.Replace(algorithm, "SHA_", "", 1), UseMAC)
		if want := max(28, min(32, macs[algorithm].size)); len(made.CheckValue) != want {
			t.Errorf("%s: check value of %d bytes", algorithm, len(made.CheckValue))
		}
		one, err := d.MAC(t.Context(), made.EKT, algorithm, []byte("x"))
		if err != nil || len(one) != macs[algorithm].size {
			t.Errorf("%s: %d bytes, %v", algorithm, len(one), err)
		}
	}
	if _, err := d.MAC(t.Context(), secret, "HMAC_MD5", nil); !errors.Is(err, ErrArgument) {
		t.Error(err)
	}
}

func TestDecryptRSA(t *testing.T) {
	d := newDomain(t, nil)
	for _, spec := range []string{"RSA_2048", "RSA_3072"} {
		made := newKey(t, d, spec, UseEncrypt)
		public := publicKey[*rsa.PublicKey](t, made.PublicKey)
		for algorithm, h := range oaep {
			longest := public.Size() - 2*h.Size() - 2
			for _, size := range []int{0, 1, 32, longest} {
				plain := make([]byte, size)
				_, _ = rand.Read(plain)
				sealed, err := rsa.EncryptOAEP(h.New(), rand.Reader, public, plain, nil)
				if err != nil {
					t.Fatal(err)
				}
				opened, err := d.DecryptRSA(t.Context(), made.EKT, algorithm, sealed)
				if err != nil || !slices.Equal(opened, plain) || opened == nil {
					t.Errorf("%s %s %d bytes: %d, %v", spec, algorithm, size, len(opened), err)
				}
			}
			labelled, err := rsa.EncryptOAEP(h.New(), rand.Reader, public, []byte("x"), []byte("label"))
			if err != nil {
				t.Fatal(err)
			}
			good, err := rsa.EncryptOAEP(h.New(), rand.Reader, public, []byte("x"), nil)
			if err != nil {
				t.Fatal(err)
			}
			flipped := slices.Clone(good)
			flipped[len(flipped)-1] ^= 1
			tooLarge := make([]byte, public.Size())
			for i := range tooLarge {
				tooLarge[i] = 0xFF
			}
			for name, bad := range map[string][]byte{
				"label": labelled, "flipped": flipped, "cut": good[1:], "long": append([]byte{0}, good...),
				"empty": nil, "zero": make([]byte, public.Size()), "beyond the modulus": tooLarge,
			} {
				if out, err := d.DecryptRSA(t.Context(), made.EKT, algorithm, bad); !errors.Is(err, ErrInvalidCiphertext) || out != nil {
					t.Errorf("%s %s %s: %d bytes, %v", spec, algorithm, name, len(out), err)
				}
			}
		}
	}
	ec := newKey(t, d, "ECC_NIST_P256", UseSign)
	if _, err := d.DecryptRSA(t.Context(), ec.EKT, "RSAES_OAEP_SHA_1", make([]byte, 256)); !errors.Is(err, ErrArgument) {
		t.Error(err)
	}
}

func TestAgree(t *testing.T) {
	d := newDomain(t, nil)
	for spec, c := range map[string]ecdh.Curve{"ECC_NIST_P256": ecdh.P256(), "ECC_NIST_P384": ecdh.P384(), "ECC_NIST_P521": ecdh.P521()} {
		made := newKey(t, d, spec, UseAgree)
		own, err := publicKey[*ecdsa.PublicKey](t, made.PublicKey).ECDH()
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			peer, err := c.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			want, err := peer.ECDH(own)
			if err != nil {
				t.Fatal(err)
			}
			spki, err := x509.MarshalPKIXPublicKey(peer.PublicKey())
			if err != nil {
				t.Fatal(err)
			}
			got, err := d.Agree(t.Context(), made.EKT, spki)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %x, want %x (%v)", spec, got, want, err)
			}
			spki[len(spki)-1] ^= 1
			if _, err := d.Agree(t.Context(), made.EKT, spki); !errors.Is(err, ErrArgument) {
				t.Errorf("%s with a point off the curve: %v", spec, err)
			}
		}
		for other, sp := range specs {
			if other == spec || sp.uses[UseAgree] == nil {
				continue
			}
			peer := newKey(t, d, other, UseAgree).PublicKey
			if _, err := d.Agree(t.Context(), made.EKT, peer); !errors.Is(err, ErrArgument) {
				t.Errorf("%s with a peer on %s: %v", spec, other, err)
			}
		}
		for _, bad := range [][]byte{nil, {}, []byte("x"), made.PublicKey[:20], newKey(t, d, "ECC_SECG_P256K1", UseSign).PublicKey} {
			if _, err := d.Agree(t.Context(), made.EKT, bad); !errors.Is(err, ErrArgument) {
				t.Errorf("peer %x: %v", bad, err)
			}
		}
	}
}

// TestUseCopies: no copy of a private key does more than its use, nor leaves.
func TestUseCopies(t *testing.T) {
	d := newDomain(t, nil)
	for name, sp := range specs {
		for use := range sp.uses {
			if d.Supports(name, use) != nil || sp.like != "" {
				continue
			}
			made := newKey(t, d, name, use)
			checkCopy(t, d, name, made.EKT, useFlags[use], sp.class == classPrivate)
		}
	}
	wrapping, _, err := d.GenerateWrappingKey(t.Context(), "RSA_2048")
	if err != nil {
		t.Fatal(err)
	}
	checkCopy(t, d, "wrapping key", wrapping, []uint{pkcs11.CKA_UNWRAP}, true)
}

func checkCopy(t *testing.T, d *Member, name string, ekt EKT, uses []uint, private bool) {
	t.Helper()
	k, err := ekt.parse()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.onKeeper(t.Context(), func(s *session, keys *domainKeys) error {
		object, err := s.unwrapFor(keys, k, uses...)
		if err != nil {
			return err
		}
		defer s.destroy(object)
		flags := []uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE}
		if private {
			flags = append(flags, pkcs11.CKA_SIGN_RECOVER)
		}
		if !private {
			flags = append(flags, pkcs11.CKA_ENCRYPT, pkcs11.CKA_VERIFY, pkcs11.CKA_WRAP)
		}
		want := map[uint]bool{pkcs11.CKA_SENSITIVE: true, pkcs11.CKA_EXTRACTABLE: false, pkcs11.CKA_PRIVATE: true, pkcs11.CKA_TOKEN: false}
		for _, flag := range flags {
			want[flag] = slices.Contains(uses, flag)
		}
		for kind, on := range want {
			if ok, err := s.flag(object, kind, on); err != nil || !ok {
				t.Errorf("%s: attribute 0x%X is not %t (%v)", name, kind, on, err)
			}
		}
		secret := []uint{pkcs11.CKA_VALUE}
		if k.keyType == pkcs11.CKK_RSA {
			secret = []uint{pkcs11.CKA_PRIVATE_EXPONENT, pkcs11.CKA_PRIME_1, pkcs11.CKA_PRIME_2, pkcs11.CKA_COEFFICIENT}
		}
		for _, kind := range secret {
			if value, err := s.attribute(object, kind); err == nil {
				t.Errorf("%s: attribute 0x%X can be read: %d bytes", name, kind, len(value))
			}
		}
		for class, wrapper := range keys.wrap {
			if _, err := s.wrap(keys.way(class), wrapper, object); err == nil {
				t.Errorf("%s: a copy can be wrapped again", name)
			}
		}
		for _, kind := range []uint{pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_SENSITIVE} {
			change := []*pkcs11.Attribute{attr(kind, kind == pkcs11.CKA_EXTRACTABLE)}
			if s.t.module.p11.SetAttributeValue(s.handle, object, change) == nil {
				t.Errorf("%s: attribute 0x%X can be changed", name, kind)
			}
			if copied, err := s.t.module.p11.CopyObject(s.handle, object, change); err == nil {
				s.destroy(copied)
				t.Errorf("%s: attribute 0x%X can be changed in a copy", name, kind)
			}
		}
		return nil
	}); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// TestLostSessionsOfPairs: the lanes of private keys come back too.
func TestLostSessionsOfPairs(t *testing.T) {
	d := newDomain(t, nil)
	made := newKey(t, d, "ECC_NIST_P256", UseSign)
	i := newImporter(t, d, "RSA_2048")
	wrapped := i.wrap("RSAES_OAEP_SHA_1", make([]byte, 32))
	for name, call := range map[string]func() error{
		"signing": func() error {
			_, err := d.Sign(t.Context(), made.EKT, "ECDSA_SHA_256", proofDigest)
			return err
		},
		"generating": func() error {
			_, err := d.Generate(t.Context(), "ECC_NIST_P384", UseAgree)
			return err
		},
		"data key pair": func() error {
			_, _, err := d.GenerateDataKeyPair(t.Context(), "ECC_NIST_P256")
			return err
		},
		"importing": func() error {
			_, err := d.Import(t.Context(), i.ekt, "RSAES_OAEP_SHA_1", "SYMMETRIC_DEFAULT", UseEncrypt, wrapped)
			return err
		},
	} {
		for range 3 {
			if err := d.t.module.p11.CloseAllSessions(d.t.slot); err != nil {
				t.Fatal(err)
			}
			if err := call(); err != nil {
				t.Errorf("%s after lost sessions: %v", name, err)
			}
		}
	}
}

// TestForgetPair: a forgotten key leaves no copy on the token.
func TestForgetPair(t *testing.T) {
	d := newDomain(t, nil)
	made := newKey(t, d, "ECC_NIST_P256", UseSign)
	before := countObjects(t, d)
	if _, err := d.Sign(t.Context(), made.EKT, "ECDSA_SHA_256", proofDigest); err != nil {
		t.Fatal(err)
	}
	if n := countObjects(t, d); n != before+1 {
		t.Fatalf("%d objects after use, %d before", n, before)
	}
	d.Forget(made.EKT)
	eventually(t, "the end of the copy", func() bool { return countObjects(t, d) == before })
}
