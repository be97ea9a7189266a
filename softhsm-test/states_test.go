package softhsmtest

import (
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A subject is one key in one state, with what an operation may need of it.
type subject struct {
	c                *kms.Client
	id, alias, spare string // spare is an enabled key's id, aliased by no one
	blob             []byte // made while the key was enabled
	grant            string // likewise; unknown if the key awaits its import
}

// keyStateTable is the documented table of key states and operations for what
// is built: the error in the states enabled, disabled, pending deletion, and
// on a new key that awaits its import.
var keyStateTable = []struct {
	operation                            string
	enabled, disabled, pending, awaiting string
	do                                   func(context.Context, subject) error
}{
	{"Encrypt", "", disabled, invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.Encrypt(ctx, &kms.EncryptInput{KeyId: &s.id, Plaintext: []byte("x")})
		return err
	}},
	{"Decrypt", "", disabled, invalid, noBlob, func(ctx context.Context, s subject) error {
		_, err := s.c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: s.blob})
		return err
	}},
	{"ReEncrypt from", "", disabled, invalid, noBlob, func(ctx context.Context, s subject) error {
		_, err := s.c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: s.blob, DestinationKeyId: &s.spare})
		return err
	}},
	{"ReEncrypt to", "", disabled, invalid, invalid, func(ctx context.Context, s subject) error {
		out, err := s.c.Encrypt(ctx, &kms.EncryptInput{KeyId: &s.spare, Plaintext: []byte("x")})
		if err == nil {
			_, err = s.c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: out.CiphertextBlob, DestinationKeyId: &s.id})
		}
		return err
	}},
	{"GenerateDataKey", "", disabled, invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &s.alias, KeySpec: "AES_256"})
		return err
	}},
	{"GenerateDataKeyWithoutPlaintext", "", disabled, invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.GenerateDataKeyWithoutPlaintext(ctx,
			&kms.GenerateDataKeyWithoutPlaintextInput{KeyId: &s.id, KeySpec: "AES_256"})
		return err
	}},
	{"DescribeKey", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &s.id})
		return err
	}},
	{"GetKeyPolicy", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &s.id})
		return err
	}},
	{"PutKeyPolicy", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: &s.id, Policy: aws.String(defaultPolicy)})
		return err
	}},
	{"ListKeyPolicies", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: &s.id})
		return err
	}},
	{"ListResourceTags", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: &s.id})
		return err
	}},
	{"ListAliases", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.ListAliases(ctx, &kms.ListAliasesInput{KeyId: &s.id})
		return err
	}},
	{"DeleteAlias", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &s.alias})
		return err
	}},
	{"EnableKeyRotation", "", disabled, invalid, unsupported, func(ctx context.Context, s subject) error {
		_, err := s.c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &s.id})
		return err
	}},
	{"DisableKeyRotation", "", disabled, invalid, unsupported, func(ctx context.Context, s subject) error {
		_, err := s.c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: &s.id})
		return err
	}},
	{"RotateKeyOnDemand", "", disabled, invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &s.id})
		return err
	}},
	{"GetKeyRotationStatus", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &s.id})
		return err
	}},
	{"ListKeyRotations", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &s.id})
		return err
	}},
	{"GetKeyLastUsage", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: &s.id})
		return err
	}},
	{"CreateAlias", "", "", invalid, "", func(ctx context.Context, s subject) error {
		_, err := s.c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String(s.alias + "-2"), TargetKeyId: &s.id})
		return err
	}},
	{"UpdateAlias away", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &s.alias, TargetKeyId: &s.spare})
		return err
	}},
	{"UpdateAlias towards", "", "", invalid, "", func(ctx context.Context, s subject) error {
		name := s.alias + "-3"
		_, err := s.c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &name, TargetKeyId: &s.spare})
		if err == nil {
			_, err = s.c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: &s.id})
		}
		return err
	}},
	{"TagResource", "", "", invalid, "", func(ctx context.Context, s subject) error {
		_, err := s.c.TagResource(ctx, &kms.TagResourceInput{KeyId: &s.id, Tags: []types.Tag{tag("k", "v")}})
		return err
	}},
	{"UntagResource", "", "", invalid, "", func(ctx context.Context, s subject) error {
		_, err := s.c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: &s.id, TagKeys: []string{"k"}})
		return err
	}},
	{"UpdateKeyDescription", "", "", invalid, "", func(ctx context.Context, s subject) error {
		_, err := s.c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: &s.id, Description: aws.String("d")})
		return err
	}},
	{"EnableKey", "", "", invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &s.id})
		return err
	}},
	{"DisableKey", "", "", invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &s.id})
		return err
	}},
	{"ScheduleKeyDeletion", "", "", invalid, "", func(ctx context.Context, s subject) error {
		_, err := s.c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &s.id})
		return err
	}},
	{"GetParametersForImport", unsupported, unsupported, invalid, "", func(ctx context.Context, s subject) error {
		_, err := s.c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{
			KeyId: &s.id, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha1, WrappingKeySpec: types.WrappingKeySpecRsa2048,
		})
		return err
	}},
	{"ImportKeyMaterial", unsupported, unsupported, invalid, "InvalidImportTokenException", func(ctx context.Context, s subject) error {
		_, err := s.c.ImportKeyMaterial(ctx, &kms.ImportKeyMaterialInput{KeyId: &s.id, ImportToken: []byte("x"), EncryptedKeyMaterial: []byte("x")})
		return err
	}},
	{"DeleteImportedKeyMaterial", unsupported, unsupported, unsupported, "", func(ctx context.Context, s subject) error {
		_, err := s.c.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: &s.id})
		return err
	}},
	{"ReplicateKey", unsupported, disabled, invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &s.id, ReplicaRegion: aws.String(otherRegion)})
		return err
	}},
	{"UpdatePrimaryRegion", unsupported, disabled, invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: &s.id, PrimaryRegion: aws.String(otherRegion)})
		return err
	}},
	{"CreateGrant", "", disabled, invalid, invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: &s.id, GranteePrincipal: userARN("app"), Operations: []types.GrantOperation{"Encrypt"}})
		return err
	}},
	{"ListGrants", "", "", "", "", func(ctx context.Context, s subject) error {
		_, err := s.c.ListGrants(ctx, &kms.ListGrantsInput{KeyId: &s.id})
		return err
	}},
	{"RetireGrant", "", "", "", noGrant, func(ctx context.Context, s subject) error {
		_, err := s.c.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: &s.id, GrantId: &s.grant})
		return err
	}},
	{"RevokeGrant", "", "", "", noGrant, func(ctx context.Context, s subject) error {
		_, err := s.c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: &s.id, GrantId: &s.grant})
		return err
	}},
	{"CancelKeyDeletion", invalid, invalid, "", invalid, func(ctx context.Context, s subject) error {
		_, err := s.c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: &s.id})
		return err
	}},
}

