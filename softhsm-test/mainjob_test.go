package softhsmtest

import (
	"bytes"
	"context"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// namedKey makes a key with an alias and returns the four forms of its name.
func namedKey(t testing.TB, c *kms.Client) (*types.KeyMetadata, map[string]string) {
	t.Helper()
	key := createKey(t, c)
	alias := "alias/" + t.Name()[:min(len(t.Name()), 40)] + "-" + (*key.KeyId)[:8]
	must(c.CreateAlias(context.Background(), &kms.CreateAliasInput{
		AliasName: &alias, TargetKeyId: key.KeyId,
	}))(t)
	return key, map[string]string{
		"key id":     *key.KeyId,
		"key ARN":    *key.Arn,
		"alias name": alias,
		"alias ARN":  "arn:aws:kms:" + region + ":" + account + ":" + alias,
	}
}

func TestMainJob(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key, names := namedKey(t, c)
	for form, name := range names {
		t.Run(form, func(t *testing.T) {
			data := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
				KeyId: &name, KeySpec: types.DataKeySpecAes256,
			}))(t)
			if len(data.Plaintext) != 32 || aws.ToString(data.KeyId) != *key.Arn {
				t.Fatalf("data key of %d bytes under %s", len(data.Plaintext), aws.ToString(data.KeyId))
			}
			wantDecrypt(t, c, data.CiphertextBlob, string(data.Plaintext), nil)

			sealed := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &name, Plaintext: []byte(marker)}))(t)
			if aws.ToString(sealed.KeyId) != *key.Arn || sealed.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" {
				t.Fatalf("Encrypt answered %s, %s", aws.ToString(sealed.KeyId), sealed.EncryptionAlgorithm)
			}
			wantDecrypt(t, c, sealed.CiphertextBlob, marker, nil)

			opened := must(c.Decrypt(ctx, &kms.DecryptInput{KeyId: &name, CiphertextBlob: sealed.CiphertextBlob}))(t)
			if string(opened.Plaintext) != marker || aws.ToString(opened.KeyId) != *key.Arn ||
				aws.ToString(opened.KeyMaterialId) != aws.ToString(key.CurrentKeyMaterialId) {
				t.Fatalf("Decrypt answered %s, material %s", aws.ToString(opened.KeyId), aws.ToString(opened.KeyMaterialId))
			}
			seen := must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &name}))(t)
			if *seen.KeyMetadata.KeyId != *key.KeyId {
				t.Fatalf("DescribeKey found %s", *seen.KeyMetadata.KeyId)
			}
		})
	}
}

func TestSameTextTwiceDiffers(t *testing.T) {
	c := shared(t).client(t)
	key := createKey(t, c)
	if bytes.Equal(encrypt(t, c, *key.KeyId, marker, nil), encrypt(t, c, *key.KeyId, marker, nil)) {
		t.Fatal("one text encrypted twice gave one ciphertext")
	}
}

func TestEncryptionContext(t *testing.T) {
	c := shared(t).client(t)
	key := createKey(t, c)
	bound := map[string]string{"tenant": "a", "purpose": "test", "": "empty"}
	delete(bound, "")
	blob := encrypt(t, c, *key.KeyId, marker, bound)
	wantDecrypt(t, c, blob, marker, map[string]string{"purpose": "test", "tenant": "a"})
	for name, other := range map[string]map[string]string{
		"none":        nil,
		"empty":       {},
		"value":       {"tenant": "b", "purpose": "test"},
		"value case":  {"tenant": "A", "purpose": "test"},
		"key case":    {"Tenant": "a", "purpose": "test"},
		"missing":     {"tenant": "a"},
		"added":       {"tenant": "a", "purpose": "test", "x": "y"},
		"swapped":     {"a": "tenant", "test": "purpose"},
		"run into":    {"tenant": "apurpose", "": "test"},
		"other split": {"tenan": "ta", "purpose": "test"},
	} {
		_, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: other})
		if code := errorCode(err); code != "InvalidCiphertextException" {
			t.Errorf("%s: %v, want InvalidCiphertextException", name, err)
		}
	}
	plain := encrypt(t, c, *key.KeyId, marker, map[string]string{})
	wantDecrypt(t, c, plain, marker, nil)
	_, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: plain, EncryptionContext: bound})
	wantError[*types.InvalidCiphertextException](t, err, "")
}

