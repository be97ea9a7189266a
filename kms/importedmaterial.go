package kms

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/store"
)

// DeleteImportedKeyMaterial deletes a material of a key, by default the current
// one. Only the same material can be imported in its place, unless it was
// still pending.
func (s *Service) DeleteImportedKeyMaterial(ctx context.Context, call *Call, in *awskms.DeleteImportedKeyMaterialInput) (*awskms.DeleteImportedKeyMaterialOutput, error) {
	out := &awskms.DeleteImportedKeyMaterialOutput{}
	err := s.change(ctx, call, func() error {
		k, err := s.authorizeKey(ctx, call, "kms:DeleteImportedKeyMaterial", *in.KeyId, keyOnly)
		if err != nil {
			return err
		}
		if err := checkExternal(k); err != nil {
			return err
		}
		out.KeyId = aws.String(k.arn)
		all, err := s.db.BackingKeys(ctx, k.Key, k.backingKeys)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(b store.BackingKey) bool {
			if in.KeyMaterialId != nil {
				return b.MaterialID == *in.KeyMaterialId
			}
			return b.ID == k.CurrentBackingKey
		})
		if i < 0 && in.KeyMaterialId != nil {
			return notFound("Key material %s of key '%s' does not exist", *in.KeyMaterialId, k.arn)
		}
		if i >= 0 && k.Spec == string(types.KeySpecSymmetricDefault) {
			out.KeyMaterialId = aws.String(all[i].MaterialID)
		}
		call.response = awsjson.AppendMembers(nil, out, []string{"KeyId", "KeyMaterialId"})
		if i < 0 {
			return nil // nothing has been imported: no effect
		}
		if (!all[i].Pending || k.Replica()) && len(all[i].EKT) == 0 {
			return nil
		}
		change, err := s.deleteMaterial(ctx, k, all, func(b store.BackingKey) bool { return b.ID == all[i].ID })
		if err != nil {
			return err
		}
		return s.commit(ctx, call, change)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// deleteMaterial gathers the deletion of those materials of k that which
// names.
func (s *Service) deleteMaterial(ctx context.Context, k *key, all []store.BackingKey, which func(store.BackingKey) bool) (*store.Change, error) {
	row := k.Key
	change := s.db.NewChange()
	var written []store.BackingKey
	for i, b := range all {
		if !which(b) {
			continue
		}
		if b.Pending && !k.Replica() { // it was not the key's for good
			if err := s.dropElsewhere(ctx, change, k, b.ID); err != nil {
				return nil, err
			}
			if err := change.DropMaterial(ctx, row, k.backingKeys, b); err != nil {
				return nil, fmt.Errorf("sealing a deletion: %w", err)
			}
			return change, nil
		}
		b.EKT, b.Expires = nil, nil
		all[i] = b
		written = append(written, b)
	}
	restate(&row, all)
	if err := change.ChangeMaterial(ctx, row, k.backingKeys, written...); err != nil {
		return nil, fmt.Errorf("sealing a deletion: %w", err)
	}
	return change, nil
}

// restate sets what k's row says of its materials, and the state that follows
// from it: a key is usable when all that it has been given for good is there.
func restate(k *store.Key, all []store.BackingKey) {
	k.MaterialMissing, k.MaterialExpires = true, nil
	for i, b := range all {
		if b.Pending {
			continue
		}
		k.MaterialMissing = len(b.EKT) == 0 || (i > 0 && k.MaterialMissing)
		if b.Expires != nil && (k.MaterialExpires == nil || b.Expires.Before(*k.MaterialExpires)) {
			k.MaterialExpires = b.Expires
		}
	}
	switch state := types.KeyState(k.State); {
	case k.MaterialMissing && (state == types.KeyStateEnabled || state == types.KeyStateDisabled):
		k.State = string(types.KeyStatePendingImport)
	case !k.MaterialMissing && state == types.KeyStatePendingImport:
		k.State = string(types.KeyStateEnabled)
	}
}

// gone says whether imported material cannot be used.
func gone(b store.BackingKey, now time.Time) bool {
	return len(b.EKT) == 0 || (b.Expires != nil && !now.Before(*b.Expires))
}

func expirationModel(b store.BackingKey) types.ExpirationModelType {
	if b.Expires != nil {
		return types.ExpirationModelTypeKeyMaterialExpires
	}
	return types.ExpirationModelTypeKeyMaterialDoesNotExpire
}

// withExpiry shows k as it is now: from the second in which material that it
// needs expires it is pending import, whether or not a sweep has been there.
func (s *Service) withExpiry(k *key) *key {
	if k.MaterialExpires == nil || s.now().Before(*k.MaterialExpires) {
		return k
	}
	if k.State != string(types.KeyStateEnabled) && k.State != string(types.KeyStateDisabled) {
		return k
	}
	now := *k
	now.State = string(types.KeyStatePendingImport)
	return &now
}

// expireDue deletes imported material that has expired.
func (s *Service) expireDue(ctx context.Context) error {
	find := func(after store.KeyRef, limit int) ([]store.KeyRef, error) {
		return s.db.KeysWithExpiredMaterial(ctx, s.now(), after, limit)
	}
	return slice(&s.cursors.expiring, within(ctx, 10*time.Second), find, func(ref store.KeyRef) error {
		if err := passing(s.expireKey(ctx, ref)); err != nil {
			return fmt.Errorf("deleting expired material of key %s: %w", ref.ID, err)
		}
		return nil
	})
}

// expireKey deletes one expired material of a key; the sweep comes again for
// the next.
func (s *Service) expireKey(ctx context.Context, ref store.KeyRef) error {
	k, err := s.cache.load(ctx, s, keyRef{account: ref.Account, region: ref.Region, id: ref.ID})
	if err != nil {
		return err
	}
	all, err := s.db.BackingKeys(ctx, k.Key, k.backingKeys)
	if err != nil {
		return err
	}
	now := s.now().UTC()
	i := slices.IndexFunc(all, func(b store.BackingKey) bool { return len(b.EKT) > 0 && gone(b, now) })
	if i < 0 {
		return nil
	}
	id, material := all[i].ID, all[i].MaterialID
	change, err := s.deleteMaterial(ctx, k, all, func(b store.BackingKey) bool { return b.ID == id })
	if err != nil {
		return err
	}
	details := fmt.Appendf(nil, `{"keyId":%q,"keyMaterialId":%q}`, k.ID, material)
	event := s.serviceEvent("DeleteExpiredKeyMaterial", k.Account, k.Region, k.arn, details, now)
	seq, err := s.audit.Commit(ctx, event, change)
	if err != nil {
		return err
	}
	s.log.Info("deleted expired key material", "key", k.arn, "material", material)
	return s.cache.advance(ctx, seq)
}
