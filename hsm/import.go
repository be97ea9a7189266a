package hsm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
)

// ErrMaterial means that what was imported is well wrapped, but of another type or size
// than the key spec.
var ErrMaterial = errors.New("key material is not of the key spec")

// wrapping is one of AWS's wrapping algorithms.
type wrapping struct {
	oaep string // RSA-OAEP, of the material or of the inner key
	// inner: OAEP wraps an AES key and that wraps the material, by RFC 5649
	// (CKM_RSA_AES_KEY_WRAP, done in its two steps inside the device).
	inner bool
}

var wrappings = map[string]wrapping{
	"RSAES_OAEP_SHA_1":         {oaep: "RSAES_OAEP_SHA_1"},
	"RSAES_OAEP_SHA_256":       {oaep: "RSAES_OAEP_SHA_256"},
	"RSA_AES_KEY_WRAP_SHA_1":   {oaep: "RSAES_OAEP_SHA_1", inner: true},
	"RSA_AES_KEY_WRAP_SHA_256": {oaep: "RSAES_OAEP_SHA_256", inner: true},
}

// byOAEP is one of AWS's names of RSA-OAEP as the mechanism of C_UnwrapKey.
func byOAEP(name string) []*pkcs11.Mechanism {
	h := hashes[oaep[name]]
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP,
		pkcs11.NewOAEPParams(h.mechanism, h.mgf, pkcs11.CKZ_DATA_SPECIFIED, nil))}
}

// GenerateWrappingKey makes an RSA key pair for Import; spec is RSA_2048,
// RSA_3072 or RSA_4096. The private half can only be wrapped; its copies only
// unwrap. The public half is a SubjectPublicKeyInfo in DER.
func (d *Member) GenerateWrappingKey(ctx context.Context, spec string) (ekt EKT, publicKey []byte, err error) {
	sp, err := specFor(spec, UseEncrypt)
	if err != nil || sp.keyType != pkcs11.CKK_RSA {
		return nil, nil, fmt.Errorf("%w: %s is no spec of a wrapping key", ErrArgument, spec)
	}
	if err := d.Supports(spec, UseEncrypt); err != nil {
		return nil, nil, err
	}
	var made Material
	err = d.onMaker(ctx, func(s *session, keys *domainKeys) error {
		public, private, err := s.generatePair(sp, UseEncrypt, keys.protected(privateBackingTemplate(sp.keyType)))
		if err != nil {
			return refused(spec, sp.generate, err)
		}
		defer s.destroy(public)
		made, err = s.wrapPair(keys, spec, sp, public, private)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("generating a wrapping key: %w", err)
	}
	return made.EKT, made.PublicKey, nil
}

// SupportsImport says whether material of spec, wrapped by AWS's algorithm,
// can be unwrapped inside this HSM: nil, *UnsupportedError, or ErrArgument for
// what AWS does not have. Like Supports, it finds out once by trying.
func (d *Member) SupportsImport(algorithm, spec string, use Use) error {
	sp, err := importable(algorithm, spec, use)
	if err != nil {
		return err
	}
	if err := d.Supports(spec, use); err != nil {
		return err
	}
	if sp.class == classPrivate && sp.keyType != pkcs11.CKK_RSA && sp.keyType != pkcs11.CKK_EC {
		return &UnsupportedError{spec, mechanismName(sp.generate), "the public key cannot be had from an imported private key"}
	}
	w := wrappings[algorithm]
	err = d.tried.ask("import by "+w.oaep, func() error { return d.tryImport(w.oaep) })
	if err == nil && w.inner {
		err = d.tried.ask("import by AES", d.tryInner)
	}
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) {
		return &UnsupportedError{algorithm, unsupported.Mechanism, unsupported.Why}
	}
	return err
}

func importable(algorithm, name string, use Use) (spec, error) {
	sp, err := specFor(name, use)
	if err != nil {
		return spec{}, err
	}
	w, ok := wrappings[algorithm]
	if !ok {
		return spec{}, fmt.Errorf("%w: there is no wrapping algorithm %q here", ErrArgument, algorithm)
	}
	if sp.keyType == pkcs11.CKK_RSA && !w.inner {
		return spec{}, fmt.Errorf("%w: %s is too long for %s", ErrArgument, name, algorithm)
	}
	return sp, nil
}

// tryImport imports a key that serves for nothing else.
func (d *Member) tryImport(algorithm string) error {
	wrappingKey, spki, err := d.GenerateWrappingKey(background, "RSA_2048")
	if err != nil {
		return err
	}
	public, err := readRSA(spki)
	if err != nil {
		return err
	}
	wrapped, err := rsa.EncryptOAEP(oaep[algorithm].New(), rand.Reader, public, proofDigest, nil)
	if err != nil {
		return fmt.Errorf("wrapping a key to try: %w", err)
	}
	const name = "SYMMETRIC_DEFAULT"
	_, err = d.importWith(background, wrappingKey, wrappings[algorithm], name, specs[name], UseEncrypt, wrapped)
	var device *DeviceError
	if errors.As(err, &device) && slices.Contains(lacksHash, device.Code) {
		return &UnsupportedError{algorithm, mechanismName(pkcs11.CKM_RSA_PKCS_OAEP),
			"the device has not this hash for it (" + device.Error() + "), so that only this process could unwrap"}
	}
	return err
}

func (d *Member) tryInner() error {
	return d.onMaker(background, func(s *session, _ *domainKeys) error {
		_, err := s.wayOfForm(formKWP)
		return err
	})
}

