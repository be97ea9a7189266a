package softhsmtest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestCreateKeyMetadata(t *testing.T) {
	c := shared(t).client(t)
	before := time.Now().Add(-2 * time.Second)
	key := must(c.CreateKey(context.Background(), &kms.CreateKeyInput{
		Description: aws.String("first light"),
		KeySpec:     types.KeySpecSymmetricDefault,
		KeyUsage:    types.KeyUsageTypeEncryptDecrypt,
		Tags:        []types.Tag{{TagKey: aws.String("team"), TagValue: aws.String("a")}},
	}))(t).KeyMetadata
	id := aws.ToString(key.KeyId)
	if len(id) != 36 || aws.ToString(key.Arn) != "arn:aws:kms:"+region+":"+account+":key/"+id {
		t.Errorf("id %q, ARN %q", id, aws.ToString(key.Arn))
	}
	if aws.ToString(key.AWSAccountId) != account || aws.ToString(key.Description) != "first light" {
		t.Errorf("account %q, description %q", aws.ToString(key.AWSAccountId), aws.ToString(key.Description))
	}
	if !key.Enabled || key.KeyState != types.KeyStateEnabled || key.KeyManager != types.KeyManagerTypeCustomer ||
		key.Origin != types.OriginTypeAwsKms || key.KeySpec != types.KeySpecSymmetricDefault ||
		key.CustomerMasterKeySpec != types.CustomerMasterKeySpecSymmetricDefault ||
		key.KeyUsage != types.KeyUsageTypeEncryptDecrypt || aws.ToBool(key.MultiRegion) {
		t.Errorf("metadata %+v", key)
	}
	if len(key.EncryptionAlgorithms) != 1 || key.EncryptionAlgorithms[0] != "SYMMETRIC_DEFAULT" {
		t.Errorf("algorithms %v", key.EncryptionAlgorithms)
	}
	if len(aws.ToString(key.CurrentKeyMaterialId)) != 64 {
		t.Errorf("material id %q", aws.ToString(key.CurrentKeyMaterialId))
	}
	if key.CreationDate == nil || key.CreationDate.Before(before) || key.CreationDate.After(time.Now().Add(2*time.Second)) {
		t.Errorf("created %v", key.CreationDate)
	}
}

func TestDescriptionAndState(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	must(c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: key.Arn, Description: aws.String("second")}))(t)
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
	seen := describe(t, c, *key.KeyId)
	if seen.Enabled || seen.KeyState != types.KeyStateDisabled || aws.ToString(seen.Description) != "second" {
		t.Fatalf("after DisableKey: %+v", seen)
	}
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
	_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
	wantError[*types.DisabledException](t, err, *key.Arn+" is disabled.")
	must(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.Arn}))(t)
	encrypt(t, c, *key.KeyId, marker, nil)
}

func describe(t testing.TB, c *kms.Client, id string) *types.KeyMetadata {
	t.Helper()
	return must(c.DescribeKey(context.Background(), &kms.DescribeKeyInput{KeyId: &id}))(t).KeyMetadata
}

func TestScheduleAndCancelDeletion(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	for _, days := range []int32{1, 6, 31, 0, -1} {
		_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(days)})
		wantCode(t, err, "ValidationException", "")
	}
	out := must(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))(t)
	if aws.ToString(out.KeyId) != *key.Arn || out.KeyState != types.KeyStatePendingDeletion ||
		aws.ToInt32(out.PendingWindowInDays) != 7 || daysUntil(out.DeletionDate) != 7 {
		t.Fatalf("ScheduleKeyDeletion answered %+v", out)
	}
	if seen := describe(t, c, *key.KeyId); seen.Enabled || seen.DeletionDate == nil || seen.KeyState != types.KeyStatePendingDeletion {
		t.Fatalf("pending key: %+v", seen)
	}
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantError[*types.KMSInvalidStateException](t, err, *key.Arn+" is pending deletion.")
	back := must(c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId}))(t)
	if aws.ToString(back.KeyId) != *key.Arn {
		t.Fatalf("CancelKeyDeletion answered %q", aws.ToString(back.KeyId))
	}
	if seen := describe(t, c, *key.KeyId); seen.KeyState != types.KeyStateDisabled || seen.DeletionDate != nil {
		t.Fatalf("cancelled key: %+v", seen)
	}
	must(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
	wantDecrypt(t, c, blob, marker, nil)
}

func daysUntil(when *time.Time) int {
	if when == nil {
		return -1
	}
	return int((time.Until(*when) + 12*time.Hour) / (24 * time.Hour))
}

func TestDeletionWindowDefaults(t *testing.T) {
	c := shared(t).client(t)
	key := createKey(t, c)
	out := must(c.ScheduleKeyDeletion(context.Background(), &kms.ScheduleKeyDeletionInput{KeyId: key.Arn}))(t)
	if aws.ToInt32(out.PendingWindowInDays) != 30 || daysUntil(out.DeletionDate) != 30 {
		t.Fatalf("default window: %+v", out)
	}
}

