package hsm

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
)

var (
	oidRSA = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEC  = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
)

// subjectPublicKey is a SubjectPublicKeyInfo (RFC 5280 §4.1).
type subjectPublicKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}

// algorithm is the identifier that both halves of a pair carry.
func (s spec) algorithm() (pkix.AlgorithmIdentifier, error) {
	switch {
	case s.keyType == pkcs11.CKK_RSA:
		return pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}, nil
	case s.oid != nil:
		return pkix.AlgorithmIdentifier{Algorithm: s.oid}, nil
	}
	name, err := s.curve.parameters()
	return pkix.AlgorithmIdentifier{Algorithm: oidEC, Parameters: asn1.RawValue{FullBytes: name}}, err
}

// publicAttributes are those that hold the public half of a pair.
func (s spec) publicAttributes() []uint {
	switch s.keyType {
	case pkcs11.CKK_RSA:
		return []uint{pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT}
	case pkcs11.CKK_EC, ckkECEdwards:
		return []uint{pkcs11.CKA_EC_POINT}
	}
	return []uint{pkcs11.CKA_VALUE}
}

// publicKey reads the public half from object, which for RSA may be either. It
// reads it twice: nothing else would show that the device had answered for
// another object.
func (s *session) publicKey(sp spec, object pkcs11.ObjectHandle) ([]byte, error) {
	key, err := s.readPublicKey(sp, object)
	if err != nil && !errors.Is(err, ErrMaterial) {
		return nil, err
	}
	again, err := s.readPublicKey(sp, object)
	if errors.Is(err, ErrMaterial) || err == nil && !bytes.Equal(key, again) {
		err = errChanging // the device made this key: its form cannot be wrong
	}
	return key, err
}

// errChanging counts as a loss: the call begins again with another session.
var errChanging = &DeviceError{Doing: "reading a key", Code: ckrChanging}

func (s *session) readPublicKey(sp spec, object pkcs11.ObjectHandle) ([]byte, error) {
	var values [][]byte
	for _, kind := range sp.publicAttributes() {
		value, err := s.attribute(object, kind)
		if err != nil {
			return nil, fmt.Errorf("reading the public key: %w", err)
		}
		values = append(values, value)
	}
	return sp.encodePublic(values)
}

// encodePublic makes a SubjectPublicKeyInfo of the public attributes, and
// refuses what is not of the spec.
func (s spec) encodePublic(values [][]byte) ([]byte, error) {
	var key []byte
	switch s.keyType {
	case pkcs11.CKK_RSA:
		n, e := new(big.Int).SetBytes(values[0]), new(big.Int).SetBytes(values[1])
		if n.BitLen() != s.size || e.BitLen() < 2 || e.BitLen() > 31 || e.Bit(0) == 0 {
			return nil, fmt.Errorf("%w: an RSA modulus of %d bits and exponent %v, not %d bits", ErrMaterial, n.BitLen(), e, s.size)
		}
		var err error
		if key, err = asn1.Marshal(struct{ N, E *big.Int }{n, e}); err != nil {
			return nil, fmt.Errorf("encoding a public key: %w", err)
		}
	case pkcs11.CKK_EC, ckkECEdwards:
		if key = s.curve.unwrapPoint(values[0]); key == nil {
			return nil, fmt.Errorf("%w: a point of %d bytes is not on %s", ErrMaterial, len(values[0]), s.curve.name)
		}
	default:
		key = values[0]
	}
	return s.encodeKey(key)
}

func (s spec) encodeKey(key []byte) ([]byte, error) {
	algorithm, err := s.algorithm()
	if err != nil {
		return nil, err
	}
	spki, err := asn1.Marshal(subjectPublicKey{algorithm, asn1.BitString{Bytes: key, BitLength: 8 * len(key)}})
	if err != nil {
		return nil, fmt.Errorf("encoding a public key: %w", err)
	}
	return spki, nil
}

// unwrapPoint takes CKA_EC_POINT as the standard has it, a DER octet string,
// or bare as some devices do.
func (c *curve) unwrapPoint(value []byte) []byte {
	length := 1 + 2*c.size
	if c.p == nil {
		length = c.size
	}
	var point []byte
	if rest, err := asn1.Unmarshal(value, &point); err != nil || len(rest) > 0 || len(point) != length {
		point = value
	}
	if len(point) != length {
		return nil
	}
	return bytes.Clone(point)
}

// parsePoint returns the curve and point in a SubjectPublicKeyInfo of an EC key.
func parsePoint(spki []byte) (*curve, []byte, error) {
	var key subjectPublicKey
	rest, err := asn1.Unmarshal(spki, &key)
	if err != nil || len(rest) > 0 || !key.Algorithm.Algorithm.Equal(oidEC) || key.Key.BitLength%8 != 0 {
		return nil, nil, fmt.Errorf("%w: it is no SubjectPublicKeyInfo of an elliptic curve", ErrArgument)
	}
	if again, err := asn1.Marshal(key); err != nil || !bytes.Equal(again, spki) { // more inside, which the package passes over
		return nil, nil, fmt.Errorf("%w: it is not the DER of a SubjectPublicKeyInfo", ErrArgument)
	}
	for _, c := range []*curve{p256, p384, p521} {
		if name, err := c.parameters(); err == nil && bytes.Equal(name, key.Algorithm.Parameters.FullBytes) {
			return c, key.Key.Bytes, nil
		}
	}
	return nil, nil, fmt.Errorf("%w: its curve is not one for key agreement", ErrArgument)
}
