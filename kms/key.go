package kms

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/uuid"

	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// CreateKey makes a key with its first backing key in the HSM. The rows are
// written in one transaction with the audit record, so that a crash leaves a
// working key or none.
func (s *Service) CreateKey(ctx context.Context, call *Call, in *awskms.CreateKeyInput) (*awskms.CreateKeyOutput, error) {
	var out *awskms.CreateKeyOutput
	err := s.change(ctx, call, func() (err error) {
		out, err = s.createKey(ctx, call, in)
		return err
	})
	return out, err
}

func (s *Service) createKey(ctx context.Context, call *Call, in *awskms.CreateKeyInput) (*awskms.CreateKeyOutput, error) {
	if err := s.authorize(call, "kms:CreateKey"); err != nil {
		return nil, err
	}
	row, err := s.newKey(call, in)
	if err != nil {
		return nil, err
	}
	var backing store.BackingKey
	if row.Origin != string(types.OriginTypeExternal) {
		if backing, err = s.newBackingKey(ctx, row, row.Created); err != nil {
			return nil, err
		}
	}
	row.CurrentBackingKey = backing.ID
	change := s.db.NewChange()
	if err := change.InsertKey(ctx, row); err != nil {
		return nil, unstorable(err)
	}
	if len(backing.EKT) > 0 {
		if err := change.InsertBackingKey(ctx, backing); err != nil {
			return nil, fmt.Errorf("sealing a backing key: %w", err)
		}
	}
	failpoint.Hit("createkey.sealed")
	k := &key{Key: row, arn: s.keyARN(row.Account, row.Region, row.ID), backing: backing}
	call.touch(k.Account, k.arn)
	out := &awskms.CreateKeyOutput{KeyMetadata: s.metadata(k)}
	call.response = awsjson.AppendMembers(nil, out, []string{"KeyMetadata"})
	return out, s.commit(ctx, call, change)
}

// newKey is the row that a CreateKey request asks for.
func (s *Service) newKey(call *Call, in *awskms.CreateKeyInput) (store.Key, error) {
	spec, usage, err := checkCreateKey(in)
	if err != nil {
		return store.Key{}, err
	}
	policy, err := s.checkPolicy(call.Principal.Account, in.Policy)
	if err != nil {
		return store.Key{}, err
	}
	tags, err := mergeTags(nil, in.Tags)
	if err != nil {
		return store.Key{}, err
	}
	if err := s.domain.Supports(string(spec), hsmUses[string(usage)]); err != nil {
		return store.Key{}, fromDevice(err)
	}
	k := store.Key{
		Account:     call.Principal.Account,
		Region:      call.Region,
		ID:          uuid.NewString(),
		State:       string(types.KeyStateEnabled),
		Spec:        string(spec),
		Usage:       string(usage),
		Origin:      string(types.OriginTypeAwsKms),
		Description: aws.ToString(in.Description),
		Policy:      policy,
		Tags:        tags,
		Created:     s.now().UTC(),
	}
	if in.Origin == types.OriginTypeExternal {
		k.Origin, k.State, k.MaterialMissing = string(in.Origin), string(types.KeyStatePendingImport), true
	}
	if aws.ToBool(in.MultiRegion) {
		k.ID = "mrk-" + strings.ReplaceAll(k.ID, "-", "")
		k.MultiRegion, k.PrimaryRegion = true, k.Region
	}
	return k, nil
}

