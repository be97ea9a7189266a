// Package attestation verifies the attestation documents by which AWS Nitro
// enclaves and instances with NitroTPM prove what runs in them, and seals
// answers for them.
//
// A document is believed if a certificate chain that ends in a configured root
// has signed it, and if it is fresh. It then names an RSA key whose private
// half only that enclave has; Envelope seals to it.
package attestation

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"time"

	"github.com/veraison/go-cose"
)

// Window is how far a document's timestamp may lie from now, either way: a
// document is made for the call that it comes with, and clocks differ.
const Window = 5 * time.Minute

// A Document is what a verified attestation document says.
type Document struct {
	// ModuleID names the module that made the document: an instance and its
	// enclave, or an instance and its TPM.
	ModuleID string

	// NitroTPM is true for a document of an instance with NitroTPM, and false
	// for one of an enclave.
	NitroTPM bool

	// PCRs are the measurements by their index, 32, 48 or 64 bytes each. PCR0
	// of an enclave is the digest of its image.
	PCRs map[int][]byte

	// Made is when the document was signed.
	Made time.Time

	// UserData and Nonce are what the enclave has put in, up to 512 bytes.
	UserData, Nonce []byte

	// publicKey is the RSA key to seal to, and spki its bytes as they stand in
	// the document.
	publicKey *rsa.PublicKey
	spki      []byte
}

// A Refusal is why a document is not believed.
type Refusal struct {
	// Reason is for the caller. It has nothing in it that the document says.
	Reason string
	err    error
}

func (r *Refusal) Error() string {
	if r.err == nil {
		return r.Reason
	}
	return r.Reason + ": " + r.err.Error()
}

func (r *Refusal) Unwrap() error { return r.err }

func refuse(reason string, err error) error { return &Refusal{reason, err} }

// Verify returns what a signed document says, if it is to be believed at the
// time now. Any error is a *Refusal.
func (r *Roots) Verify(signed []byte, now time.Time) (*Document, error) {
	message, err := parseMessage(signed)
	if err != nil {
		return nil, err
	}
	said, err := parsePayload(message.Payload)
	if err != nil {
		return nil, err
	}
	signer, err := r.signer(said, now)
	if err != nil {
		return nil, err
	}
	verifier, err := cose.NewVerifier(cose.AlgorithmES384, signer)
	if err != nil {
		return nil, refuse("its signer's key cannot verify", err)
	}
	if err := message.Verify(nil, verifier); err != nil {
		return nil, refuse("its signature is wrong", err)
	}
	d := said.document()
	if age := now.Sub(d.Made); age > Window || age < -Window {
		return nil, refuse("its timestamp is more than 5 minutes off", nil)
	}
	if d.publicKey, err = parsePublicKey(d.spki); err != nil {
		return nil, err
	}
	return d, nil
}

// signer returns the key of the certificate that has signed a document.
func (r *Roots) signer(said *payload, now time.Time) (*ecdsa.PublicKey, error) {
	leaf, err := r.verifyChain(said.Certificate.Bytes(), said.bundle(), now)
	if err != nil {
		return nil, err
	}
	key, isEC := leaf.PublicKey.(*ecdsa.PublicKey)
	if !isEC || key.Curve != elliptic.P384() {
		return nil, refuse("its certificate's key is not on P-384", nil)
	}
	return key, nil
}

// maxExponent is the largest public exponent that is taken; SP 800-56B §6.2
// allows up to 256 bits, which nobody uses.
const maxExponent = 1<<31 - 1

// parsePublicKey takes a SubjectPublicKeyInfo with an RSA key of 2048 to 4096
// bits, whose public exponent SP 800-56B allows.
func parsePublicKey(spki []byte) (*rsa.PublicKey, error) {
	if len(spki) == 0 {
		return nil, refuse("it has no public_key to answer to", nil)
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, refuse("its public_key is not a SubjectPublicKeyInfo", err)
	}
	key, isRSA := parsed.(*rsa.PublicKey)
	if !isRSA {
		return nil, refuse("its public_key is not an RSA key", nil)
	}
	if bits := key.N.BitLen(); bits < 2048 || bits > 4096 {
		return nil, refuse("its public_key has not 2048 to 4096 bits", nil)
	}
	if key.E < 65537 || key.E > maxExponent || key.E%2 == 0 || key.N.Bit(0) == 0 {
		return nil, refuse("its public_key is weak", nil)
	}
	// Another encoding of the same key would have another key identifier.
	if again, err := x509.MarshalPKIXPublicKey(key); err != nil || !bytes.Equal(again, spki) {
		return nil, refuse("its public_key is not DER", err)
	}
	return key, nil
}
