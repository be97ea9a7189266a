package hsm

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/testenv"
)

func testConfig(t testing.TB) Config {
	t.Helper()
	token := testenv.SoftHSM(t)
	return Config{Module: token.Module, TokenLabel: token.Label, PIN: NewPIN([]byte(token.PIN))}
}

func openToken(t testing.TB, cfg Config) *Token {
	t.Helper()
	token, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	return token
}

var testDomain = DomainID{1, 2, 3}

// newDomain makes a domain on a token of its own.
func newDomain(t testing.TB, change func(*Config)) *Member {
	t.Helper()
	cfg := testConfig(t)
	cfg.RecoveryWait = 30 * time.Second // of a machine that does much else
	if change != nil {
		change(&cfg)
	}
	return createDomain(t, openToken(t, cfg))
}

func createDomain(t testing.TB, token *Token) *Member {
	t.Helper()
	if err := token.CreateDomain(t.Context(), testDomain); err != nil {
		t.Fatal(err)
	}
	d, err := token.OpenDomain(t.Context(), testDomain)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newAES(t testing.TB, d *Member) EKT {
	t.Helper()
	ekt, _, err := d.GenerateAES(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ekt
}

var testAAD = []byte("header and context")

func TestEncryptDecrypt(t *testing.T) {
	d := newDomain(t, nil)
	ekt, made, err := d.GenerateAES(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !made.Local || !made.AlwaysSensitive || made.NeverExtractable || made.Profile != "locked" || made.Generation != 1 {
		t.Errorf("provenance %+v", made)
	}
	for _, size := range []int{0, 1, 13, 32, 4096, 100_000} {
		plain := bytes.Repeat([]byte{7}, size)
		iv, sealed, err := d.Encrypt(t.Context(), ekt, testAAD, plain)
		if err != nil || len(sealed) != size+16 {
			t.Fatalf("%d bytes: %d sealed, %v", size, len(sealed), err)
		}
		opened, err := d.Decrypt(t.Context(), ekt, iv, testAAD, sealed)
		if err != nil || !bytes.Equal(opened, plain) {
			t.Fatalf("%d bytes came back as %d, %v", size, len(opened), err)
		}
	}
}

func TestDecryptRefuses(t *testing.T) {
	d := newDomain(t, nil)
	ekt, other := newAES(t, d), newAES(t, d)
	iv, sealed, err := d.Encrypt(t.Context(), ekt, testAAD, []byte("hoge_password"))
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(i int) []byte {
		b := bytes.Clone(sealed)
		b[i] ^= 1
		return b
	}
	tests := map[string]struct {
		ekt            EKT
		iv, aad, input []byte
		want           error
	}{
		"first byte":     {ekt, iv, testAAD, flipped(0), ErrInvalidCiphertext},
		"last tag byte":  {ekt, iv, testAAD, flipped(len(sealed) - 1), ErrInvalidCiphertext},
		"cut":            {ekt, iv, testAAD, sealed[:len(sealed)-1], ErrInvalidCiphertext},
		"tag only":       {ekt, iv, testAAD, sealed[len(sealed)-16:], ErrInvalidCiphertext},
		"less than tag":  {ekt, iv, testAAD, sealed[:15], ErrInvalidCiphertext},
		"wrong AAD":      {ekt, iv, []byte("other"), sealed, ErrInvalidCiphertext},
		"no AAD":         {ekt, iv, nil, sealed, ErrInvalidCiphertext},
		"wrong IV":       {ekt, []byte("TWELVE BYTES"), testAAD, sealed, ErrInvalidCiphertext},
		"another key":    {other, iv, testAAD, sealed, ErrInvalidCiphertext},
		"zero-length IV": {ekt, nil, testAAD, sealed, ErrArgument},
		"13-byte IV":     {ekt, make([]byte, 13), testAAD, sealed, ErrArgument},
	}
	for name, test := range tests {
		plain, err := d.Decrypt(t.Context(), test.ekt, test.iv, test.aad, test.input)
		if !errors.Is(err, test.want) || plain != nil {
			t.Errorf("%s: got %v and %d bytes, want %v", name, err, len(plain), test.want)
		}
	}
	if _, err := d.Decrypt(t.Context(), ekt, iv, testAAD, sealed); err != nil {
		t.Errorf("the key does not work after refusals: %v", err)
	}
}

func TestTamperedEKT(t *testing.T) {
	d := newDomain(t, nil)
	ekt := newAES(t, d)
	for i := range ekt {
		bad := bytes.Clone(ekt)
		bad[i] ^= 1
		if _, _, err := d.Encrypt(t.Context(), bad, nil, []byte("x")); !errors.Is(err, ErrInvalidEKT) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}
	for n := range ekt {
		if _, _, err := d.Encrypt(t.Context(), ekt[:n], nil, []byte("x")); !errors.Is(err, ErrInvalidEKT) {
			t.Errorf("cut to %d: %v", n, err)
		}
	}
	secret, err := d.ImportSecret(t.Context(), []byte("a secret that is just long enough"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Encrypt(t.Context(), secret, nil, []byte("x")); !errors.Is(err, ErrInvalidEKT) {
		t.Errorf("encrypting under a generic secret: %v", err)
	}
	if _, err := d.HMAC(t.Context(), ekt, []byte("x")); !errors.Is(err, ErrInvalidEKT) {
		t.Errorf("HMAC under an AES key: %v", err)
	}
}

func TestEKTOfAnotherDomain(t *testing.T) {
	d := newDomain(t, nil)
	foreign := DomainID{9}
	if err := d.t.CreateDomain(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	other, err := d.t.OpenDomain(t.Context(), foreign)
	if err != nil {
		t.Fatal(err)
	}
	ekt := newAES(t, d)
	if _, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.Encrypt(t.Context(), ekt, nil, []byte("x")); !errors.Is(err, ErrInvalidEKT) {
		t.Errorf("another domain used the EKT: %v", err)
	}
}

func TestAbandonedContext(t *testing.T) {
	d := newDomain(t, nil)
	ekt := newAES(t, d)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := d.Encrypt(ended, ekt, nil, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	if _, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x")); err != nil {
		t.Error(err)
	}
}
