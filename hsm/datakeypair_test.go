package hsm

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/testenv"
)

func TestGenerateDataKeyPair(t *testing.T) {
	d := newDomain(t, nil)
	openssl := testenv.Program(t, "openssl")
	before := countObjects(t, d)
	for _, spec := range []string{
		"RSA_2048", "RSA_3072", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519",
	} {
		for range 2 {
			private, public, err := d.GenerateDataKeyPair(t.Context(), spec)
			if err != nil {
				t.Fatalf("%s: %v", spec, err)
			}
			if spec != "ECC_SECG_P256K1" {
				key, err := x509.ParsePKCS8PrivateKey(private)
				if err != nil {
					t.Fatalf("%s: %v", spec, err)
				}
				spki, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
				if err != nil || !bytes.Equal(spki, public) {
					t.Errorf("%s: the halves do not match (%v)", spec, err)
				}
				again, err := x509.MarshalPKCS8PrivateKey(key)
				if err != nil || !bytes.Equal(again, private) {
					t.Errorf("%s: Go encodes it otherwise (%v)", spec, err)
				}
			}
			check := exec.Command(openssl, "pkey", "-inform", "DER", "-pubout", "-outform", "DER", "-check")
			check.Stdin = bytes.NewReader(private)
			out, err := check.Output()
			if strings.Contains(spec, "EDWARDS") { // openssl 3.0 cannot check these
				check = exec.Command(openssl, "pkey", "-inform", "DER", "-pubout", "-outform", "DER")
				check.Stdin = bytes.NewReader(private)
				out, err = check.Output()
			}
			if err != nil || !bytes.Contains(out, public) {
				t.Errorf("%s: openssl: %x, %v", spec, out, err)
			}
		}
	}
	if after := countObjects(t, d); after != before {
		t.Errorf("%d objects are left on the token", after-before)
	}
	var unsupported *UnsupportedError
	if _, _, err := d.GenerateDataKeyPair(t.Context(), "ML_KEM_512"); !errors.As(err, &unsupported) {
		t.Error(err)
	}
	for _, spec := range []string{"", "SM2", "SYMMETRIC_DEFAULT", "HMAC_256"} {
		if _, _, err := d.GenerateDataKeyPair(t.Context(), spec); !errors.Is(err, ErrArgument) {
			t.Errorf("%q: %v", spec, err)
		}
	}
}

// countObjects counts what the application can see on the token.
func countObjects(t *testing.T, d *Member) int {
	t.Helper()
	n := 0
	if err := d.onKeeper(t.Context(), func(s *session, _ *domainKeys) error {
		objects, err := s.find([]*pkcs11.Attribute{})
		n = len(objects)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}
