package hsm

import "context"

// A sealer encrypts, a member or a domain.
type sealer interface {
	Encrypt(ctx context.Context, ekt EKT, aad, plaintext []byte) (iv, sealed []byte, err error)
	Decrypt(ctx context.Context, ekt EKT, iv, aad, ciphertext []byte) ([]byte, error)
}

// sealBlob encrypts under testAAD: what comes back is IV and ciphertext.
func sealBlob(ctx context.Context, d sealer, ekt EKT, plain []byte) ([]byte, error) {
	iv, sealed, err := d.Encrypt(ctx, ekt, testAAD, plain)
	return append(iv, sealed...), err
}

// openBlob opens what sealBlob made, on a device that leaves IVs to us.
func openBlob(ctx context.Context, d sealer, ekt EKT, blob []byte) ([]byte, error) {
	return d.Decrypt(ctx, ekt, blob[:ivSize], testAAD, blob[ivSize:])
}
