package softhsmtest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

var agreeing = map[types.KeySpec]ecdh.Curve{
	types.KeySpecEccNistP256: ecdh.P256(), types.KeySpecEccNistP384: ecdh.P384(), types.KeySpecEccNistP521: ecdh.P521(),
}

// The secret is the one that Go and OpenSSL come to from the other side.
func TestDeriveSharedSecret(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	for spec, curve := range agreeing {
		t.Run(string(spec), func(t *testing.T) {
			key := kindOf(t, c, spec, agrees)
			public := publicKeyOf(t, c, key)
			ours := must(must(x509.ParsePKIXPublicKey(public))(t).(*ecdsa.PublicKey).ECDH())(t)
			for range 3 {
				private := must(curve.GenerateKey(rand.Reader))(t)
				peer := must(x509.MarshalPKIXPublicKey(private.PublicKey()))(t)
				out := must(c.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{
					KeyId: key.KeyId, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh, PublicKey: peer,
				}))(t)
				if !bytes.Equal(out.SharedSecret, must(private.ECDH(ours))(t)) {
					t.Error("the secret is not Go's")
				}
				pkcs8 := file(t, must(x509.MarshalPKCS8PrivateKey(private))(t))
				theirs := openssl(t, nil, "pkeyutl", "-derive", "-keyform", "DER", "-inkey", pkcs8, "-peerform", "DER", "-peerkey", file(t, public))
				if !bytes.Equal(out.SharedSecret, theirs) {
					t.Error("the secret is not OpenSSL's")
				}
				if aws.ToString(out.KeyId) != *key.Arn || out.KeyOrigin != types.OriginTypeAwsKms || out.KeyAgreementAlgorithm != "ECDH" {
					t.Errorf("DeriveSharedSecret answered %s, %s, %s", aws.ToString(out.KeyId), out.KeyOrigin, out.KeyAgreementAlgorithm)
				}
			}
		})
	}
}

// A peer that is no point on the key's curve could betray the key.
func TestPeersRefused(t *testing.T) {
	c := shared(t).client(t)
	key := kindOf(t, c, types.KeySpecEccNistP256, agrees)
	good := must(x509.MarshalPKIXPublicKey(must(ecdh.P256().GenerateKey(rand.Reader))(t).PublicKey()))(t)
	offCurve := bytes.Clone(good)
	offCurve[len(offCurve)-1] ^= 1
	infinity := bytes.Clone(good)
	clear(infinity[len(infinity)-65:])
	compressed := append(bytes.Clone(good[:len(good)-65]), 2)
	compressed = append(compressed, good[len(good)-64:len(good)-32]...)
	for name, peer := range map[string][]byte{
		"off the curve": offCurve,
		"infinity":      infinity,
		"compressed":    compressed,
		"another curve": must(x509.MarshalPKIXPublicKey(must(ecdh.P384().GenerateKey(rand.Reader))(t).PublicKey()))(t),
		"X25519":        must(x509.MarshalPKIXPublicKey(must(ecdh.X25519().GenerateKey(rand.Reader))(t).PublicKey()))(t),
		"RSA":           publicKeyOf(t, c, kindOf(t, c, types.KeySpecRsa2048, signs)),
		"secp256k1":     publicKeyOf(t, c, kindOf(t, c, types.KeySpecEccSecgP256k1, signs)),
		"bare point":    good[len(good)-65:],
		"trailing byte": append(bytes.Clone(good), 0),
		"cut":           good[:len(good)-1],
		"no DER":        []byte("x"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.DeriveSharedSecret(context.Background(), &kms.DeriveSharedSecretInput{
				KeyId: key.KeyId, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh, PublicKey: peer})
			wantCode(t, err, "ValidationException", "")
		})
	}
	for text, key := range map[string]*types.KeyMetadata{
		"key usage is SIGN_VERIFY which is not valid for DeriveSharedSecret.":     kindOf(t, c, types.KeySpecEccNistP256, signs),
		"key usage is ENCRYPT_DECRYPT which is not valid for DeriveSharedSecret.": createKey(t, c),
	} {
		_, err := c.DeriveSharedSecret(context.Background(), &kms.DeriveSharedSecretInput{
			KeyId: key.KeyId, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh, PublicKey: good})
		wantError[*types.InvalidKeyUsageException](t, err, *key.Arn+" "+text)
	}
}

// There are no keys for key encapsulation on a device without the mechanism.
func TestEncapsulation(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	for _, key := range []*types.KeyMetadata{createKey(t, c), kindOf(t, c, types.KeySpecEccNistP256, agrees)} {
		_, err := c.Encapsulate(ctx, &kms.EncapsulateInput{KeyId: key.KeyId, EncapsulationAlgorithm: "ML_KEM"})
		wantError[*types.InvalidKeyUsageException](t, err, *key.Arn+" key usage is "+string(key.KeyUsage)+" which is not valid for Encapsulate.")
		_, err = c.Decapsulate(ctx, &kms.DecapsulateInput{KeyId: key.KeyId, EncapsulationAlgorithm: "ML_KEM", SharedSecretCiphertextBlob: make([]byte, 768)})
		wantError[*types.InvalidKeyUsageException](t, err, *key.Arn+" key usage is "+string(key.KeyUsage)+" which is not valid for Decapsulate.")
	}
}
