package hsm

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"testing"
)

// FuzzUnpadOAEP compares with Go's own decryption, on messages that are
// encrypted without padding.
func FuzzUnpadOAEP(f *testing.F) {
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		f.Fatal(err)
	}
	raw := func(ciphertext []byte) []byte {
		return new(big.Int).Exp(new(big.Int).SetBytes(ciphertext), key.D, key.N).FillBytes(make([]byte, 128))
	}
	for h := range hashes {
		if h.Size() > 32 {
			continue
		}
		for _, message := range [][]byte{nil, {1}, {0, 1}, bytes.Repeat([]byte{0}, 40)} {
			sealed, err := rsa.EncryptOAEP(h.New(), rand.Reader, &key.PublicKey, message, nil)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw(sealed))
			got, ok := unpadOAEP(h, raw(sealed))
			if !ok || !bytes.Equal(got, message) {
				f.Errorf("%v: %x, want %x", h, got, message)
			}
		}
	}
	f.Add([]byte{})
	f.Add(make([]byte, 128))
	f.Fuzz(func(t *testing.T, padded []byte) {
		m := new(big.Int).SetBytes(padded)
		for _, h := range oaep {
			got, ok := unpadOAEP(h, bytes.Clone(padded))
			if len(padded) != 128 || m.Cmp(key.N) >= 0 {
				continue
			}
			sealed := new(big.Int).Exp(m, big.NewInt(int64(key.E)), key.N).FillBytes(make([]byte, 128))
			want, err := rsa.DecryptOAEP(h.New(), nil, key, sealed, nil)
			if ok != (err == nil) || !bytes.Equal(got, want) {
				t.Errorf("%v: %x %t, Go says %x %v", h, got, ok, want, err)
			}
		}
	})
}

// FuzzParsePoint: a peer that is taken is one that crypto/x509 takes too.
func FuzzParsePoint(f *testing.F) {
	for _, c := range []ecdh.Curve{ecdh.P256(), ecdh.P384(), ecdh.P521(), ecdh.X25519()} {
		key, err := c.GenerateKey(rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(key.PublicKey())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(spki)
	}
	f.Fuzz(func(t *testing.T, spki []byte) {
		c, point, err := parsePoint(spki)
		if err != nil {
			return
		}
		if _, err := c.ecdh().NewPublicKey(point); err != nil {
			return
		}
		if _, err := x509.ParsePKIXPublicKey(spki); err != nil {
			t.Errorf("%x is taken for a point on %s: %v", spki, c.name, err)
		}
	})
}
