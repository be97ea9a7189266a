package softhsmtest

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestUnbuiltOperations(t *testing.T) {
	d := shared(t)
	key := createKey(t, d.client(t))
	body, err := json.Marshal(map[string]string{"KeyId": *key.KeyId})
	if err != nil {
		t.Fatal(err)
	}
	_, unbuilt := operationTable(t)
	for _, operation := range unbuilt {
		t.Run(operation, func(t *testing.T) {
			for _, body := range [][]byte{[]byte("{}"), body} {
				a := d.raw(t, request{operation: operation, body: body})
				a.want(t, 400, "UnsupportedOperationException")
				if a.text == "" {
					t.Error("the answer does not say what is unsupported")
				}
				d.wantRecord(t, a.requestID, operation, "UnsupportedOperationException")
			}
		})
	}
}

func TestUnsupportedOptions(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	create := func(in kms.CreateKeyInput) func() error {
		return func() error { _, err := c.CreateKey(ctx, &in); return err }
	}
	for name, do := range map[string]func() error{
		"CloudHSM origin":  create(kms.CreateKeyInput{Origin: types.OriginTypeAwsCloudhsm, CustomKeyStoreId: aws.String("cks-1234567890abcdef0")}),
		"custom key store": create(kms.CreateKeyInput{CustomKeyStoreId: aws.String("cks-1234567890abcdef0")}),
		"external store":   create(kms.CreateKeyInput{Origin: types.OriginTypeExternalKeyStore, XksKeyId: aws.String("k"), CustomKeyStoreId: aws.String("cks-1234567890abcdef0")}),
		"GenerateRandom store": func() error {
			_, err := c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8), CustomKeyStoreId: aws.String("cks-1234567890abcdef0")})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantError[*types.UnsupportedOperationException](t, do(), "") })
	}
}

// The options that later parts bring are refused only when they are asked for.
func TestOptionsTurnedOff(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := must(c.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: aws.Bool(false), Origin: types.OriginTypeAwsKms}))(t).KeyMetadata
	must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), DryRun: aws.Bool(false)}))(t)
	_, err := c.CreateKey(ctx, &kms.CreateKeyInput{KeyUsage: types.KeyUsageTypeSignVerify})
	wantCode(t, err, "ValidationException", "KeyUsage SIGN_VERIFY is not compatible with KeySpec SYMMETRIC_DEFAULT")
}
