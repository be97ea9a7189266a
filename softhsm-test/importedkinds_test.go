package softhsmtest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// imported makes a key of known material.
func imported(t *testing.T, c *kms.Client, spec types.KeySpec, usage types.KeyUsageType, material []byte) *types.KeyMetadata {
	t.Helper()
	ctx := context.Background()
	algorithm := types.AlgorithmSpecRsaAesKeyWrapSha1
	if usage == macs {
		algorithm = types.AlgorithmSpecRsaesOaepSha1
	}
	key := must(c.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage, Origin: types.OriginTypeExternal}))(t).KeyMetadata
	p := must(c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{
		KeyId: key.KeyId, WrappingAlgorithm: algorithm, WrappingKeySpec: types.WrappingKeySpecRsa2048}))(t)
	must(c.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{
		KeyId: key.KeyId, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrapped(t, algorithm, p.PublicKey, material),
		ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}))(t)
	return key
}

// A key that the owner knows does in the HSM what it does outside.
func TestImportedHMAC(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	key := imported(t, c, types.KeySpecHmac256, macs, secret)
	for _, n := range []int{1, 64, 65, 4096} {
		message := bytes.Repeat([]byte("m"), n)
		h := hmac.New(sha256.New, secret)
		h.Write(message)
		out := must(c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: key.KeyId, MacAlgorithm: "HMAC_SHA_256", Message: message}))(t)
		if !bytes.Equal(out.Mac, h.Sum(nil)) {
			t.Errorf("the MAC of %d bytes is not Go's", n)
		}
		must(c.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: key.KeyId, MacAlgorithm: "HMAC_SHA_256", Message: message, Mac: h.Sum(nil)}))(t)
	}
}

func TestImportedRSA(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	private := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(private))(t)
	spki := must(x509.MarshalPKIXPublicKey(private.Public()))(t)
	key := imported(t, c, types.KeySpecRsa2048, encrypts, pkcs8)
	if !bytes.Equal(publicKeyOf(t, c, key), spki) {
		t.Error("GetPublicKey shows another key")
	}
	out := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte(marker), EncryptionAlgorithm: "RSAES_OAEP_SHA_256"}))(t)
	opened := must(rsa.DecryptOAEP(sha256.New(), nil, private, out.CiphertextBlob, nil))(t)
	if string(opened) != marker {
		t.Error("Go opens something else")
	}
	signing := imported(t, c, types.KeySpecRsa2048, signs, pkcs8)
	signature := must(rsa.SignPSS(rand.Reader, private, hashOf("SHA_384"), digestOf(hashOf("SHA_384"), []byte("m")), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))(t)
	must(c.Verify(ctx, &kms.VerifyInput{KeyId: signing.KeyId, Message: []byte("m"), Signature: signature, SigningAlgorithm: "RSASSA_PSS_SHA_384"}))(t)
	// A salt of another length is not AWS's algorithm.
	signature = must(rsa.SignPSS(rand.Reader, private, hashOf("SHA_384"), digestOf(hashOf("SHA_384"), []byte("m")), &rsa.PSSOptions{SaltLength: 20}))(t)
	_, err := c.Verify(ctx, &kms.VerifyInput{KeyId: signing.KeyId, Message: []byte("m"), Signature: signature, SigningAlgorithm: "RSASSA_PSS_SHA_384"})
	wantError[*types.KMSInvalidSignatureException](t, err, "")
}

func TestImportedECC(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	private := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(private))(t)
	key := imported(t, c, types.KeySpecEccNistP384, signs, pkcs8)
	if !bytes.Equal(publicKeyOf(t, c, key), must(x509.MarshalPKIXPublicKey(private.Public()))(t)) {
		t.Error("GetPublicKey shows another key")
	}
	digest := digestOf(hashOf("SHA_384"), []byte("m"))
	signature := must(ecdsa.SignASN1(rand.Reader, private, digest))(t)
	must(c.Verify(ctx, &kms.VerifyInput{KeyId: key.KeyId, Message: []byte("m"), Signature: signature, SigningAlgorithm: "ECDSA_SHA_384"}))(t)
	if !ecdsa.VerifyASN1(&private.PublicKey, digest, signed(t, c, key, "ECDSA_SHA_384", "", []byte("m"))) {
		t.Error("the signature does not verify")
	}
	agreeing := imported(t, c, types.KeySpecEccNistP384, agrees, pkcs8)
	peer := must(ecdh.P384().GenerateKey(rand.Reader))(t)
	out := must(c.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{KeyId: agreeing.KeyId, KeyAgreementAlgorithm: "ECDH",
		PublicKey: must(x509.MarshalPKIXPublicKey(peer.PublicKey()))(t)}))(t)
	own := must(private.ECDH())(t)
	if out.KeyOrigin != types.OriginTypeExternal || !bytes.Equal(out.SharedSecret, must(own.ECDH(peer.PublicKey()))(t)) {
		t.Errorf("another secret than Go's, or origin %s", out.KeyOrigin)
	}
}

// What needs material waits for it, and says so.
func TestKindsPendingImport(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := must(c.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: types.KeySpecEccNistP256, KeyUsage: signs, Origin: types.OriginTypeExternal}))(t).KeyMetadata
	if key.KeyState != types.KeyStatePendingImport {
		t.Errorf("state %s", key.KeyState)
	}
	_, err := c.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: key.KeyId})
	wantError[*types.KMSInvalidStateException](t, err, *key.Arn+" is pending import.")
	_, err = c.Sign(ctx, &kms.SignInput{KeyId: key.KeyId, Message: []byte("m"), SigningAlgorithm: "ECDSA_SHA_256"})
	wantError[*types.KMSInvalidStateException](t, err, *key.Arn+" is pending import.")
	_, err = c.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: types.KeySpecMlDsa44, KeyUsage: signs, Origin: types.OriginTypeExternal})
	wantError[*types.UnsupportedOperationException](t, err, "CKM_ML_DSA")
	status := must(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: kindOf(t, c, types.KeySpecHmac256, macs).KeyId}))(t)
	if status.KeyRotationEnabled {
		t.Error("an HMAC key rotates")
	}
}
