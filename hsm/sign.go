package hsm

import "context"

// Sign signs with the private key in ekt. algorithm is AWS's name; digest has
// the length of its hash. RSA signatures have the modulus's length, ECDSA ones
// are ASN.1 DER.
func (d *Domain) Sign(ctx context.Context, ekt EKT, algorithm string, digest []byte) ([]byte, error) {
	return nil, &UnsupportedError{algorithm, "", "not built yet"}
}

// MAC returns the HMAC of message under the generic secret in ekt. algorithm
// is AWS's name, HMAC_SHA_224, _256, _384 or _512.
func (d *Domain) MAC(ctx context.Context, ekt EKT, algorithm string, message []byte) ([]byte, error) {
	return nil, &UnsupportedError{algorithm, "", "not built yet"}
}

// DecryptRSA opens an RSA-OAEP ciphertext. algorithm is RSAES_OAEP_SHA_1 or
// RSAES_OAEP_SHA_256. It returns ErrInvalidCiphertext for whatever does not
// open. The plaintext is the caller's to wipe.
func (d *Domain) DecryptRSA(ctx context.Context, ekt EKT, algorithm string, ciphertext []byte) ([]byte, error) {
	return nil, &UnsupportedError{algorithm, "", "not built yet"}
}

// Agree returns the x coordinate of ECDH with peer, a SubjectPublicKeyInfo in
// DER on the key's own curve, else ErrArgument. It is the caller's to wipe.
func (d *Domain) Agree(ctx context.Context, ekt EKT, peer []byte) ([]byte, error) {
	return nil, &UnsupportedError{"ECDH", "", "not built yet"}
}
