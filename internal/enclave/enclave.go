// Package enclave stands for an AWS Nitro enclave in tests: it has a
// certificate chain of its own making, signs attestation documents with it,
// and opens what is sealed for it with OpenSSL.
package enclave

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/trent-kms/trent/internal/testenv"
)

// The levels of a chain; an enclave's own certificate is the last.
const (
	Root = iota
	Regional
	Instance
	Leaf
	levels
)

// ModuleID is what an enclave calls itself.
const ModuleID = "i-0123456789abcdef0-enc0123456789abcdef"

// Config changes what New makes.
type Config struct {
	// At is the time around which the certificates are valid. Zero means now.
	At time.Time

	// Alter changes a level's certificate before it is signed.
	Alter func(level int, template *x509.Certificate)

	// LeafKey is the key of the last certificate. Nil means a new P-384 key.
	LeafKey crypto.Signer

	// Seed makes the same chain each time, for fuzzing: its processes must
	// agree on the chain, and an input that fails must fail again. "" means a
	// new one.
	Seed string
}

// key is the key of a level.
func (cfg Config) key(t testing.TB, level int) crypto.Signer {
	t.Helper()
	switch {
	case level == Leaf && cfg.LeafKey != nil:
		return cfg.LeafKey
	case cfg.Seed != "":
		scalar := sha512.Sum384(fmt.Appendf(nil, "%s %d", cfg.Seed, level))
		return must(ecdsa.ParseRawPrivateKey(elliptic.P384(), scalar[:]))(t)
	}
	return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
}

// Enclave is an enclave with its chain.
type Enclave struct {
	Chain [levels][]byte // DER, the root first
	Key   *rsa.PrivateKey
	leaf  crypto.Signer
}

// readerKey is the same for all: it takes long to make.
var readerKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// New makes an enclave and its chain.
func New(t testing.TB, cfg Config) *Enclave {
	t.Helper()
	if cfg.At.IsZero() {
		cfg.At = time.Now()
	}
	e := &Enclave{Key: must(readerKey())(t)}
	var issuer *x509.Certificate
	var issuerKey crypto.Signer
	random := rand.Reader
	if cfg.Seed != "" {
		random = nil // ECDSA as in RFC 6979
	}
	for level := range levels {
		key := cfg.key(t, level)
		template := certificate(level, cfg.At)
		if cfg.Alter != nil {
			cfg.Alter(level, template)
		}
		if level == Root {
			issuer, issuerKey = template, key
		}
		e.Chain[level] = must(x509.CreateCertificate(random, template, issuer, key.Public(), issuerKey))(t)
		issuer, issuerKey = must(x509.ParseCertificate(e.Chain[level]))(t), key
	}
	e.leaf = issuerKey
	return e
}

func certificate(level int, at time.Time) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber:          big.NewInt(int64(level) + 1),
		Subject:               pkix.Name{CommonName: fmt.Sprintf("level %d of a test enclave", level)},
		NotBefore:             at.Add(-time.Hour),
		NotAfter:              at.Add(3 * time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  level != Leaf,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	switch level {
	case Leaf:
		c.KeyUsage = x509.KeyUsageDigitalSignature
	case Instance:
		c.MaxPathLenZero = true
	case Regional:
		c.MaxPathLen = 1
	}
	return c
}

// Roots is the root certificate as PEM.
func (e *Enclave) Roots() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Chain[Root]})
}

// PublicKey is the SubjectPublicKeyInfo that documents carry.
func (e *Enclave) PublicKey(t testing.TB) []byte {
	t.Helper()
	return must(x509.MarshalPKIXPublicKey(e.Key.Public()))(t)
}

// PCR is the value that PCR index of an enclave has.
func PCR(index byte) []byte { return bytes.Repeat([]byte{0xa0 + index}, 48) }

// Payload is a document of the time made, to be changed and signed.
func (e *Enclave) Payload(t testing.TB, made time.Time) map[string]any {
	t.Helper()
	pcrs := map[int][]byte{}
	for i := range byte(16) {
		pcrs[int(i)] = PCR(i)
	}
	return map[string]any{
		"module_id": ModuleID, "digest": "SHA384", "timestamp": made.UnixMilli(), "pcrs": pcrs,
		"certificate": e.Chain[Leaf], "cabundle": e.Chain[:Leaf],
		"public_key": e.PublicKey(t), "user_data": []byte("data"), "nonce": nil,
	}
}

// Document is a document of the time made, signed.
func (e *Enclave) Document(t testing.TB, made time.Time) []byte {
	t.Helper()
	return e.Sign(t, e.Payload(t, made))
}

// Sign encodes and signs a payload.
func (e *Enclave) Sign(t testing.TB, payload any) []byte {
	t.Helper()
	return e.SignRaw(t, must(cbor.Marshal(payload))(t))
}

// SignRaw signs the bytes of a payload.
func (e *Enclave) SignRaw(t testing.TB, payload []byte) []byte {
	t.Helper()
	protected := []byte{0xa1, 0x01, 0x38, 0x22} // {1: -35}
	return Message(t, protected, map[int]any{}, payload, e.Signature(t, protected, payload))
}

// Signature is that of a COSE_Sign1 (RFC 9052 §4.4), ES384.
func (e *Enclave) Signature(t testing.TB, protected, payload []byte) []byte {
	t.Helper()
	signed := must(cbor.Marshal([]any{"Signature1", protected, []byte{}, payload}))(t)
	digest := sha512.Sum384(signed)
	key, isEC := e.leaf.(*ecdsa.PrivateKey)
	if !isEC {
		return make([]byte, 96)
	}
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...)
}

// Message is a COSE_Sign1 without its tag.
func Message(t testing.TB, protected []byte, unprotected any, payload, signature []byte) []byte {
	t.Helper()
	return must(cbor.Marshal([]any{protected, unprotected, payload, signature}))(t)
}

// Open decrypts a CMS EnvelopedData with OpenSSL.
func (e *Enclave) Open(t testing.TB, sealed []byte) []byte {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key.der")
	if err := os.WriteFile(key, must(x509.MarshalPKCS8PrivateKey(e.Key))(t), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testenv.Program(t, "openssl"), "cms", "-decrypt", "-binary", "-inform", "DER", "-keyform", "DER", "-inkey", key)
	cmd.Stdin = bytes.NewReader(sealed)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl cms: %v\n%s", err, &faults)
	}
	return out
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