const (
	disabled = "DisabledException"
	invalid  = "KMSInvalidStateException"

	unsupported = "UnsupportedOperationException" // by the key's origin, or because it is a single-Region key
	noBlob      = "no ciphertext can exist"
	noGrant     = "NotFoundException" // no grant can exist
)

// newSubject makes a key and brings it into a state.
func newSubject(t *testing.T, c *kms.Client, state, spare string) subject {
	t.Helper()
	ctx := context.Background()
	key := createKey(t, c)
	switch state {
	case "PendingImport":
		key = externalKey(t, c)
	case "PendingReplicaDeletion":
		key = must(c.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: aws.Bool(true)}))(t).KeyMetadata
		must(c.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String(otherRegion)}))(t)
	}
	s := subject{c: c, id: *key.KeyId, alias: "alias/state-" + *key.KeyId, spare: spare, grant: strings.Repeat("0", 64)}
	if state != "PendingImport" {
		s.blob = encrypt(t, c, s.id, "x", nil)
		s.grant = *createGrant(t, c, &s.id, userARN("app"), nil).GrantId
	}
	if err := createAlias(c, s.alias, s.id); err != nil {
		t.Fatal(err)
	}
	switch state {
	case "Disabled":
		must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &s.id}))(t)
	case "PendingDeletion", "PendingReplicaDeletion":
		must(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &s.id}))(t)
	}
	return s
}

func TestKeyStates(t *testing.T) {
	c := shared(t).client(t)
	spare := *createKey(t, c).KeyId
	for _, row := range keyStateTable {
		for state, want := range map[string]string{
			"Enabled": row.enabled, "Disabled": row.disabled, "PendingDeletion": row.pending, "PendingImport": row.awaiting,
			"PendingReplicaDeletion": row.pending,
		} {
			if want == noBlob {
				continue
			}
			t.Run(row.operation+"/"+state, func(t *testing.T) {
				if got := errorCode(row.do(context.Background(), newSubject(t, c, state, spare))); got != want {
					t.Errorf("error %q, want %q", got, want)
				}
			})
		}
	}
}
