package hsm

import (
	"bytes"
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
)

// ErrSignature means that a signature does not verify.
var ErrSignature = errors.New("signature does not verify")

// VerifySignature verifies what Sign made, in the HSM, for keys that Go's
// crypto does not know, such as secp256k1's. publicKey is a key of the spec, a
// SubjectPublicKeyInfo in DER; digest and signature are as Sign has them. It
// returns ErrSignature for whatever does not verify.
func (d *Member) VerifySignature(ctx context.Context, spec string, publicKey []byte, algorithm string, digest, signature []byte) error {
	sp, err := specFor(spec, UseSign)
	if err != nil {
		return err
	}
	a, ok := signing[algorithm]
	if !ok || a.keyType != sp.keyType || sp.class != classPrivate {
		return fmt.Errorf("%w: there is no algorithm %q for %s", ErrArgument, algorithm, spec)
	}
	if a.hash != 0 && len(digest) != a.hash.Size() {
		return fmt.Errorf("%w: a digest for %s has %d bytes, not %d", ErrArgument, algorithm, a.hash.Size(), len(digest))
	}
	values, err := sp.decodePublic(publicKey)
	if err != nil {
		return err
	}
	if a.mechanism == pkcs11.CKM_ECDSA {
		if signature, err = sp.curve.rawSignature(signature); err != nil {
			return err
		}
	}
	message := append(append([]byte(nil), a.prefix...), digest...)
	signature = append([]byte(nil), signature...) // the caller may have gone
	return d.run(ctx, d.t.asymmetric, nil, func(s *session, _ *domainKeys, _ []byte) error {
		public, err := s.publicObject(sp, values)
		if err != nil {
			return refused(spec, a.mechanism, err)
		}
		defer s.destroy(public)
		err = s.verify(a, public, message, signature)
		if errors.Is(err, ErrSignature) { // a device that errs once must not condemn
			err = s.verify(a, public, message, signature)
		}
		return refused(spec, a.mechanism, err)
	})
}

func (s *session) verify(a algorithm, public pkcs11.ObjectHandle, message, signature []byte) error {
	p11 := s.t.module.p11
	with := []*pkcs11.Mechanism{pkcs11.NewMechanism(a.mechanism, a.parameters)}
	if err := p11.VerifyInit(s.handle, with, public); err != nil {
		return deviceError("verifying", err)
	}
	err := deviceError("verifying", p11.Verify(s.handle, message, signature))
	if isClass(err, classForged) {
		return ErrSignature
	}
	return err
}

// decodePublic is encodePublic's inverse.
func (s spec) decodePublic(spki []byte) ([][]byte, error) {
	var key subjectPublicKey
	rest, err := asn1.Unmarshal(spki, &key)
	if err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("%w: it is no SubjectPublicKeyInfo", ErrArgument)
	}
	values := [][]byte{key.Key.Bytes}
	if s.keyType == pkcs11.CKK_RSA {
		var pair struct{ N, E *big.Int }
		if rest, err := asn1.Unmarshal(key.Key.Bytes, &pair); err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("%w: it is no RSA public key", ErrArgument)
		}
		values = [][]byte{pair.N.Bytes(), pair.E.Bytes()}
	}
	again, err := s.encodePublic(values)
	if err != nil || string(again) != string(spki) {
		return nil, fmt.Errorf("%w: the public key is not of the spec", ErrArgument)
	}
	return values, nil
}

// rawSignature is ecdsaSignature's inverse.
func (c *curve) rawSignature(der []byte) ([]byte, error) {
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &pair); err != nil {
		return nil, fmt.Errorf("%w: it is not ASN.1", ErrSignature)
	}
	// The package passes over what follows the numbers.
	if again, err := asn1.Marshal(pair); err != nil || !bytes.Equal(again, der) {
		return nil, fmt.Errorf("%w: it is not the DER of two numbers", ErrSignature)
	}
	for _, n := range []*big.Int{pair.R, pair.S} {
		if n.Sign() <= 0 || n.BitLen() > 8*c.size {
			return nil, fmt.Errorf("%w: its numbers are out of range", ErrSignature)
		}
	}
	raw := make([]byte, 2*c.size)
	pair.R.FillBytes(raw[:c.size])
	pair.S.FillBytes(raw[c.size:])
	return raw, nil
}
