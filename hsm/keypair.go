package hsm

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/failpoint"
)

// Material is a new backing key as it leaves the HSM.
type Material struct {
	EKT EKT
	// PublicKey is a key pair's public half, SubjectPublicKeyInfo in DER; nil
	// for secrets.
	PublicKey []byte
	// CheckValue is a secret's, see Domain.CheckValue; nil for key pairs.
	CheckValue []byte
	Provenance Provenance
}

// Generate makes a backing key of an AWS key spec in the HSM and returns it
// wrapped; the key itself is destroyed. A key pair has proved before that its
// copies serve the use and match the public key. It returns what Supports
// does for what the device cannot do.
func (d *Member) Generate(ctx context.Context, spec string, use Use) (Material, error) {
	sp, err := specFor(spec, use)
	if err != nil {
		return Material{}, err
	}
	if err := d.Supports(spec, use); err != nil {
		return Material{}, err
	}
	generate := d.generateSecret
	if sp.class == classPrivate {
		generate = d.generatePair
	}
	made, err := generate(ctx, spec, sp, use)
	if err != nil {
		return Material{}, fmt.Errorf("generating a backing key of %s: %w", spec, err)
	}
	return made, nil
}

func (d *Member) generateSecret(ctx context.Context, name string, sp spec, _ Use) (Material, error) {
	var made Material
	err := d.onMaker(ctx, func(s *session, keys *domainKeys) (err error) {
		if made.EKT, made.Provenance, err = s.generateSecret(keys, sp); err != nil {
			return refused(name, sp.generate, err)
		}
		made.CheckValue, err = s.checkValue(keys, made.EKT)
		return err
	})
	if err != nil {
		return Material{}, err // made may still be written
	}
	return made, nil
}

func (d *Member) generatePair(ctx context.Context, name string, sp spec, use Use) (Material, error) {
	var made Material
	err := d.onMaker(ctx, func(s *session, keys *domainKeys) (err error) {
		made, err = s.makePair(keys, name, sp, use)
		return err
	})
	if err != nil {
		return Material{}, err
	}
	return made, nil
}

func (s *session) makePair(keys *domainKeys, name string, sp spec, use Use) (Material, error) {
	public, private, err := s.generatePair(sp, use, keys.protected(privateBackingTemplate(sp.keyType)))
	if err != nil {
		return Material{}, refused(name, sp.generate, err)
	}
	defer s.destroy(public)
	made, err := s.wrapPair(keys, name, sp, public, private)
	if err != nil {
		return Material{}, err
	}
	return made, s.prove(keys, name, sp, use, made, public)
}

// wrapPair exports and destroys the private half.
func (s *session) wrapPair(keys *domainKeys, name string, sp spec, public, private pkcs11.ObjectHandle) (made Material, err error) {
	defer s.destroy(private)
	failpoint.Hit("hbk.generated")
	if made.Provenance, err = s.provenance(keys, private, sp.generate); err != nil {
		return Material{}, err
	}
	if made.PublicKey, err = s.publicKey(sp, public); err != nil {
		return Material{}, err
	}
	made.EKT, err = s.export(keys.generationKeys, classPrivate, sp.keyType, 0, private)
	return made, refused(name, keys.way(classPrivate).mechanism, err)
}

// privateBackingTemplate is backingKeyTemplate for private keys.
func privateBackingTemplate(keyType uint) []*pkcs11.Attribute {
	return append(privateUsage(), privateKeyTemplate(keyType, true)...)
}

// publicExponent is 65537, AWS's.
var publicExponent = []byte{1, 0, 1}

func (s *session) generatePair(sp spec, use Use, private []*pkcs11.Attribute) (publicKey, privateKey pkcs11.ObjectHandle, err error) {
	public := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, false),
		attr(pkcs11.CKA_VERIFY, use == UseSign),
	}
	switch {
	case sp.keyType == pkcs11.CKK_RSA:
		public = append(public, attr(pkcs11.CKA_MODULUS_BITS, sp.size), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent))
	case sp.curve != nil:
		parameters, err := sp.curve.parameters()
		if err != nil {
			return 0, 0, err
		}
		public = append(public, attr(pkcs11.CKA_EC_PARAMS, parameters))
	default:
		public = append(public, attr(ckaParameterSet, sp.parameters))
	}
	publicKey, privateKey, err = s.t.module.p11.GenerateKeyPair(s.handle, mechanism(sp.generate), public, private)
	return publicKey, privateKey, deviceError("generating a key pair", err)
}
