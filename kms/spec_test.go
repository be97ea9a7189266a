package kms

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha512"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/hsm"
)

// TestKeySpecs demands a row for each of the SDK's specs, with algorithms that
// the SDK knows, and a use in the HSM for each usage.
func TestKeySpecs(t *testing.T) {
	known := map[string]bool{}
	add := func(algorithms []string) {
		for _, a := range algorithms {
			known[a] = true
		}
	}
	add(texts(types.EncryptionAlgorithmSpec("").Values()))
	add(texts(types.SigningAlgorithmSpec("").Values()))
	add(texts(types.MacAlgorithmSpec("").Values()))
	add(texts(types.KeyAgreementAlgorithmSpec("").Values()))
	add(texts(types.EncapsulationAlgorithmSpec("").Values()))
	for _, name := range types.KeySpec("").Values() {
		spec, listed := keySpecs[name]
		if name == types.KeySpecSm2 {
			continue
		}
		if !listed || spec.keyType == "" || len(spec.usages) == 0 {
			t.Errorf("%s is not in the table", name)
		}
		for usage, algorithms := range spec.usages {
			if _, has := hsmUses[string(usage)]; !has {
				t.Errorf("%s: the HSM has no use for %s", name, usage)
			}
			for _, a := range algorithms {
				if !known[a] {
					t.Errorf("%s: %s is no algorithm", name, a)
				}
				if _, has := signingAlgorithms[types.SigningAlgorithmSpec(a)]; usage == types.KeyUsageTypeSignVerify && !has {
					t.Errorf("%s: nothing says how %s signs", name, a)
				}
			}
		}
	}
	if len(hsmUses) != len(types.KeyUsageType("").Values()) || hsmUses["KEY_AGREEMENT"] != hsm.UseAgree {
		t.Errorf("uses %v", hsmUses)
	}
}

func texts[S ~string](list []S) (all []string) {
	for _, s := range list {
		all = append(all, string(s))
	}
	return all
}

// TestMessages checks what of a message is signed, for algorithms that no
// device of the tests has too.
func TestMessages(t *testing.T) {
	long := make([]byte, 64)
	for _, test := range []struct {
		algorithm types.SigningAlgorithmSpec
		kind      types.MessageType
		message   []byte
		size      int // of what is signed; 0 = refused
		code      string
	}{
		{"ECDSA_SHA_256", "", []byte("m"), 32, ""},
		{"RSASSA_PSS_SHA_384", "RAW", []byte("m"), 48, ""},
		{"RSASSA_PKCS1_V1_5_SHA_512", "DIGEST", long, 64, ""},
		{"ECDSA_SHA_256", "DIGEST", long, 0, "ValidationException"},
		{"ECDSA_SHA_512", "EXTERNAL_MU", long, 0, "ValidationException"},
		{"ED25519_SHA_512", "", []byte("m"), 1, ""},
		{"ED25519_SHA_512", "DIGEST", long, 0, "ValidationException"},
		{"ED25519_PH_SHA_512", "RAW", []byte("m"), 0, "ValidationException"},
		{"ED25519_PH_SHA_512", "DIGEST", long[1:], 0, "ValidationException"},
		{"ED25519_PH_SHA_512", "DIGEST", long, 64, ""},
		{"ED25519_PH_SHA_512", "", long, 0, "ValidationException"},
		{"ED25519_PH_SHA_512", "EXTERNAL_MU", long, 0, "ValidationException"},
		{"ML_DSA_SHAKE_256", "RAW", []byte("m"), 1, ""},
		{"ML_DSA_SHAKE_256", "DIGEST", long, 0, "ValidationException"},
		{"ML_DSA_SHAKE_256", "EXTERNAL_MU", long[1:], 0, "ValidationException"},
		{"ML_DSA_SHAKE_256", "EXTERNAL_MU", long, 0, "UnsupportedOperationException"},
	} {
		digest, err := signing{test.algorithm, test.kind, test.message, nil}.digest()
		code := ""
		if err != nil {
			code = APIError(err).ErrorCode()
		}
		if len(digest) != test.size || code != test.code {
			t.Errorf("%s %s of %d bytes: %d bytes, %q", test.algorithm, test.kind, len(test.message), len(digest), code)
		}
	}
}

// TestVerifyEd25519: a signature of one of the two algorithms is none of the
// other's, and Ed25519ph hashes the digest that it is given once more.
func TestVerifyEd25519(t *testing.T) {
	const pure, prehashed = types.SigningAlgorithmSpecEd25519Sha512, types.SigningAlgorithmSpecEd25519PhSha512
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum512([]byte("message"))
	twice := sha512.Sum512(digest[:])
	ph := func(hashed [64]byte) []byte {
		signature, err := private.Sign(nil, hashed[:], &ed25519.Options{Hash: crypto.SHA512})
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	for _, test := range []struct {
		algorithm types.SigningAlgorithmSpec
		signature []byte
		want      bool
	}{
		{pure, ed25519.Sign(private, digest[:]), true},
		{pure, ph(twice), false},
		{prehashed, ph(twice), true},
		{prehashed, ph(digest), false},
		{prehashed, ed25519.Sign(private, digest[:]), false},
		{prehashed, nil, false},
	} {
		if got := verifyEd25519(public, test.algorithm, digest[:], test.signature); got != test.want {
			t.Errorf("%s %x: %v", test.algorithm, test.signature, got)
		}
	}
}