// checkCreateKey refuses what AWS refuses, and what is not built yet. It
// returns the spec and usage that are asked for.
func checkCreateKey(in *awskms.CreateKeyInput) (types.KeySpec, types.KeyUsageType, error) {
	spec, usage := in.KeySpec, in.KeyUsage
	if in.CustomerMasterKeySpec != "" {
		if spec != "" && string(spec) != string(in.CustomerMasterKeySpec) {
			return "", "", validation("You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.")
		}
		spec = types.KeySpec(in.CustomerMasterKeySpec)
	}
	if spec == "" {
		spec = types.KeySpecSymmetricDefault
	}
	if usage == "" && spec == types.KeySpecSymmetricDefault {
		usage = types.KeyUsageTypeEncryptDecrypt
	}
	known, ours := keySpecs[spec]
	switch {
	case in.CustomKeyStoreId != nil || in.XksKeyId != nil:
		return "", "", unsupported("Custom key stores are not available yet.")
	case in.Origin != "" && in.Origin != types.OriginTypeAwsKms && in.Origin != types.OriginTypeExternal:
		return "", "", unsupported("Origin %s is not available yet.", in.Origin)
	case usage == "":
		return "", "", validation("You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
	case !ours:
		return "", "", unsupported("KeySpec %s is not available in this Region.", spec)
	case known.usages[usage] == nil:
		return "", "", validation("KeyUsage %s is not compatible with KeySpec %s", usage, spec)
	}
	return spec, usage, nil
}

// newBackingKey has the HSM make a backing key for a key.
func (s *Service) newBackingKey(ctx context.Context, k store.Key, now time.Time) (store.BackingKey, error) {
	made, err := s.domain.Generate(ctx, k.Spec, hsmUses[k.Usage])
	if err != nil {
		return store.BackingKey{}, fmt.Errorf("generating a backing key: %w", fromDevice(err))
	}
	provenance, err := json.Marshal(made.Provenance)
	if err != nil {
		return store.BackingKey{}, fmt.Errorf("encoding a backing key's provenance: %w", err)
	}
	return store.BackingKey{
		Account:    k.Account,
		Region:     k.Region,
		KeyID:      k.ID,
		ID:         uuid.New(),
		EKT:        made.EKT,
		MaterialID: materialID(k.ID, checkValue(made)),
		Provenance: provenance,
		PublicKey:  made.PublicKey,
		Created:    now,
	}, nil
}

// checkValue identifies key material: a key pair by its public half.
func checkValue(made hsm.Material) []byte {
	if made.PublicKey == nil {
		return made.CheckValue
	}
	sum := sha256.Sum256(made.PublicKey)
	return sum[:]
}

// materialID is AWS's KeyMaterialId: 64 lower-case hex digits that are the
// same for the same material under the same key and tell nothing else.
func materialID(keyID string, checkValue []byte) string {
	h := sha256.New()
	h.Write([]byte("trent key material id\x00" + keyID + "\x00"))
	h.Write(checkValue)
	return hex.EncodeToString(h.Sum(nil))
}

// unstorable tells the caller when its own text is what cannot be kept.
func unstorable(err error) error {
	if errors.Is(err, store.ErrUnstorable) {
		return validation("Text with NUL characters or invalid UTF-8 cannot be stored.")
	}
	return fmt.Errorf("sealing a row: %w", err)
}

// metadata is AWS's KeyMetadata of a key, but for what Service.metadata adds.
func (k *key) metadata() *types.KeyMetadata {
	algorithms := k.algorithmLists()
	m := &types.KeyMetadata{
		AWSAccountId:            aws.String(k.Account),
		KeyId:                   aws.String(k.ID),
		Arn:                     aws.String(k.arn),
		CreationDate:            aws.Time(k.Created),
		Enabled:                 k.State == string(types.KeyStateEnabled),
		Description:             aws.String(k.Description),
		KeyUsage:                types.KeyUsageType(k.Usage),
		KeyState:                types.KeyState(k.State),
		DeletionDate:            k.DeletionDate,
		Origin:                  types.OriginType(k.Origin),
		KeyManager:              types.KeyManagerTypeCustomer,
		CustomerMasterKeySpec:   types.CustomerMasterKeySpec(k.Spec), // AWS still sends the deprecated twin
		KeySpec:                 types.KeySpec(k.Spec),
		EncryptionAlgorithms:    algorithms.encryption,
		SigningAlgorithms:       algorithms.signing,
		MacAlgorithms:           algorithms.mac,
		KeyAgreementAlgorithms:  algorithms.agreement,
		EncapsulationAlgorithms: algorithms.encapsulation,
		MultiRegion:             aws.Bool(k.MultiRegion),
	}
	if k.backing.MaterialID != "" && k.symmetric() {
		m.CurrentKeyMaterialId = aws.String(k.backing.MaterialID)
	}
	if k.Origin == string(types.OriginTypeExternal) && len(k.backing.EKT) > 0 {
		m.ExpirationModel, m.ValidTo = expirationModel(k.backing), k.backing.Expires
	}
	return m
}

// DescribeKey shows a key's metadata.
func (s *Service) DescribeKey(ctx context.Context, call *Call, in *awskms.DescribeKeyInput) (*awskms.DescribeKeyOutput, error) {
	if err := s.refresh(ctx, call); err != nil {
		return nil, err
	}
	k, err := s.authorizeKey(ctx, call, "kms:DescribeKey", *in.KeyId, keyOrAlias)
	if err != nil {
		return nil, err
	}
	if err := s.checkGrantTokens(ctx, in.GrantTokens); err != nil {
		return nil, err
	}
	return &awskms.DescribeKeyOutput{KeyMetadata: s.metadata(k)}, nil
}

// UpdateKeyDescription replaces a key's description.
func (s *Service) UpdateKeyDescription(ctx context.Context, call *Call, in *awskms.UpdateKeyDescriptionInput) (*awskms.UpdateKeyDescriptionOutput, error) {
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		k.Description = *in.Description
		return nil
	})
	return &awskms.UpdateKeyDescriptionOutput{}, err
}

// ListKeys lists the keys of the caller's account and region, by key id.
func (s *Service) ListKeys(ctx context.Context, call *Call, in *awskms.ListKeysInput) (*awskms.ListKeysOutput, error) {
	if err := s.authorize(call, "kms:ListKeys"); err != nil {
		return nil, err
	}
	list := listOf(call, "")
	after, err := list.after(in.Marker)
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(in.Limit, 100, 1000)
	if err != nil {
		return nil, err
	}
	ids, err := s.db.ListKeys(ctx, call.Principal.Account, call.Region, after, limit+1)
	if err != nil {
		return nil, err
	}
	ids, next := page(list, ids, limit, func(id string) string { return id })
	out := &awskms.ListKeysOutput{Keys: []types.KeyListEntry{}, Truncated: next != nil, NextMarker: next}
	for _, id := range ids {
		arn := s.keyARN(call.Principal.Account, call.Region, id)
		out.Keys = append(out.Keys, types.KeyListEntry{KeyId: aws.String(id), KeyArn: aws.String(arn)})
	}
	return out, nil
}
