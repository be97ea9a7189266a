package hsm

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSA-OAEP's default, which all devices have
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

var errPairwise = errors.New("the new key pair's halves do not match")

// prove shows that the EKT comes back, that the copy serves its use, and that
// it belongs to the public key: the pairwise consistency test of FIPS 140-3
// (implementation guidance 10.3.A). public is an object of the public half.
func (s *session) prove(keys *domainKeys, name string, sp spec, use Use, made Material, public pkcs11.ObjectHandle) error {
	k, err := made.EKT.parse()
	if err != nil {
		return err
	}
	object, err := s.unwrapFor(keys, k, useFlags[use]...)
	if err != nil {
		return refused(name, k.mechanism, err)
	}
	defer s.destroy(object)
	switch {
	case use == UseSign:
		err = s.proveSigning(sp, object, public)
	case use == UseAgree:
		err = s.proveAgreement(sp, object, made.PublicKey)
	case use == UseEncrypt && sp.keyType == pkcs11.CKK_RSA:
		err = s.proveDecryption(object, made.PublicKey)
	default:
		return &UnsupportedError{name, mechanismName(sp.uses[use][0]), "it is called by functions that PKCS#11 2.40 has not"}
	}
	if err != nil {
		return refused(name, sp.uses[use][0], fmt.Errorf("proving a new key pair: %w", err))
	}
	return nil
}

// proofDigest has the length of a SHA-256 digest.
var proofDigest = []byte("Trent proves that a pair matches")

func (s *session) proveSigning(sp spec, private, public pkcs11.ObjectHandle) error {
	with, message := sp.uses[UseSign][0], proofDigest
	if with == pkcs11.CKM_RSA_PKCS {
		message = append(bytes.Clone(signing["RSASSA_PKCS1_V1_5_SHA_256"].prefix), proofDigest...)
	}
	n := s.t.module.native
	signature := make([]byte, 8<<10)
	length, code := n.use(false, with, nil, s.handle, private, message, signature)
	if code != pkcs11.CKR_OK {
		return &DeviceError{Doing: "signing", Code: code}
	}
	switch code := n.verify(with, s.handle, public, message, signature[:length]); {
	case code == pkcs11.CKR_OK:
		return nil
	case classify(code) == classForged:
		return errPairwise
	default:
		return &DeviceError{Doing: "verifying", Code: code}
	}
}

func (s *session) proveAgreement(sp spec, private pkcs11.ObjectHandle, spki []byte) error {
	_, point, err := parsePoint(spki)
	if err != nil {
		return err
	}
	public, err := sp.curve.ecdh().NewPublicKey(point)
	if err != nil {
		return errPairwise
	}
	peer, err := public.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("making a peer: %w", err)
	}
	want, err := peer.ECDH(public)
	if err != nil {
		return fmt.Errorf("agreeing as the peer: %w", err)
	}
	got, err := s.agree(sp.curve, private, peer.PublicKey().Bytes())
	if err == nil && !bytes.Equal(got, want) {
		err = errPairwise
	}
	return err
}

func (s *session) agree(c *curve, private pkcs11.ObjectHandle, peer []byte) ([]byte, error) {
	parameters, err := c.parameters()
	if err != nil {
		return nil, err
	}
	secret := make([]byte, c.size)
	length, code := s.t.module.native.agree(s.handle, private, parameters, peer, secret)
	if code != pkcs11.CKR_OK {
		return nil, &DeviceError{Doing: "agreeing on a secret", Code: code}
	}
	return secret[:length], nil
}

// ecdh is nil for curves without key agreement.
func (c *curve) ecdh() ecdh.Curve {
	switch c {
	case p256:
		return ecdh.P256()
	case p384:
		return ecdh.P384()
	case p521:
		return ecdh.P521()
	}
	return nil
}

// readRSA reads the public key that the device shows of an RSA key pair.
func readRSA(spki []byte) (*rsa.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	public, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, errPairwise
	}
	return public, nil
}

func (s *session) proveDecryption(private pkcs11.ObjectHandle, spki []byte) error {
	public, err := readRSA(spki)
	if err != nil {
		return err
	}
	sealed, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, public, proofDigest, nil) //nolint:gosec // as above
	if err != nil {
		return fmt.Errorf("encrypting: %w", err)
	}
	opened := make([]byte, public.Size())
	length, code := s.t.module.native.use(true, pkcs11.CKM_RSA_PKCS_OAEP, oaepParameters("RSAES_OAEP_SHA_1"),
		s.handle, private, sealed, opened)
	switch {
	case code != pkcs11.CKR_OK:
		return &DeviceError{Doing: "decrypting by RSA", Code: code}
	case !bytes.Equal(opened[:length], proofDigest):
		return errPairwise
	}
	return nil
}
