package kms

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/store"
)

// Related keys have the same backing keys. Where one is given a new one or
// loses a pending one, all are, in the same transaction; of imported material
// they share which one it is, and each needs an import of its own.

// shareRotation adds to r that next, of which k has been given a new version
// by r, becomes the current backing key of k's related keys as well.
func (s *Service) shareRotation(ctx context.Context, r *rotated, k *key, next store.BackingKey, kind types.RotationType, now time.Time) error {
	related, err := s.db.RelatedKeys(ctx, k.Key)
	if err != nil {
		return err
	}
	for _, other := range related {
		b := next
		if k.Origin == string(types.OriginTypeExternal) {
			if b, err = s.rotateImported(ctx, &other, next.ID, kind, now); err != nil {
				return err
			}
		}
		other.CurrentBackingKey = b.ID
		if err := r.change.ShareMaterial(ctx, other, b); err != nil {
			return fmt.Errorf("sealing a rotation: %w", err)
		}
		event, err := s.rotationEvent(&key{Key: other.Key, arn: s.keyARN(other.Account, other.Region, other.ID), backing: k.backing}, b, kind, now)
		if err != nil {
			return err
		}
		r.events = append(r.events, event)
	}
	return nil
}

// rotateImported restates a related key for the rotation to its pending
// material id, which must have been imported there.
func (s *Service) rotateImported(ctx context.Context, k *store.RelatedKey, id [16]byte, kind types.RotationType, now time.Time) (store.BackingKey, error) {
	all, i, err := s.pendingOf(ctx, *k, id)
	if err != nil {
		return store.BackingKey{}, err
	}
	if gone(all[i], now) {
		return store.BackingKey{}, nothingPending(s.keyARN(k.Account, k.Region, k.ID))
	}
	all[i].Pending, all[i].RotationType, all[i].Rotated = false, string(kind), &now
	restate(&k.Key, all)
	return all[i], nil
}

// shareImport adds to change that material, which is new to k, awaits its
// import into k's related keys.
func (s *Service) shareImport(ctx context.Context, change *store.Change, k *key, material store.BackingKey) error {
	related, err := s.db.RelatedKeys(ctx, k.Key)
	if err != nil {
		return err
	}
	for _, other := range related {
		if err := change.ShareMaterial(ctx, other, withoutMaterial(material)); err != nil {
			return fmt.Errorf("sealing an import: %w", err)
		}
	}
	return nil
}

// dropElsewhere adds to change that the pending material id, which k loses, is
// forgotten by k's related keys.
func (s *Service) dropElsewhere(ctx context.Context, change *store.Change, k *key, id [16]byte) error {
	related, err := s.db.RelatedKeys(ctx, k.Key)
	if err != nil {
		return err
	}
	for _, other := range related {
		all, i, err := s.pendingOf(ctx, other, id)
		if err != nil {
			return err
		}
		if err := change.DropMaterial(ctx, other.Key, other.BackingKeys, all[i]); err != nil {
			return fmt.Errorf("sealing a deletion: %w", err)
		}
	}
	return nil
}

// pendingOf returns the backing keys of a related key, and the place of the
// pending one among them.
func (s *Service) pendingOf(ctx context.Context, k store.RelatedKey, id [16]byte) (all []store.BackingKey, i int, err error) {
	if all, err = s.db.BackingKeys(ctx, k.Key, k.BackingKeys); err != nil {
		return nil, 0, err
	}
	i = slices.IndexFunc(all, func(b store.BackingKey) bool { return b.ID == id && b.Pending })
	if i < 0 {
		return nil, 0, fmt.Errorf("key %s lacks pending material %x of a related key", s.keyARN(k.Account, k.Region, k.ID), id)
	}
	return all, i, nil
}

// pendingState is the state of k's pending material, if it has any: whether
// the key can be rotated to it.
func (s *Service) pendingState(ctx context.Context, k *key, all []store.BackingKey) (types.KeyMaterialState, error) {
	i := slices.IndexFunc(all, func(b store.BackingKey) bool { return b.Pending })
	if i < 0 || !k.MultiRegion {
		return types.KeyMaterialStatePendingRotation, nil
	}
	const awaited = types.KeyMaterialStatePendingMultiRegionImportAndRotation
	now := s.now()
	if gone(all[i], now) {
		return awaited, nil
	}
	related, err := s.db.RelatedKeys(ctx, k.Key)
	if err != nil {
		return "", err
	}
	for _, other := range related {
		there, j, err := s.pendingOf(ctx, other, all[i].ID)
		if err != nil {
			return "", err
		}
		if gone(there[j], now) {
			return awaited, nil
		}
	}
	return types.KeyMaterialStatePendingRotation, nil
}
