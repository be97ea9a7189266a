package softhsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// oaepLimits are the longest plaintexts by modulus and hash.
var oaepLimits = []struct {
	spec         types.KeySpec
	sha1, sha256 int
}{
	{types.KeySpecRsa2048, 214, 190}, {types.KeySpecRsa3072, 342, 318}, {types.KeySpecRsa4096, 470, 446},
}

func TestRSAEncryption(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	for _, limit := range oaepLimits {
		key := kindOf(t, c, limit.spec, encrypts)
		public := publicKeyOf(t, c, key)
		for algorithm, most := range map[types.EncryptionAlgorithmSpec]int{
			types.EncryptionAlgorithmSpecRsaesOaepSha1: limit.sha1, types.EncryptionAlgorithmSpecRsaesOaepSha256: limit.sha256,
		} {
			t.Run(fmt.Sprint(limit.spec, "/", algorithm), func(t *testing.T) {
				for _, n := range []int{1, len(marker), most} {
					plaintext := bytes.Repeat([]byte(marker), 50)[:n]
					out := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: plaintext, EncryptionAlgorithm: algorithm}))(t)
					if aws.ToString(out.KeyId) != *key.Arn || out.EncryptionAlgorithm != algorithm {
						t.Errorf("Encrypt answered %s, %s", aws.ToString(out.KeyId), out.EncryptionAlgorithm)
					}
					wantRSADecrypt(t, c, key, algorithm, out.CiphertextBlob, plaintext)
					wantRSADecrypt(t, c, key, algorithm, byOpenSSL(t, public, algorithm, plaintext), plaintext)
				}
				_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: make([]byte, most+1), EncryptionAlgorithm: algorithm})
				wantCode(t, err, "ValidationException", fmt.Sprintf("Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", algorithm, limit.spec, most))
			})
		}
	}
}

// byOpenSSL encrypts with a public key as AWS's documentation has it done.
func byOpenSSL(t *testing.T, public []byte, algorithm types.EncryptionAlgorithmSpec, plaintext []byte) []byte {
	t.Helper()
	hash := "sha1"
	if algorithm == types.EncryptionAlgorithmSpecRsaesOaepSha256 {
		hash = "sha256"
	}
	return openssl(t, plaintext, "pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", file(t, public),
		"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:"+hash, "-pkeyopt", "rsa_mgf1_md:"+hash)
}

func wantRSADecrypt(t *testing.T, c *kms.Client, key *types.KeyMetadata, algorithm types.EncryptionAlgorithmSpec, ciphertext, plaintext []byte) {
	t.Helper()
	out := must(c.Decrypt(context.Background(), &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: ciphertext, EncryptionAlgorithm: algorithm}))(t)
	if !bytes.Equal(out.Plaintext, plaintext) || aws.ToString(out.KeyId) != *key.Arn || out.EncryptionAlgorithm != algorithm || out.KeyMaterialId != nil {
		t.Errorf("Decrypt answered %d bytes, %s, %s, material %s", len(out.Plaintext), aws.ToString(out.KeyId), out.EncryptionAlgorithm, aws.ToString(out.KeyMaterialId))
	}
}

// What does not open says nothing of why.
func TestRSACiphertextsRefused(t *testing.T) {
	c := shared(t).client(t)
	key := kindOf(t, c, types.KeySpecRsa2048, encrypts)
	other := kindOf(t, c, types.KeySpecRsa3072, encrypts)
	public := must(x509.ParsePKIXPublicKey(publicKeyOf(t, c, key)))(t).(*rsa.PublicKey)
	good := must(rsa.EncryptOAEP(sha256.New(), rand.Reader, public, []byte(marker), nil))(t)
	labelled := must(rsa.EncryptOAEP(sha256.New(), rand.Reader, public, []byte(marker), []byte("label")))(t)
	pkcs1 := openssl(t, []byte(marker), "pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", file(t, publicKeyOf(t, c, key)))
	flipped := bytes.Clone(good)
	flipped[100] ^= 1
	for name, bad := range map[string]struct {
		key        *types.KeyMetadata
		algorithm  types.EncryptionAlgorithmSpec
		ciphertext []byte
	}{
		"flipped":          {key, "RSAES_OAEP_SHA_256", flipped},
		"cut":              {key, "RSAES_OAEP_SHA_256", good[:255]},
		"long":             {key, "RSAES_OAEP_SHA_256", append(bytes.Clone(good), 0)},
		"one byte":         {key, "RSAES_OAEP_SHA_256", []byte{1}},
		"zeros":            {key, "RSAES_OAEP_SHA_256", make([]byte, 256)},
		"above modulus":    {key, "RSAES_OAEP_SHA_1", bytes.Repeat([]byte{0xff}, 256)},
		"another hash":     {key, "RSAES_OAEP_SHA_1", good},
		"with a label":     {key, "RSAES_OAEP_SHA_256", labelled},
		"PKCS #1 v1.5":     {key, "RSAES_OAEP_SHA_1", pkcs1},
		"another key":      {other, "RSAES_OAEP_SHA_256", good},
		"a symmetric blob": {key, "RSAES_OAEP_SHA_256", encrypt(t, c, *createKey(t, c).KeyId, marker, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Decrypt(context.Background(), &kms.DecryptInput{
				KeyId: bad.key.KeyId, CiphertextBlob: bad.ciphertext, EncryptionAlgorithm: bad.algorithm})
			wantError[*types.InvalidCiphertextException](t, err, "")
		})
	}
	wantRSADecrypt(t, c, key, "RSAES_OAEP_SHA_256", good, []byte(marker))
}