func TestDecryptUnderNamedKey(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key, other := createKey(t, c), createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, KeyId: other.KeyId})
	wantError[*types.IncorrectKeyException](t, err,
		"The key ID in the request does not identify a CMK that can perform this operation.")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{
		CiphertextBlob: blob, EncryptionAlgorithm: types.EncryptionAlgorithmSpecRsaesOaepSha256, KeyId: key.KeyId,
	})
	wantError[*types.InvalidKeyUsageException](t, err, "incompatible with key spec")
}

// badNames are KeyIds that name no key of this deployment, with AWS's code for
// a cryptographic operation and a part of its text.
var badNames = []struct{ name, keyID, code, text string }{
	{"unknown id", "00000000-0000-4000-8000-000000000000", "NotFoundException",
		"Key 'arn:aws:kms:us-east-1:111122223333:key/00000000-0000-4000-8000-000000000000' does not exist"},
	{"unknown ARN", "arn:aws:kms:us-east-1:111122223333:key/00000000-0000-4000-8000-000000000000", "NotFoundException",
		"Key 'arn:aws:kms:us-east-1:111122223333:key/00000000-0000-4000-8000-000000000000' does not exist"},
	{"unknown multi-region id", "mrk-00000000000040008000000000000000", "NotFoundException", "does not exist"},
	{"no id", "hoge", "NotFoundException", "Invalid keyId 'hoge'"},
	{"no dashes", "00000000000040008000000000000000", "NotFoundException", "Invalid keyId"},
	{"alias", "alias/nobody-made-this", "NotFoundException",
		"Alias arn:aws:kms:us-east-1:111122223333:alias/nobody-made-this is not found."},
	{"alias ARN", "arn:aws:kms:us-east-1:111122223333:alias/nobody-made-this", "NotFoundException",
		"Alias arn:aws:kms:us-east-1:111122223333:alias/nobody-made-this is not found."},
	{"other region", "arn:aws:kms:eu-west-3:111122223333:key/00000000-0000-4000-8000-000000000000",
		"NotFoundException", "Invalid arn eu-west-3"},
	{"other account", "arn:aws:kms:us-east-1:999999999999:key/00000000-0000-4000-8000-000000000000",
		"AccessDeniedException", ""},
	{"short ARN", "arn:aws:kms", "NotFoundException InvalidArnException", ""},
	{"other service", "arn:aws:s3:us-east-1:111122223333:key/00000000-0000-4000-8000-000000000000",
		"NotFoundException InvalidArnException", ""},
	{"other partition", "arn:aws-cn:kms:us-east-1:111122223333:key/00000000-0000-4000-8000-000000000000",
		"NotFoundException InvalidArnException", ""},
	{"other resource", "arn:aws:kms:us-east-1:111122223333:grant/00000000-0000-4000-8000-000000000000",
		"NotFoundException InvalidArnException", ""},
	{"empty", "", "ValidationException", ""},
	{"forbidden letters", "a key", "ValidationException NotFoundException", ""},
}

func TestNamesOfNoKey(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	uses := map[string]func(id *string) error{
		"Encrypt": func(id *string) error {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: id, Plaintext: []byte("x")})
			return err
		},
		"GenerateDataKey": func(id *string) error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: id, KeySpec: types.DataKeySpecAes128})
			return err
		},
		"DescribeKey": func(id *string) error {
			_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: id})
			return err
		},
	}
	for _, bad := range badNames {
		for op, use := range uses {
			t.Run(bad.name+"/"+op, func(t *testing.T) { wantOneOf(t, use(&bad.keyID), bad.code, bad.text) })
		}
	}
}

// Operations that manage one key take its id or ARN, never an alias.
func TestManagementTakesNoAlias(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	_, names := namedKey(t, c)
	for _, form := range []string{"alias name", "alias ARN"} {
		id := aws.String(names[form])
		for op, use := range map[string]func() error{
			"DisableKey": func() error { _, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: id}); return err },
			"ScheduleKeyDeletion": func() error {
				_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: id})
				return err
			},
			"GetKeyPolicy": func() error { _, err := c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: id}); return err },
		} {
			t.Run(form+"/"+op, func(t *testing.T) {
				wantOneOf(t, use(), "NotFoundException ValidationException InvalidArnException", "")
			})
		}
	}
}
