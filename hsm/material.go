package hsm

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// keepMaterial wraps imported material under the domain key, having checked
// that it is of the spec. Its caller destroys the material.
func (s *session) keepMaterial(keys *domainKeys, name string, sp spec, use Use, material pkcs11.ObjectHandle) (made Material, err error) {
	if made.Provenance, err = s.provenance(keys, material, pkcs11.CKM_RSA_PKCS_OAEP); err != nil {
		return Material{}, err
	}
	if sp.class == classPrivate {
		err = s.keepPair(keys, name, sp, use, material, &made)
		return made, err
	}
	length, err := s.length(keys, sp, material)
	if err != nil {
		return Material{}, err
	}
	if length < sp.size || length > sp.longest() {
		return Material{}, fmt.Errorf("%w: it has %d bytes, not %d", ErrMaterial, length, sp.size)
	}
	if made.EKT, err = s.export(keys.generationKeys, sp.class, sp.keyType, length, material); err != nil {
		return Material{}, err
	}
	if made.CheckValue, err = s.checkValue(keys, made.EKT); err != nil {
		return Material{}, err
	}
	return made, s.tryMaterial(keys, sp, material, made.CheckValue)
}

// longest is the most bytes of an imported secret: HMAC keys may be as long
// as their hash's block.
func (s spec) longest() int {
	switch {
	case s.class != classGeneric:
		return s.size
	case s.size <= 32:
		return 64
	}
	return 128
}

// tooShort are how devices say that a secret is too short to be wrapped.
var tooShort = []uint{
	pkcs11.CKR_KEY_SIZE_RANGE, pkcs11.CKR_KEY_NOT_WRAPPABLE, pkcs11.CKR_DATA_LEN_RANGE,
	pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED,
}

// length finds the length of a secret. Where the device does not say (SoftHSM,
// of what it unwrapped) it shows in what it wraps to, but for the last octets;
// the spec's own length is taken if it may be that.
func (s *session) length(keys *domainKeys, sp spec, secret pkcs11.ObjectHandle) (int, error) {
	value, err := s.attribute(secret, pkcs11.CKA_VALUE_LEN)
	if err == nil && ulong(value) > 0 {
		return ulong(value), nil
	}
	wrapped, err := s.wrap(keys.way(sp.class), keys.wrap[sp.class], secret)
	if isCode(err, tooShort...) { // no key is
		return 0, s.blameMaterial(keys, err)
	}
	if err != nil {
		return 0, err
	}
	n := len(wrapped) - 8
	if n-8 < sp.size && sp.size <= n {
		return sp.size, nil
	}
	return n, nil
}

// tryMaterial uses a secret as it came, before devices that zero-extend what
// they wrap have done so: one that is too short is refused.
func (s *session) tryMaterial(keys *domainKeys, sp spec, material pkcs11.ObjectHandle, checkValue []byte) error {
	mechanism := uint(pkcs11.CKM_AES_CMAC)
	if sp.class == classGeneric {
		mechanism = sp.uses[UseMAC][0]
	}
	mac, err := s.mac("trying key material", mechanism, material, checkMessage, longestMAC)
	if err != nil {
		return s.blameMaterial(keys, err)
	}
	if sp.class == classAES && !bytes.Equal(mac, checkValue) {
		return fmt.Errorf("%w: it changes when it is wrapped", ErrMaterial)
	}
	return nil
}

// ulong reads a CK_ULONG; 0 if it is none, or CK_UNAVAILABLE_INFORMATION.
func ulong(value []byte) int {
	switch len(value) {
	case 8:
		return max(0, int(binary.NativeEndian.Uint64(value)))
	case 4:
		return max(0, int(int32(binary.NativeEndian.Uint32(value))))
	}
	return 0
}

func (s *session) keepPair(keys *domainKeys, name string, sp spec, use Use, private pkcs11.ObjectHandle, made *Material) error {
	var err error
	if made.EKT, err = s.export(keys.generationKeys, classPrivate, sp.keyType, 0, private); err != nil {
		return s.blameMaterial(keys, err)
	}
	values, err := s.publicValues(keys, sp, private, made.EKT)
	if err != nil {
		return s.blameMaterial(keys, err)
	}
	if made.PublicKey, err = sp.encodePublic(values); err != nil {
		return err
	}
	public, err := s.publicObject(sp, values)
	if err != nil {
		return s.blameMaterial(keys, err)
	}
	defer s.destroy(public)
	return s.blameMaterial(keys, s.prove(keys, name, sp, use, *made, public))
}

