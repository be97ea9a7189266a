package softhsmtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

var pairSpecs = []types.DataKeyPairSpec{
	types.DataKeyPairSpecRsa2048, types.DataKeyPairSpecRsa3072, types.DataKeyPairSpecRsa4096,
	types.DataKeyPairSpecEccNistP256, types.DataKeyPairSpecEccNistP384, types.DataKeyPairSpecEccNistP521,
	types.DataKeyPairSpecEccSecgP256k1, types.DataKeyPairSpecEccNistEdwards25519,
}

// Both halves are what OpenSSL and Go read, and belong together; the sealed
// half opens to the plain one.
func TestDataKeyPairs(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	ctx := context.Background()
	key := createKey(t, c)
	with := map[string]string{"for": "pairs"}
	for _, spec := range pairSpecs {
		t.Run(string(spec), func(t *testing.T) {
			out := must(c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key.KeyId, KeyPairSpec: spec, EncryptionContext: with}))(t)
			if aws.ToString(out.KeyId) != *key.Arn || out.KeyPairSpec != spec || aws.ToString(out.KeyMaterialId) != *key.CurrentKeyMaterialId {
				t.Errorf("GenerateDataKeyPair answered %s, %s", aws.ToString(out.KeyId), out.KeyPairSpec)
			}
			wantPair(t, spec, out.PrivateKeyPlaintext, out.PublicKey)
			wantDecrypt(t, c, out.PrivateKeyCiphertextBlob, string(out.PrivateKeyPlaintext), with)
			d.wantNoPlaintext(t, string(out.PrivateKeyPlaintext[len(out.PrivateKeyPlaintext)-24:]))
		})
	}
	bare := must(c.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{
		KeyId: key.Arn, KeyPairSpec: types.DataKeyPairSpecEccNistP256, EncryptionContext: with}))(t)
	opened := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: bare.PrivateKeyCiphertextBlob, EncryptionContext: with}))(t)
	wantPair(t, bare.KeyPairSpec, opened.Plaintext, bare.PublicKey)
}

func wantPair(t *testing.T, spec types.DataKeyPairSpec, private, public []byte) {
	t.Helper()
	if theirs := openssl(t, private, "pkey", "-inform", "DER", "-pubout", "-outform", "DER"); !bytes.Equal(theirs, public) {
		t.Error("OpenSSL comes to another public key")
	}
	openssl(t, private, "pkey", "-inform", "DER", "-check", "-noout")
	if spec == types.DataKeyPairSpecEccSecgP256k1 { // not a curve of Go's
		return
	}
	signer := must(x509.ParsePKCS8PrivateKey(private))(t).(crypto.Signer)
	if ours := must(x509.MarshalPKIXPublicKey(signer.Public()))(t); !bytes.Equal(ours, public) {
		t.Error("Go comes to another public key")
	}
}

func TestDataKeyPairRefusals(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	for _, spec := range []types.DataKeyPairSpec{
		types.DataKeyPairSpecSm2, types.DataKeyPairSpecMlKem512, types.DataKeyPairSpecMlKem768, types.DataKeyPairSpecMlKem1024,
	} {
		_, err := c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key.KeyId, KeyPairSpec: spec})
		wantError[*types.UnsupportedOperationException](t, err, string(spec))
	}
	rsa, signing := kindOf(t, c, types.KeySpecRsa2048, encrypts), kindOf(t, c, types.KeySpecEccNistP256, signs)
	_, err := c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: rsa.KeyId, KeyPairSpec: "ECC_NIST_P256"})
	wantError[*types.InvalidKeyUsageException](t, err, "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.")
	_, err = c.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: signing.KeyId, KeyPairSpec: "ECC_NIST_P256"})
	wantError[*types.InvalidKeyUsageException](t, err, *signing.Arn+" key usage is SIGN_VERIFY which is not valid for GenerateDataKeyPairWithoutPlaintext.")
	_, err = c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key.KeyId, KeyPairSpec: "AES_256"})
	wantCode(t, err, "ValidationException", "'keyPairSpec' failed to satisfy constraint")
}
