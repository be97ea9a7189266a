package softhsmtest

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A rehearsal is a call with DryRun.
type rehearsal struct {
	operation string
	// good would succeed; bad would be refused with code.
	good, bad func(*kms.Client) error
	code      string
}

func rehearsals(t *testing.T, c *kms.Client) []rehearsal {
	ctx, yes := context.Background(), aws.Bool(true)
	symmetric, off := createKey(t, c).KeyId, createKey(t, c).KeyId
	rsa, signing := kindOf(t, c, types.KeySpecRsa2048, encrypts).KeyId, kindOf(t, c, types.KeySpecEccNistP256, signs)
	mac, agree := kindOf(t, c, types.KeySpecHmac256, macs).KeyId, kindOf(t, c, types.KeySpecEccNistP256, agrees).KeyId
	blob, gone := encrypt(t, c, *symmetric, marker, nil), encrypt(t, c, *off, marker, nil)
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: off}))(t)
	signature := signed(t, c, signing, "ECDSA_SHA_256", "", []byte("m"))
	tag := must(c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: mac, MacAlgorithm: "HMAC_SHA_256", Message: []byte("m")}))(t).Mac
	peer := must(x509.MarshalPKIXPublicKey(must(ecdh.P256().GenerateKey(rand.Reader))(t).PublicKey()))(t)
	ignoring := []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext}

	encrypting := func(in kms.EncryptInput) func(*kms.Client) error {
		in.DryRun = yes
		return func(c *kms.Client) error { _, err := c.Encrypt(ctx, &in); return err }
	}
	decrypting := func(in kms.DecryptInput) func(*kms.Client) error {
		in.DryRun = yes
		return func(c *kms.Client) error { _, err := c.Decrypt(ctx, &in); return err }
	}
	again := func(in kms.ReEncryptInput) func(*kms.Client) error {
		in.DryRun = yes
		return func(c *kms.Client) error { _, err := c.ReEncrypt(ctx, &in); return err }
	}
	dataKey := func(id *string) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: id, KeySpec: "AES_256", DryRun: yes})
			return err
		}
	}
	bareDataKey := func(spec types.DataKeySpec) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: symmetric, KeySpec: spec, DryRun: yes})
			return err
		}
	}
	pair := func(id *string) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: id, KeyPairSpec: "ECC_NIST_P256", DryRun: yes})
			return err
		}
	}
	barePair := func(id *string) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: id, KeyPairSpec: "ECC_NIST_P256", DryRun: yes})
			return err
		}
	}
	signHash := func(algorithm types.SigningAlgorithmSpec) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.Sign(ctx, &kms.SignInput{KeyId: signing.KeyId, Message: []byte("m"), SigningAlgorithm: algorithm, DryRun: yes})
			return err
		}
	}
	verify := func(message string) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.Verify(ctx, &kms.VerifyInput{KeyId: signing.KeyId, Message: []byte(message), Signature: signature, SigningAlgorithm: "ECDSA_SHA_256", DryRun: yes})
			return err
		}
	}
	tagging := func(algorithm types.MacAlgorithmSpec) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.GenerateMac(ctx, &kms.GenerateMacInput{KeyId: mac, Message: []byte("m"), MacAlgorithm: algorithm, DryRun: yes})
			return err
		}
	}
	verifyMAC := func(message string) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.VerifyMac(ctx, &kms.VerifyMacInput{KeyId: mac, Message: []byte(message), Mac: tag, MacAlgorithm: "HMAC_SHA_256", DryRun: yes})
			return err
		}
	}
	derive := func(peer []byte) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.DeriveSharedSecret(ctx, &kms.DeriveSharedSecretInput{KeyId: agree, PublicKey: peer, KeyAgreementAlgorithm: "ECDH", DryRun: yes})
			return err
		}
	}
	granted := *createGrant(t, c, symmetric, userARN("rehearsal"), nil).GrantId
	granting := func(o types.GrantOperation) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: symmetric, GranteePrincipal: userARN("app"), Operations: []types.GrantOperation{o}, DryRun: yes})
			return err
		}
	}
	retiring := func(id string) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: symmetric, GrantId: &id, DryRun: yes})
			return err
		}
	}
	revoking := func(id string) func(*kms.Client) error {
		return func(c *kms.Client) error {
			_, err := c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: symmetric, GrantId: &id, DryRun: yes})
			return err
		}
	}
	return []rehearsal{
		{"CreateGrant", granting("Encrypt"), granting("Sign"), "ValidationException"},
		{"RetireGrant", retiring(granted), retiring(strings.Repeat("0", 64)), "NotFoundException"},
		{"RevokeGrant", revoking(granted), revoking("0"), "InvalidGrantIdException"},
		{"Encrypt", encrypting(kms.EncryptInput{KeyId: symmetric, Plaintext: []byte("m")}),
			encrypting(kms.EncryptInput{KeyId: off, Plaintext: []byte("m")}), "DisabledException"},
		{"Encrypt", encrypting(kms.EncryptInput{KeyId: rsa, Plaintext: make([]byte, 190), EncryptionAlgorithm: "RSAES_OAEP_SHA_256"}),
			encrypting(kms.EncryptInput{KeyId: rsa, Plaintext: make([]byte, 191), EncryptionAlgorithm: "RSAES_OAEP_SHA_256"}), "ValidationException"},
		{"Decrypt", decrypting(kms.DecryptInput{CiphertextBlob: blob}), decrypting(kms.DecryptInput{CiphertextBlob: gone}), "DisabledException"},
		{"Decrypt", decrypting(kms.DecryptInput{CiphertextBlob: blob, KeyId: symmetric}),
			decrypting(kms.DecryptInput{CiphertextBlob: blob[:len(blob)-1]}), "InvalidCiphertextException"},
		{"Decrypt", decrypting(kms.DecryptInput{KeyId: symmetric, DryRunModifiers: ignoring}),
			decrypting(kms.DecryptInput{DryRunModifiers: ignoring}), "ValidationException"},
		{"Decrypt", decrypting(kms.DecryptInput{KeyId: rsa, EncryptionAlgorithm: "RSAES_OAEP_SHA_1", DryRunModifiers: ignoring}),
			decrypting(kms.DecryptInput{KeyId: rsa, DryRunModifiers: ignoring}), "InvalidKeyUsageException"},
		{"ReEncrypt", again(kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: rsa, DestinationEncryptionAlgorithm: "RSAES_OAEP_SHA_1"}),
			again(kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: off}), "DisabledException"},
		{"ReEncrypt", again(kms.ReEncryptInput{SourceKeyId: symmetric, DestinationKeyId: symmetric, DryRunModifiers: ignoring}),
			again(kms.ReEncryptInput{DestinationKeyId: symmetric, DryRunModifiers: ignoring}), "ValidationException"},
		{"GenerateDataKey", dataKey(symmetric), dataKey(rsa), "InvalidKeyUsageException"},
		{"GenerateDataKeyWithoutPlaintext", bareDataKey("AES_128"), bareDataKey(""), "ValidationException"},
		{"GenerateDataKeyPair", pair(symmetric), pair(signing.KeyId), "InvalidKeyUsageException"},
		{"GenerateDataKeyPairWithoutPlaintext", barePair(symmetric), barePair(off), "DisabledException"},
		{"Sign", signHash("ECDSA_SHA_256"), signHash("ECDSA_SHA_512"), "InvalidKeyUsageException"},
		{"Verify", verify("m"), verify("n"), "KMSInvalidSignatureException"},
		{"GenerateMac", tagging("HMAC_SHA_256"), tagging("HMAC_SHA_512"), "InvalidKeyUsageException"},
		{"VerifyMac", verifyMAC("m"), verifyMAC("n"), "KMSInvalidMacException"},
		{"DeriveSharedSecret", derive(peer), derive(peer[1:]), "ValidationException"},
	}
}

