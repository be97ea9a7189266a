package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSA-OAEP's
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// keyUser is what the load asks for: of a member in this process, or of
// whatever stands before one.
type keyUser interface {
	Encrypt(ctx context.Context, ekt EKT, aad, plaintext []byte) (iv, sealed []byte, err error)
	Decrypt(ctx context.Context, ekt EKT, iv, aad, ciphertext []byte) ([]byte, error)
	HMAC(ctx context.Context, ekt EKT, message []byte) ([]byte, error)
	MAC(ctx context.Context, ekt EKT, algorithm string, message []byte) ([]byte, error)
	Sign(ctx context.Context, ekt EKT, algorithm string, digest []byte) ([]byte, error)
	VerifySignature(ctx context.Context, spec string, publicKey []byte, algorithm string, digest, signature []byte) error
	Agree(ctx context.Context, ekt EKT, peer []byte) ([]byte, error)
	DecryptRSA(ctx context.Context, ekt EKT, algorithm string, ciphertext []byte) ([]byte, error)
	Generate(ctx context.Context, spec string, use Use) (Material, error)
	GenerateDataKeyPair(ctx context.Context, spec string) (privatePKCS8, publicSPKI []byte, err error)
	GenerateWrappingKey(ctx context.Context, spec string) (EKT, []byte, error)
	Import(ctx context.Context, wrappingKey EKT, algorithm, spec string, use Use, wrapped []byte) (Material, error)
	ImportSecret(ctx context.Context, secret []byte) (EKT, error)
	CheckValue(ctx context.Context, ekt EKT) ([]byte, error)
	Random(ctx context.Context, p []byte) error
	Sum(ctx context.Context, message []byte) (uint32, []byte, error)
	Verify(ctx context.Context, generation uint32, message, mac []byte) (bool, error)
	Supports(spec string, use Use) error
}

// errWrong: a result is not what it must be. Nothing excuses it.
var errWrong = errors.New("wrong result")

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errWrong, fmt.Sprintf(format, args...))
}

// workload uses keys in every way that there is and checks every answer.
type workload struct {
	user keyUser
	ops  []loadOp

	// paused is write-locked to make the load stand still.
	paused           sync.RWMutex
	requests, failed atomic.Int64

	mu    sync.Mutex
	wrong []string
	made  []Material // keys whose making was reported as done
	seen  map[string]bool
}

// loadOp is one kind of request.
type loadOp struct {
	name   string
	weight int
	do     func(ctx context.Context) error
}

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func newWorkload(t testing.TB, user keyUser) *workload {
	t.Helper()
	l := &workload{user: user, seen: map[string]bool{}}
	l.addSymmetric(t)
	l.addMACs(t)
	l.addSigning(t)
	l.addRSA(t)
	l.addMaking(t)
	for _, op := range l.ops {
		if err := op.do(t.Context()); err != nil {
			t.Fatalf("%s, without any fault: %v", op.name, err)
		}
	}
	return l
}

func (l *workload) add(name string, weight int, do func(context.Context) error) {
	l.ops = append(l.ops, loadOp{name, weight, do})
}

func (l *workload) addSymmetric(t testing.TB) {
	t.Helper()
	type key struct {
		ekt           EKT
		plain, sealed []byte
	}
	var keys []key
	for i := range 6 {
		k := key{ekt: must(l.user.Generate(t.Context(), "SYMMETRIC_DEFAULT", UseEncrypt))(t).EKT, plain: fmt.Appendf(nil, "plaintext of key %d", i)}
		k.sealed = must(sealBlob(t.Context(), l.user, k.ekt, k.plain))(t)
		keys = append(keys, k)
	}
	opens := func(ctx context.Context, k key, sealed []byte) error {
		opened, err := openBlob(ctx, l.user, k.ekt, sealed)
		if err == nil && !bytes.Equal(opened, k.plain) {
			return wrong("%q was decrypted to %q", k.plain, opened)
		}
		return err
	}
	pick := func() key { return keys[mathrand.IntN(len(keys))] }
	l.add("decrypt", 20, func(ctx context.Context) error {
		k := pick()
		return opens(ctx, k, k.sealed)
	})
	l.add("encrypt", 20, func(ctx context.Context) error {
		k := pick()
		sealed, err := sealBlob(ctx, l.user, k.ekt, k.plain)
		if err == nil {
			err = opens(ctx, k, sealed)
		}
		if errors.Is(err, ErrInvalidCiphertext) {
			return wrong("encrypting under another key, or cut")
		}
		return err
	})
	l.add("random", 5, func(ctx context.Context) error {
		p := make([]byte, 32)
		err := l.user.Random(ctx, p)
		if err == nil && bytes.Equal(p, make([]byte, 32)) {
			return wrong("random zeros")
		}
		return err
	})
}

