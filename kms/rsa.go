package kms

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// oaepHashes are the hashes of RSA-OAEP, which are its mask generation
// functions' too. The label is empty.
var oaepHashes = map[types.EncryptionAlgorithmSpec]crypto.Hash{
	types.EncryptionAlgorithmSpecRsaesOaepSha1:   crypto.SHA1,
	types.EncryptionAlgorithmSpecRsaesOaepSha256: crypto.SHA256,
}

// publicKey is the public half of a key pair.
func (k *key) publicKey() (any, error) {
	public, err := x509.ParsePKIXPublicKey(k.backing.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("reading the public key of %s: %w", k.arn, err)
	}
	return public, nil
}

func (k *key) rsaPublicKey() (*rsa.PublicKey, error) {
	public, err := k.publicKey()
	if err != nil {
		return nil, err
	}
	pair, ok := public.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the public key of %s is a %T", k.arn, public)
	}
	return pair, nil
}

// checkSize refuses what an RSA modulus cannot hold (RFC 8017 §7.1.1).
func checkSize(k *key, algorithm types.EncryptionAlgorithmSpec, plaintext []byte) error {
	if k.symmetric() {
		return nil // the service model has the limit
	}
	public, err := k.rsaPublicKey()
	if err != nil {
		return err
	}
	if most := public.Size() - 2*oaepHashes[algorithm].Size() - 2; len(plaintext) > most {
		return validation("Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", algorithm, k.Spec, most)
	}
	return nil
}

// encryptRSA needs the public half only, so it is done here.
func encryptRSA(k *key, algorithm types.EncryptionAlgorithmSpec, plaintext []byte) ([]byte, error) {
	public, err := k.rsaPublicKey()
	if err != nil {
		return nil, err
	}
	ciphertext, err := rsa.EncryptOAEP(oaepHashes[algorithm].New(), rand.Reader, public, plaintext, nil)
	if err != nil {
		return nil, fmt.Errorf("encrypting under %s: %w", k.arn, err)
	}
	return ciphertext, nil
}
