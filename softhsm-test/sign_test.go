package softhsmtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func hashOf(algorithm string) crypto.Hash {
	switch {
	case strings.HasSuffix(algorithm, "SHA_256"):
		return crypto.SHA256
	case strings.HasSuffix(algorithm, "SHA_384"):
		return crypto.SHA384
	}
	return crypto.SHA512
}

func digestOf(h crypto.Hash, message []byte) []byte {
	sum := h.New()
	sum.Write(message)
	return sum.Sum(nil)
}

// signed signs message and demands that the answer is whole.
func signed(t testing.TB, c *kms.Client, key *types.KeyMetadata, algorithm types.SigningAlgorithmSpec, kind types.MessageType, message []byte) []byte {
	t.Helper()
	out := must(c.Sign(context.Background(), &kms.SignInput{
		KeyId: key.KeyId, Message: message, MessageType: kind, SigningAlgorithm: algorithm}))(t)
	if aws.ToString(out.KeyId) != *key.Arn || out.SigningAlgorithm != algorithm {
		t.Fatalf("Sign answered %q, %s", aws.ToString(out.KeyId), out.SigningAlgorithm)
	}
	return out.Signature
}

func publicKeyOf(t testing.TB, c *kms.Client, key *types.KeyMetadata) []byte {
	t.Helper()
	return must(c.GetPublicKey(context.Background(), &kms.GetPublicKeyInput{KeyId: key.KeyId}))(t).PublicKey
}

// Every signing algorithm, of a message and of its digest, verifies in Go, in
// OpenSSL, and in Trent; and no altered one does.
func TestSignAndVerify(t *testing.T) {
	c := shared(t).client(t)
	message := []byte(strings.Repeat(marker, 300))
	for _, kind := range keyKinds {
		if kind.usage != signs {
			continue
		}
		key := kindOf(t, c, kind.spec, kind.usage)
		public := publicKeyOf(t, c, key)
		for _, name := range strings.Fields(kind.algorithms) {
			t.Run(string(kind.spec)+"/"+name, func(t *testing.T) {
				algorithm := types.SigningAlgorithmSpec(name)
				digest := digestOf(hashOf(name), message)
				for _, signature := range [][]byte{
					signed(t, c, key, algorithm, "", message),
					signed(t, c, key, algorithm, types.MessageTypeRaw, message),
					signed(t, c, key, algorithm, types.MessageTypeDigest, digest),
				} {
					verifyByOpenSSL(t, public, name, message, signature)
					if kind.spec != types.KeySpecEccSecgP256k1 {
						verifyByGo(t, public, name, digest, signature)
					}
					verifyByTrent(t, c, key, algorithm, message, digest, signature)
				}
			})
		}
	}
}

func verifyByGo(t *testing.T, public []byte, algorithm string, digest, signature []byte) {
	t.Helper()
	good := false
	switch public := must(x509.ParsePKIXPublicKey(public))(t).(type) {
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(public, digest, signature)
	case *rsa.PublicKey:
		if strings.Contains(algorithm, "PSS") {
			options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
			good = rsa.VerifyPSS(public, hashOf(algorithm), digest, signature, options) == nil
		} else {
			good = rsa.VerifyPKCS1v15(public, hashOf(algorithm), digest, signature) == nil
		}
	}
	if !good {
		t.Error("the signature does not verify in Go")
	}
}

func verifyByOpenSSL(t *testing.T, public []byte, algorithm string, message, signature []byte) {
	t.Helper()
	hash := strings.ToLower(strings.ReplaceAll(hashOf(algorithm).String(), "-", ""))
	args := []string{"dgst", "-" + hash, "-keyform", "DER", "-verify", file(t, public), "-signature", file(t, signature)}
	if strings.Contains(algorithm, "PSS") {
		args = append(args, "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest")
	}
	openssl(t, message, args...)
}

func verifyByTrent(t *testing.T, c *kms.Client, key *types.KeyMetadata, algorithm types.SigningAlgorithmSpec, message, digest, signature []byte) {
	t.Helper()
	verify := func(kind types.MessageType, message, signature []byte) (*kms.VerifyOutput, error) {
		return c.Verify(context.Background(), &kms.VerifyInput{
			KeyId: key.KeyId, Message: message, MessageType: kind, Signature: signature, SigningAlgorithm: algorithm})
	}
	for kind, message := range map[types.MessageType][]byte{"": message, types.MessageTypeRaw: message, types.MessageTypeDigest: digest} {
		out := must(verify(kind, message, signature))(t)
		if !out.SignatureValid || aws.ToString(out.KeyId) != *key.Arn || out.SigningAlgorithm != algorithm {
			t.Errorf("Verify answered %+v", out)
		}
	}
	flipped := append([]byte{}, signature...)
	flipped[len(flipped)-1] ^= 1
	for _, bad := range [][]byte{flipped, signature[:len(signature)-1], append(flipped, 0), {0}} {
		_, err := verify("", message, bad)
		wantError[*types.KMSInvalidSignatureException](t, err, "")
	}
	_, err := verify("", message[1:], signature)
	wantError[*types.KMSInvalidSignatureException](t, err, "")
}

