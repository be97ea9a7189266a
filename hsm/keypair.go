package hsm

import "context"

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

// Generate makes a backing key of an AWS key spec in the HSM.
func (d *Domain) Generate(ctx context.Context, spec string, use Use) (Material, error) {
	return Material{}, d.Supports(spec, use)
}

// GenerateDataKeyPair makes a key pair for the caller of AWS's
// GenerateDataKeyPair: PKCS #8 and SubjectPublicKeyInfo in DER. The private
// half is the caller's to wipe.
func (d *Domain) GenerateDataKeyPair(ctx context.Context, spec string) (privatePKCS8, publicSPKI []byte, err error) {
	return nil, nil, d.Supports(spec, UseSign)
}
