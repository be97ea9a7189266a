package hsm

import (
	"bytes"
	"errors"
	"testing"

	"github.com/miekg/pkcs11"
)

func TestVerifySignature(t *testing.T) {
	d := newDomain(t, nil)
	for spec, algorithms := range map[string][]string{
		"RSA_2048":        rsaSigning,
		"ECC_NIST_P256":   {"ECDSA_SHA_256"},
		"ECC_NIST_P521":   {"ECDSA_SHA_512"},
		"ECC_SECG_P256K1": {"ECDSA_SHA_256"},
	} {
		made := newKey(t, d, spec, UseSign)
		other := newKey(t, d, spec, UseSign)
		for _, algorithm := range algorithms {
			digest := bytes.Repeat([]byte{3}, signing[algorithm].hash.Size())
			signature, err := d.Sign(t.Context(), made.EKT, algorithm, digest)
			if err != nil {
				t.Fatal(err)
			}
			check := func(name string, key, digest, signature []byte, want error) {
				t.Helper()
				if err := d.VerifySignature(t.Context(), spec, key, algorithm, digest, signature); !errors.Is(err, want) {
					t.Errorf("%s %s, %s: %v, want %v", spec, algorithm, name, err, want)
				}
			}
			check("good", made.PublicKey, digest, signature, nil)
			check("another key", other.PublicKey, digest, signature, ErrSignature)
			check("another digest", made.PublicKey, bytes.Repeat([]byte{4}, len(digest)), signature, ErrSignature)
			flipped := bytes.Clone(signature)
			flipped[len(flipped)-1] ^= 1
			check("flipped", made.PublicKey, digest, flipped, ErrSignature)
			check("cut", made.PublicKey, digest, signature[1:], ErrSignature)
			check("long", made.PublicKey, digest, append(bytes.Clone(signature), 0), ErrSignature)
			check("empty", made.PublicKey, digest, nil, ErrSignature)
			if signing[algorithm].mechanism == pkcs11.CKM_ECDSA {
				inside := append(bytes.Clone(signature), 5, 0) // a null after the numbers
				at := 1
				if inside[at] == 0x81 {
					at++
				}
				inside[at] += 2
				check("more inside", made.PublicKey, digest, inside, ErrSignature)
			}
			check("short digest", made.PublicKey, digest[1:], signature, ErrArgument)
			check("no key", nil, digest, signature, ErrArgument)
			check("cut key", made.PublicKey[:len(made.PublicKey)-1], digest, signature, ErrArgument)
		}
	}
	p384 := newKey(t, d, "ECC_NIST_P384", UseSign)
	if err := d.VerifySignature(t.Context(), "ECC_SECG_P256K1", p384.PublicKey, "ECDSA_SHA_256", proofDigest, []byte{}); !errors.Is(err, ErrArgument) {
		t.Errorf("a key of another curve: %v", err)
	}
}