func TestRSARefusals(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key, signing := kindOf(t, c, types.KeySpecRsa2048, encrypts), kindOf(t, c, types.KeySpecRsa2048, signs)
	symmetric := createKey(t, c)
	with := map[string]string{"a": "b"}
	for name, bad := range map[string]struct {
		key        *types.KeyMetadata
		algorithm  types.EncryptionAlgorithmSpec
		with       map[string]string
		code, text string
	}{
		"no algorithm":            {key, "", nil, "InvalidKeyUsageException", "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048."},
		"symmetric key":           {symmetric, "RSAES_OAEP_SHA_1", nil, "InvalidKeyUsageException", "Algorithm RSAES_OAEP_SHA_1 is incompatible with key spec SYMMETRIC_DEFAULT."},
		"signing key":             {signing, "RSAES_OAEP_SHA_1", nil, "InvalidKeyUsageException", *signing.Arn + " key usage is SIGN_VERIFY which is not valid for Encrypt."},
		"signing key, by default": {signing, "", nil, "InvalidKeyUsageException", *signing.Arn + " key usage is SIGN_VERIFY which is not valid for Encrypt."},
		"context":                 {key, "RSAES_OAEP_SHA_1", with, "ValidationException", "EncryptionContext is not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: bad.key.KeyId, Plaintext: []byte("x"), EncryptionAlgorithm: bad.algorithm, EncryptionContext: bad.with})
			wantCode(t, err, bad.code, bad.text)
		})
	}
	blob := encrypt(t, c, *symmetric.KeyId, marker, nil)
	_, err := c.Decrypt(ctx, &kms.DecryptInput{KeyId: signing.KeyId, CiphertextBlob: blob})
	wantError[*types.IncorrectKeyException](t, err, "The key ID in the request does not identify a CMK that can perform this operation.")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: blob})
	wantError[*types.InvalidKeyUsageException](t, err, "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{KeyId: symmetric.KeyId, CiphertextBlob: blob, EncryptionAlgorithm: "RSAES_OAEP_SHA_1"})
	wantError[*types.InvalidKeyUsageException](t, err, "Algorithm RSAES_OAEP_SHA_1 is incompatible with key spec SYMMETRIC_DEFAULT.")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionAlgorithm: "RSAES_OAEP_SHA_1"})
	wantCode(t, err, "ValidationException", "KeyId")
	_, err = c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: "AES_256"})
	wantError[*types.InvalidKeyUsageException](t, err, "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.")
	_, err = c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: signing.KeyId, KeySpec: "AES_256"})
	wantError[*types.InvalidKeyUsageException](t, err, "key usage is SIGN_VERIFY which is not valid for GenerateDataKeyWithoutPlaintext.")
}

// ReEncrypt goes between all kinds of keys that encrypt.
func TestReEncryptRSA(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	small, large, symmetric := kindOf(t, c, types.KeySpecRsa2048, encrypts), kindOf(t, c, types.KeySpecRsa3072, encrypts), createKey(t, c)
	with := map[string]string{"of": "symmetric"}
	first := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: encrypt(t, c, *symmetric.KeyId, marker, with), SourceEncryptionContext: with,
		DestinationKeyId: small.Arn, DestinationEncryptionAlgorithm: "RSAES_OAEP_SHA_256",
	}))(t)
	if aws.ToString(first.SourceKeyMaterialId) != *symmetric.CurrentKeyMaterialId || first.DestinationKeyMaterialId != nil ||
		first.SourceEncryptionAlgorithm != "SYMMETRIC_DEFAULT" || first.DestinationEncryptionAlgorithm != "RSAES_OAEP_SHA_256" {
		t.Errorf("ReEncrypt answered %+v", first)
	}
	wantRSADecrypt(t, c, small, "RSAES_OAEP_SHA_256", first.CiphertextBlob, []byte(marker))
	second := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: first.CiphertextBlob, SourceKeyId: small.KeyId, SourceEncryptionAlgorithm: "RSAES_OAEP_SHA_256",
		DestinationKeyId: large.Arn, DestinationEncryptionAlgorithm: "RSAES_OAEP_SHA_1",
	}))(t)
	wantRSADecrypt(t, c, large, "RSAES_OAEP_SHA_1", second.CiphertextBlob, []byte(marker))
	third := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: second.CiphertextBlob, SourceKeyId: large.KeyId, SourceEncryptionAlgorithm: "RSAES_OAEP_SHA_1",
		DestinationKeyId: symmetric.KeyId, DestinationEncryptionContext: with,
	}))(t)
	if third.SourceKeyMaterialId != nil || aws.ToString(third.DestinationKeyMaterialId) != *symmetric.CurrentKeyMaterialId {
		t.Errorf("ReEncrypt answered %+v", third)
	}
	wantDecrypt(t, c, third.CiphertextBlob, marker, with)

	_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob:   encrypt(t, c, *symmetric.KeyId, string(make([]byte, 191)), nil),
		DestinationKeyId: small.KeyId, DestinationEncryptionAlgorithm: "RSAES_OAEP_SHA_256",
	})
	wantCode(t, err, "ValidationException", "Algorithm RSAES_OAEP_SHA_256 and key spec RSA_2048 cannot encrypt data larger than 190 bytes.")
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: first.CiphertextBlob, SourceKeyId: kindOf(t, c, types.KeySpecRsa2048, signs).KeyId,
		SourceEncryptionAlgorithm: "RSAES_OAEP_SHA_256", DestinationKeyId: symmetric.KeyId,
	})
	wantError[*types.IncorrectKeyException](t, err, "")
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: third.CiphertextBlob, SourceEncryptionContext: with, DestinationKeyId: small.KeyId})
	wantError[*types.InvalidKeyUsageException](t, err, "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.")
}