// Import unwraps key material inside the HSM and wraps it again under the
// domain key; nothing else of it remains. wrappingKey is GenerateWrappingKey's
// EKT. Secrets are bare bytes, private keys PKCS #8 in DER. It returns
// ErrInvalidCiphertext for a bad wrapping, ErrMaterial for material of another
// type or size, *UnsupportedError where only this process could unwrap it, and
// ErrArgument for what AWS does not have.
func (d *Member) Import(ctx context.Context, wrappingKey EKT, algorithm, spec string, use Use, wrapped []byte) (Material, error) {
	sp, err := importable(algorithm, spec, use)
	if err != nil {
		return Material{}, err
	}
	if err := d.SupportsImport(algorithm, spec, use); err != nil {
		return Material{}, err
	}
	made, err := d.importWith(ctx, wrappingKey, wrappings[algorithm], spec, sp, use, wrapped)
	if errors.Is(err, ErrInvalidCiphertext) || errors.Is(err, ErrMaterial) { // a device that errs once must not condemn
		made, err = d.importWith(ctx, wrappingKey, wrappings[algorithm], spec, sp, use, wrapped)
	}
	if err != nil {
		return Material{}, fmt.Errorf("importing key material of %s: %w", spec, err)
	}
	return made, nil
}

func (d *Member) importWith(ctx context.Context, wrappingKey EKT, w wrapping, name string, sp spec, use Use, wrapped []byte) (Material, error) {
	k, err := wrappingKey.parse()
	if err != nil {
		return Material{}, err
	}
	if k.keyType != pkcs11.CKK_RSA {
		return Material{}, fmt.Errorf("%w: it holds no wrapping key", ErrInvalidEKT)
	}
	wrapped = bytes.Clone(wrapped) // the caller may have gone
	var made Material
	err = d.onMaker(ctx, func(s *session, keys *domainKeys) error {
		material, err := s.unwrapMaterial(keys, k, w, sp, wrapped)
		if err != nil {
			return err
		}
		defer s.destroy(material)
		made, err = s.keepMaterial(keys, name, sp, use, material)
		return err
	})
	if err != nil {
		return Material{}, err // made may still be written
	}
	return made, nil
}

// unwrapMaterial brings the material into the session as an object that can
// hardly do more than be wrapped. The keys on the way there can unwrap such
// objects and nothing else, and are destroyed.
func (s *session) unwrapMaterial(keys *domainKeys, k keyToken, w wrapping, sp spec, wrapped []byte) (pkcs11.ObjectHandle, error) {
	material := keys.protected(materialTemplate(sp))
	outer := material
	if w.inner {
		outer = innerKeyTemplate()
	}
	unwrapper, err := s.unwrapper(keys, k, outer)
	if err != nil {
		return 0, err
	}
	defer s.destroy(unwrapper)
	modulus, err := s.attribute(unwrapper, pkcs11.CKA_MODULUS)
	if err != nil {
		return 0, err
	}
	n := len(modulus)
	if len(wrapped) < n || w.inner == (len(wrapped) == n) {
		return 0, fmt.Errorf("%w: %d bytes are not what a modulus of %d bytes wraps", ErrInvalidCiphertext, len(wrapped), n)
	}
	byRSA := byOAEP(w.oaep)
	if !w.inner {
		return s.unwrapStrange(keys, byRSA, unwrapper, wrapped, material)
	}
	nested, free := nestedTemplate(material)
	defer free()
	inner, err := s.unwrapStrange(keys, byRSA, unwrapper, wrapped[:n], append([]*pkcs11.Attribute{attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested)}, outer...))
	if err != nil {
		return 0, err
	}
	defer s.destroy(inner)
	padded, err := s.wayOfForm(formKWP)
	if err != nil {
		return 0, err
	}
	return s.unwrapStrange(keys, mechanism(padded), inner, wrapped[n:], material)
}

// unwrapper is a copy of a wrapping key that can unwrap what the template
// describes and nothing else.
func (s *session) unwrapper(keys *domainKeys, k keyToken, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	nested, free := nestedTemplate(template)
	defer free()
	return s.unwrapWith(keys, k, append(privateUseTemplate(k.keyType, pkcs11.CKA_UNWRAP),
		attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested)))
}

// materialTemplate is backingKeyTemplate for what comes from outside, which is
// also tried by signing before it is destroyed.
func materialTemplate(sp spec) []*pkcs11.Attribute {
	if sp.class == classPrivate {
		return privateBackingTemplate(sp.keyType)
	}
	return altered(useTemplate(sp.keyType, pkcs11.CKA_SIGN), attr(pkcs11.CKA_EXTRACTABLE, true))
}

func innerKeyTemplate() []*pkcs11.Attribute {
	return useTemplate(pkcs11.CKK_AES, pkcs11.CKA_UNWRAP)
}

// unwrapStrange unwraps what someone else has wrapped.
func (s *session) unwrapStrange(keys *domainKeys, by []*pkcs11.Mechanism, with pkcs11.ObjectHandle, wrapped []byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	object, err := s.t.module.p11.UnwrapKey(s.handle, by, with, wrapped, template)
	err = deviceError("unwrapping key material", err)
	code, ok := codeOf(err)
	switch {
	case !ok:
		return object, err
	case slices.Contains(lacksHash, code): // of the device, whatever was wrapped
		return 0, err
	case slices.Contains(refusals, code), code == pkcs11.CKR_FUNCTION_FAILED: // SoftHSM's for what is no PKCS #8
		return 0, fmt.Errorf("%w (%s)", ErrMaterial, codeName(code))
	case classify(code) != classData && classify(code) != classForged:
		return 0, err
	case !s.healthy(keys):
		return 0, fmt.Errorf("%w: %w, and the known-answer probe fails too", ErrUnavailable, err)
	}
	return 0, fmt.Errorf("%w (%s)", ErrInvalidCiphertext, codeName(code))
}