func (l *workload) addMACs(t testing.TB) {
	t.Helper()
	message := []byte("message")
	secret := []byte("a secret that is known to the test")
	ekt := must(l.user.ImportSecret(t.Context(), secret))(t)
	sum := hmac.New(sha256.New, secret)
	sum.Write(message)
	want := sum.Sum(nil)
	l.add("hmac", 10, func(ctx context.Context) error {
		mac, err := l.user.HMAC(ctx, ekt, message)
		if err == nil && !hmac.Equal(mac, want) {
			return wrong("HMAC %x", mac)
		}
		return err
	})
	key := must(l.user.Generate(t.Context(), "HMAC_384", UseMAC))(t).EKT
	good := must(l.user.MAC(t.Context(), key, "HMAC_SHA_384", message))(t)
	l.add("mac", 5, func(ctx context.Context) error {
		mac, err := l.user.MAC(ctx, key, "HMAC_SHA_384", message)
		if err == nil && !bytes.Equal(mac, good) {
			return wrong("MAC %x", mac)
		}
		return err
	})
	generation, row, err := l.user.Sum(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	l.add("sum", 10, func(ctx context.Context) error {
		_, mac, err := l.user.Sum(ctx, message)
		if err == nil && !bytes.Equal(mac, row) {
			return wrong("MAC of a row %x", mac)
		}
		return err
	})
	l.add("verify", 10, func(ctx context.Context) error {
		ok, err := l.user.Verify(ctx, generation, message, row)
		if err == nil && !ok {
			return wrong("a good row is called forged")
		}
		return err
	})
	l.add("verify forged", 2, func(ctx context.Context) error {
		ok, err := l.user.Verify(ctx, generation, []byte("another"), row)
		if err == nil && ok {
			return wrong("a forged row is called good")
		}
		return err
	})
}

func (l *workload) addSigning(t testing.TB) {
	t.Helper()
	digest := sha256.Sum256([]byte("document"))
	const p256Spec, k1Spec = "ECC_NIST_P256", "ECC_SECG_P256K1"
	pair := must(l.user.Generate(t.Context(), p256Spec, UseSign))(t)
	public := must(x509.ParsePKIXPublicKey(pair.PublicKey))(t).(*ecdsa.PublicKey)
	l.add("sign", 5, func(ctx context.Context) error {
		signature, err := l.user.Sign(ctx, pair.EKT, "ECDSA_SHA_256", digest[:])
		if err == nil && !ecdsa.VerifyASN1(public, digest[:], signature) {
			return wrong("the signature does not verify")
		}
		return err
	})
	k1 := must(l.user.Generate(t.Context(), k1Spec, UseSign))(t)
	signature := must(l.user.Sign(t.Context(), k1.EKT, "ECDSA_SHA_256", digest[:]))(t)
	l.add("verify signature", 3, func(ctx context.Context) error {
		return l.user.VerifySignature(ctx, k1Spec, k1.PublicKey, "ECDSA_SHA_256", digest[:], signature)
	})
	agreeing := must(l.user.Generate(t.Context(), p256Spec, UseAgree))(t)
	peer := must(ecdh.P256().GenerateKey(rand.Reader))(t)
	spki := must(x509.MarshalPKIXPublicKey(peer.PublicKey()))(t)
	want := must(l.user.Agree(t.Context(), agreeing.EKT, spki))(t)
	l.add("agree", 3, func(ctx context.Context) error {
		secret, err := l.user.Agree(ctx, agreeing.EKT, spki)
		if err == nil && !bytes.Equal(secret, want) {
			return wrong("another shared secret")
		}
		return err
	})
}

func (l *workload) addRSA(t testing.TB) {
	t.Helper()
	digest := sha256.Sum256([]byte("document"))
	signs := must(l.user.Generate(t.Context(), "RSA_2048", UseSign))(t)
	public := must(x509.ParsePKIXPublicKey(signs.PublicKey))(t).(*rsa.PublicKey)
	l.add("sign RSA", 1, func(ctx context.Context) error {
		signature, err := l.user.Sign(ctx, signs.EKT, "RSASSA_PSS_SHA_256", digest[:])
		if err == nil && rsa.VerifyPSS(public, crypto.SHA256, digest[:], signature, nil) != nil {
			return wrong("the RSA signature does not verify")
		}
		return err
	})
	opens := must(l.user.Generate(t.Context(), "RSA_2048", UseEncrypt))(t)
	to := must(x509.ParsePKIXPublicKey(opens.PublicKey))(t).(*rsa.PublicKey)
	plain := []byte("by RSA")
	for algorithm, sealed := range map[string][]byte{
		"RSAES_OAEP_SHA_1":   must(rsa.EncryptOAEP(sha1.New(), rand.Reader, to, plain, nil))(t), //nolint:gosec // as above
		"RSAES_OAEP_SHA_256": must(rsa.EncryptOAEP(sha256.New(), rand.Reader, to, plain, nil))(t),
	} {
		l.add("decrypt "+algorithm, 1, func(ctx context.Context) error {
			opened, err := l.user.DecryptRSA(ctx, opens.EKT, algorithm, sealed)
			if err == nil && !bytes.Equal(opened, plain) {
				return wrong("RSA decrypted to %q", opened)
			}
			return err
		})
	}
}

func (l *workload) addMaking(t testing.TB) {
	t.Helper()
	l.add("generate", 2, func(ctx context.Context) error {
		made, err := l.user.Generate(ctx, "SYMMETRIC_DEFAULT", UseEncrypt)
		if err == nil {
			l.keep(made)
		}
		return err
	})
	l.add("generate pair", 1, func(ctx context.Context) error {
		made, err := l.user.Generate(ctx, "ECC_NIST_P256", UseSign)
		if err == nil {
			l.keep(made)
		}
		return err
	})
	l.add("data key pair", 1, func(ctx context.Context) error {
		private, public, err := l.user.GenerateDataKeyPair(ctx, "ECC_NIST_P256")
		if err != nil {
			return err
		}
		key, err := x509.ParsePKCS8PrivateKey(private)
		if err != nil {
			return wrong("a data key pair's private half: %v", err)
		}
		half, err := x509.MarshalPKIXPublicKey(key.(*ecdsa.PrivateKey).Public())
		if err != nil || !bytes.Equal(half, public) {
			return wrong("a data key pair's halves do not match")
		}
		return nil
	})
	wrapping, spki, err := l.user.GenerateWrappingKey(t.Context(), "RSA_2048")
	if err != nil {
		t.Fatal(err)
	}
	public := must(x509.ParsePKIXPublicKey(spki))(t).(*rsa.PublicKey)
	wrapped := must(rsa.EncryptOAEP(sha1.New(), rand.Reader, public, bytes.Repeat([]byte{7}, 32), nil))(t) //nolint:gosec // as above
	bring := func(ctx context.Context) (Material, error) {
		return l.user.Import(ctx, wrapping, "RSAES_OAEP_SHA_1", "SYMMETRIC_DEFAULT", UseEncrypt, wrapped)
	}
	first := must(bring(t.Context()))(t)
	l.add("import", 1, func(ctx context.Context) error {
		made, err := bring(ctx)
		if err == nil && !bytes.Equal(made.CheckValue, first.CheckValue) {
			return wrong("other material was imported")
		}
		return err
	})
}