// What one algorithm has made may not pass for another's.
func TestAlgorithmsDoNotMix(t *testing.T) {
	c := shared(t).client(t)
	key := kindOf(t, c, types.KeySpecRsa2048, signs)
	message := []byte("m")
	signature := signed(t, c, key, types.SigningAlgorithmSpecRsassaPssSha256, "", message)
	for _, name := range strings.Fields(rsaSigning) {
		if name == "RSASSA_PSS_SHA_256" {
			continue
		}
		_, err := c.Verify(context.Background(), &kms.VerifyInput{
			KeyId: key.KeyId, Message: message, Signature: signature, SigningAlgorithm: types.SigningAlgorithmSpec(name)})
		wantError[*types.KMSInvalidSignatureException](t, err, "")
	}
}

func TestSigningRefusals(t *testing.T) {
	c := shared(t).client(t)
	p256, hmac := kindOf(t, c, types.KeySpecEccNistP256, signs), kindOf(t, c, types.KeySpecHmac256, macs)
	agreeing, symmetric := kindOf(t, c, types.KeySpecEccNistP256, agrees), createKey(t, c)
	digest := make([]byte, sha256.Size)
	for name, bad := range map[string]struct {
		key        *types.KeyMetadata
		algorithm  types.SigningAlgorithmSpec
		kind       types.MessageType
		message    []byte
		code, text string
	}{
		"another curve's algorithm": {p256, "ECDSA_SHA_384", "", digest, "InvalidKeyUsageException", "Algorithm ECDSA_SHA_384 is incompatible with key spec ECC_NIST_P256."},
		"another type's algorithm":  {p256, "RSASSA_PSS_SHA_256", "", digest, "InvalidKeyUsageException", "Algorithm RSASSA_PSS_SHA_256 is incompatible with key spec ECC_NIST_P256."},
		"HMAC key":                  {hmac, "ECDSA_SHA_256", "", digest, "InvalidKeyUsageException", *hmac.Arn + " key usage is GENERATE_VERIFY_MAC which is not valid for "},
		"agreement key":             {agreeing, "ECDSA_SHA_256", "", digest, "InvalidKeyUsageException", *agreeing.Arn + " key usage is KEY_AGREEMENT which is not valid for "},
		"symmetric key":             {symmetric, "ECDSA_SHA_256", "", digest, "InvalidKeyUsageException", *symmetric.Arn + " key usage is ENCRYPT_DECRYPT which is not valid for "},
		"short digest":              {p256, "ECDSA_SHA_256", types.MessageTypeDigest, digest[1:], "ValidationException", "Digest is invalid length for algorithm ECDSA_SHA_256."},
		"long digest":               {p256, "ECDSA_SHA_256", types.MessageTypeDigest, append(digest, 0), "ValidationException", "Digest is invalid length for algorithm ECDSA_SHA_256."},
		"mu":                        {p256, "ECDSA_SHA_256", types.MessageTypeExternalMu, make([]byte, 64), "ValidationException", "EXTERNAL_MU"},
		"empty":                     {p256, "ECDSA_SHA_256", "", []byte{}, "ValidationException", "'message' failed to satisfy constraint"},
		"too long":                  {p256, "ECDSA_SHA_256", "", make([]byte, 4097), "ValidationException", "'message' failed to satisfy constraint"},
		"no such algorithm":         {p256, "ECDSA_SHA_1", "", digest, "ValidationException", "'signingAlgorithm' failed to satisfy constraint"},
		"no such type":              {p256, "ECDSA_SHA_256", "HEX", digest, "ValidationException", "'messageType' failed to satisfy constraint"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Sign(context.Background(), &kms.SignInput{
				KeyId: bad.key.KeyId, Message: bad.message, MessageType: bad.kind, SigningAlgorithm: bad.algorithm})
			wantCode(t, err, bad.code, bad.text)
			_, err = c.Verify(context.Background(), &kms.VerifyInput{
				KeyId: bad.key.KeyId, Message: bad.message, MessageType: bad.kind, SigningAlgorithm: bad.algorithm, Signature: digest})
			wantCode(t, err, bad.code, bad.text)
		})
	}
}
