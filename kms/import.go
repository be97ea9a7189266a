package kms

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/uuid"

	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/store"
)

// ImportKeyMaterial unwraps key material inside the HSM and ties it to a key:
// for good, unless it is new material that awaits its first rotation.
func (s *Service) ImportKeyMaterial(ctx context.Context, call *Call, in *awskms.ImportKeyMaterialInput) (*awskms.ImportKeyMaterialOutput, error) {
	out := &awskms.ImportKeyMaterialOutput{}
	err := s.change(ctx, call, func() error {
		k, err := s.authorizeKey(ctx, call, "kms:ImportKeyMaterial", *in.KeyId, keyOnly)
		if err != nil {
			return err
		}
		if err := checkExternal(k); err != nil {
			return err
		}
		material, err := s.unwrapMaterial(ctx, k, in)
		if err != nil {
			return err
		}
		change, err := s.importMaterial(ctx, k, in, &material)
		if err != nil {
			return err
		}
		out.KeyId = aws.String(k.arn)
		if k.Spec == string(types.KeySpecSymmetricDefault) {
			out.KeyMaterialId = aws.String(material.MaterialID)
		}
		call.response = awsjson.AppendMembers(nil, out, []string{"KeyId", "KeyMaterialId"})
		return s.commit(ctx, call, change)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// unwrapMaterial has the HSM unwrap what a request brings.
func (s *Service) unwrapMaterial(ctx context.Context, k *key, in *awskms.ImportKeyMaterialInput) (store.BackingKey, error) {
	var none store.BackingKey
	p, err := s.verifiedImport(ctx, k, in.ImportToken)
	if err != nil {
		return none, err
	}
	expires, err := s.expiry(in)
	if err != nil {
		return none, err
	}
	m, err := s.domain.Import(ctx, p.Wrapping, p.Algorithm, k.Spec, hsmUses[k.Usage], in.EncryptedKeyMaterial)
	if err != nil {
		return none, fromImport(err)
	}
	provenance, err := json.Marshal(m.Provenance)
	if err != nil {
		return none, fmt.Errorf("encoding a backing key's provenance: %w", err)
	}
	return store.BackingKey{
		ID: uuid.New(), EKT: m.EKT, PublicKey: m.PublicKey, MaterialID: materialID(k.ID, checkValue(m)), Provenance: provenance,
		Created: s.now().UTC(), Expires: expires, Description: aws.ToString(in.KeyMaterialDescription),
	}, nil
}

func (s *Service) expiry(in *awskms.ImportKeyMaterialInput) (*time.Time, error) {
	if in.ExpirationModel == types.ExpirationModelTypeKeyMaterialDoesNotExpire {
		if in.ValidTo != nil {
			return nil, validation("ValidTo is not allowed when ExpirationModel is %s.", in.ExpirationModel)
		}
		return nil, nil
	}
	now := s.now()
	switch {
	case in.ValidTo == nil:
		return nil, validation("A validTo date must be set if the ExpirationModel is %s", types.ExpirationModelTypeKeyMaterialExpires)
	case !in.ValidTo.After(now):
		return nil, validation("ValidTo must be in the future.")
	case in.ValidTo.After(now.Add(maxMaterialLife)):
		return nil, validation("ValidTo must be within 365 days.")
	}
	utc := in.ValidTo.UTC()
	return &utc, nil
}

// importMaterial decides what becomes of unwrapped material, completes it and
// gathers what is written.
func (s *Service) importMaterial(ctx context.Context, k *key, in *awskms.ImportKeyMaterialInput, material *store.BackingKey) (*store.Change, error) {
	all, err := s.db.BackingKeys(ctx, k.Key, k.backingKeys)
	if err != nil {
		return nil, err
	}
	known := slices.IndexFunc(all, func(b store.BackingKey) bool { return b.MaterialID == material.MaterialID })
	if err := s.checkImport(k, in, all, known, material.MaterialID); err != nil {
		return nil, err
	}
	row := k.Key
	switch {
	case known >= 0:
		b := all[known]
		b.EKT, b.Provenance, b.Expires = material.EKT, material.Provenance, material.Expires
		if in.KeyMaterialDescription != nil {
			b.Description = material.Description
		}
		*material, all[known] = b, b
	case len(all) == 0:
		row.CurrentBackingKey = material.ID
		all = append(all, *material)
	default:
		material.Pending = true
		all = append(all, *material)
	}
	restate(&row, all)
	change := s.db.NewChange()
	if known < 0 {
		if err := s.shareImport(ctx, change, k, *material); err != nil {
			return nil, err
		}
	}
	if err := change.ChangeMaterial(ctx, row, k.backingKeys, *material); err != nil {
		return nil, unstorable(err)
	}
	return change, nil
}

// checkImport says whether material may be tied to k, whose materials are all;
// known is its place among them, or -1.
func (s *Service) checkImport(k *key, in *awskms.ImportKeyMaterialInput, all []store.BackingKey, known int, id string) error {
	kind := in.ImportType
	if kind == "" {
		kind = types.ImportTypeExistingKeyMaterial
		if len(all) == 0 {
			kind = types.ImportTypeNewKeyMaterial
		}
	}
	incorrect := &types.IncorrectKeyMaterialException{Message: aws.String("The key material is not what was imported into this key before.")}
	if kind == types.ImportTypeExistingKeyMaterial {
		if known < 0 || (in.KeyMaterialId != nil && *in.KeyMaterialId != id) {
			return incorrect
		}
		return nil
	}
	if err := s.checkNotReplica(&k.Key); err != nil { // new material comes into the primary key first
		return err
	}
	pending := slices.IndexFunc(all, func(b store.BackingKey) bool { return b.Pending })
	switch {
	case in.KeyMaterialId != nil:
		return validation("KeyMaterialId is not allowed when ImportType is %s.", kind)
	case len(all) > 0 && k.Spec != string(types.KeySpecSymmetricDefault):
		return incorrect
	case known >= 0 && known != pending:
		return &types.IncorrectKeyMaterialException{Message: aws.String("The key material is not new to this key.")}
	case known < 0 && pending >= 0:
		return &types.KMSInvalidStateException{Message: aws.String(fmt.Sprintf("New key material (id: %s) cannot be imported into KMS key %s, because another key material (id: %s) is pending rotation.",
			id, k.ID, all[pending].MaterialID))}
	}
	return nil
}