// blameMaterial: a device that does the spec, and is healthy, but not with
// this key, has been given a bad one.
func (s *session) blameMaterial(keys *domainKeys, err error) error {
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) || errors.Is(err, errPairwise) {
		return fmt.Errorf("%w: %w", ErrMaterial, err)
	}
	code, ok := codeOf(err)
	if !ok {
		return err
	}
	switch classify(code) {
	case classOther, classData, classForged:
		if s.healthy(keys) {
			return fmt.Errorf("%w: %s", ErrMaterial, err.Error())
		}
	}
	return err
}

// publicValues finds the public half of an imported private key.
func (s *session) publicValues(keys *domainKeys, sp spec, private pkcs11.ObjectHandle, ekt EKT) ([][]byte, error) {
	if sp.keyType == pkcs11.CKK_EC {
		point, err := s.publicPoint(keys, sp, private, ekt)
		return [][]byte{point}, err
	}
	var values [][]byte
	for _, kind := range sp.publicAttributes() {
		value, err := s.attribute(private, kind)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

// publicPoint computes the public point in the device, which keeps none with
// a private key: key agreement with the curve's base point gives its x
// coordinate, and of the two points that have it, the key's is the one that
// verifies its signatures.
func (s *session) publicPoint(keys *domainKeys, sp spec, private pkcs11.ObjectHandle, ekt EKT) ([]byte, error) {
	parameters, err := sp.curve.parameters()
	if err != nil {
		return nil, err
	}
	if own, err := s.attribute(private, pkcs11.CKA_EC_PARAMS); err != nil || !bytes.Equal(own, parameters) {
		return nil, errors.Join(fmt.Errorf("%w: it is not on %s", ErrMaterial, sp.curve.name), err)
	}
	k, err := ekt.parse()
	if err != nil {
		return nil, err
	}
	agreeing, err := s.unwrapFor(keys, k, pkcs11.CKA_DERIVE)
	if err != nil {
		return nil, err
	}
	defer s.destroy(agreeing)
	x, err := s.agree(sp.curve, agreeing, sp.curve.point(sp.curve.gx, sp.curve.gy))
	if err != nil {
		return nil, err
	}
	signing, err := s.unwrapFor(keys, k, pkcs11.CKA_SIGN)
	if err != nil {
		return nil, err
	}
	defer s.destroy(signing)
	for _, point := range sp.curve.at(x) {
		err = s.provePoint(sp, signing, point)
		if !errors.Is(err, errPairwise) {
			return point, err
		}
	}
	return nil, errPairwise
}

func (s *session) provePoint(sp spec, signing pkcs11.ObjectHandle, point []byte) error {
	public, err := s.publicObject(sp, [][]byte{point})
	if err != nil {
		return err
	}
	defer s.destroy(public)
	return s.proveSigning(sp, signing, public)
}

// publicObject makes an object of public attributes, to verify with.
func (s *session) publicObject(sp spec, values [][]byte) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		attr(pkcs11.CKA_KEY_TYPE, sp.keyType),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, false),
		attr(pkcs11.CKA_VERIFY, true),
	}
	if sp.curve != nil {
		parameters, err := sp.curve.parameters()
		if err != nil {
			return 0, err
		}
		point, err := asn1.Marshal(values[0])
		if err != nil {
			return 0, fmt.Errorf("encoding a point: %w", err)
		}
		template = append(template, attr(pkcs11.CKA_EC_PARAMS, parameters), attr(pkcs11.CKA_EC_POINT, point))
	} else {
		kinds := sp.publicAttributes()
		for i, value := range values {
			template = append(template, attr(kinds[i], value))
		}
	}
	object, err := s.t.module.p11.CreateObject(s.handle, template)
	return object, deviceError("creating a public key", err)
}