func TestDataKeys(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	for _, size := range []struct {
		spec types.DataKeySpec
		n    *int32
		want int
	}{
		{types.DataKeySpecAes128, nil, 16}, {types.DataKeySpecAes256, nil, 32},
		{"", aws.Int32(1), 1}, {"", aws.Int32(64), 64}, {"", aws.Int32(1024), 1024},
	} {
		with := map[string]string{"size": string(size.spec)}
		out := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{
			KeyId: key.KeyId, KeySpec: size.spec, NumberOfBytes: size.n, EncryptionContext: with,
		}))(t)
		if len(out.Plaintext) != size.want || aws.ToString(out.KeyMaterialId) != *key.CurrentKeyMaterialId {
			t.Fatalf("data key of %d bytes, want %d", len(out.Plaintext), size.want)
		}
		wantDecrypt(t, c, out.CiphertextBlob, string(out.Plaintext), with)
		bare := must(c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{
			KeyId: key.KeyId, KeySpec: size.spec, NumberOfBytes: size.n,
		}))(t)
		opened := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: bare.CiphertextBlob}))(t)
		if len(opened.Plaintext) != size.want || string(opened.Plaintext) == string(out.Plaintext) {
			t.Fatalf("data key without plaintext has %d bytes, want %d", len(opened.Plaintext), size.want)
		}
	}
}

func TestDataKeySizesRefused(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	const either = "Please specify either number of bytes or key spec."
	for _, bad := range []struct {
		spec types.DataKeySpec
		n    *int32
		text string
	}{
		{"", nil, either},
		{types.DataKeySpecAes256, aws.Int32(32), either},
		{"", aws.Int32(0), "Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{"", aws.Int32(1025), "less than or equal to 1024"},
		{"AES_512", nil, "Value 'AES_512' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: ["},
	} {
		_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: bad.spec, NumberOfBytes: bad.n})
		wantCode(t, err, "ValidationException", bad.text)
		_, err = c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{
			KeyId: key.KeyId, KeySpec: bad.spec, NumberOfBytes: bad.n,
		})
		wantCode(t, err, "ValidationException", bad.text)
	}
}

func TestGenerateRandom(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	seen := map[string]bool{}
	for _, n := range []int32{1, 16, 32, 1024, 1024} {
		out := must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: &n}))(t)
		if len(out.Plaintext) != int(n) || n > 1 && seen[string(out.Plaintext)] {
			t.Fatalf("%d random bytes, want %d fresh ones", len(out.Plaintext), n)
		}
		seen[string(out.Plaintext)] = true
	}
	_, err := c.GenerateRandom(ctx, &kms.GenerateRandomInput{})
	wantCode(t, err, "ValidationException", "NumberOfBytes is required.")
	_, err = c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1025)})
	wantCode(t, err, "ValidationException", "less than or equal to 1024")
}

func TestPlaintextSizes(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	for _, n := range []int{1, 15, 16, 17, 4095, 4096} {
		text := strings.Repeat("x", n)
		wantDecrypt(t, c, encrypt(t, c, *key.KeyId, text, nil), text, nil)
	}
	for _, n := range []int{0, 4097} {
		_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: make([]byte, n)})
		wantCode(t, err, "ValidationException", "Value at 'plaintext' failed to satisfy constraint")
	}
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: make([]byte, 6145)})
	wantCode(t, err, "ValidationException", "'ciphertextBlob' failed to satisfy constraint")
}

func TestReEncrypt(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	from, to := createKey(t, c), createKey(t, c)
	old, fresh := map[string]string{"of": "old"}, map[string]string{"of": "new"}
	blob := encrypt(t, c, *from.KeyId, marker, old)
	out := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: blob, SourceEncryptionContext: old,
		DestinationKeyId: to.KeyId, DestinationEncryptionContext: fresh,
	}))(t)
	if aws.ToString(out.SourceKeyId) != *from.Arn || aws.ToString(out.KeyId) != *to.Arn ||
		out.SourceEncryptionAlgorithm != "SYMMETRIC_DEFAULT" || out.DestinationEncryptionAlgorithm != "SYMMETRIC_DEFAULT" ||
		aws.ToString(out.SourceKeyMaterialId) != *from.CurrentKeyMaterialId ||
		aws.ToString(out.DestinationKeyMaterialId) != *to.CurrentKeyMaterialId {
		t.Fatalf("ReEncrypt answered %+v", out)
	}
	wantDecrypt(t, c, out.CiphertextBlob, marker, fresh)
	_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: to.KeyId})
	wantError[*types.InvalidCiphertextException](t, err, "")
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: blob, SourceEncryptionContext: old, SourceKeyId: to.KeyId, DestinationKeyId: to.KeyId,
	})
	wantError[*types.IncorrectKeyException](t, err, "")
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: from.KeyId}))(t)
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, SourceEncryptionContext: old, DestinationKeyId: to.KeyId})
	wantError[*types.DisabledException](t, err, *from.Arn)
}