// A rehearsal says that it would have succeeded, or why not, has no effect,
// and is recorded; who may not call is told so.
func TestDryRun(t *testing.T) {
	d := shared(t)
	through := &recorder{}
	c := newClient(d.url, d.admin, through)
	nobody := newClient(d.url, d.principal(t, "nobody-rehearsing", "Active"), http.DefaultTransport)
	for _, r := range rehearsals(t, d.client(t)) {
		t.Run(r.operation, func(t *testing.T) {
			err := r.good(c)
			wantError[*types.DryRunOperationException](t, err, "The request would have succeeded, but the DryRun option is set.")
			wantCode(t, r.bad(c), r.code, "")
			wantCode(t, r.good(nobody), "AccessDeniedException", "")
		})
	}
	d.wantRecords(t, through.all())
	if len(through.all()) == 0 {
		t.Error("nothing was rehearsed")
	}
}

func TestDryRunModifiers(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	ignoring := []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext}
	_, err := c.Decrypt(ctx, &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: blob, DryRunModifiers: ignoring})
	wantCode(t, err, "ValidationException", "DryRun")
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{SourceKeyId: key.KeyId, CiphertextBlob: blob, DestinationKeyId: key.KeyId, DryRunModifiers: ignoring})
	wantCode(t, err, "ValidationException", "DryRun")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{KeyId: key.KeyId, DryRun: aws.Bool(true)})
	wantCode(t, err, "ValidationException", "Value null at 'ciphertextBlob'")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{KeyId: key.KeyId, CiphertextBlob: []byte("x"), DryRun: aws.Bool(true), DryRunModifiers: ignoring})
	var would *types.DryRunOperationException
	if !errors.As(err, &would) {
		t.Errorf("an ignored ciphertext was not ignored: %v", err)
	}
}
