package kms

import (
	"context"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/store"
)

// ListKeyRotations lists the rotations of a key, or all its key material, the
// oldest first.
func (s *Service) ListKeyRotations(ctx context.Context, call *Call, in *awskms.ListKeyRotationsInput) (*awskms.ListKeyRotationsOutput, error) {
	var k *key
	var all []store.BackingKey
	var pending types.KeyMaterialState
	err := s.change(ctx, call, func() (err error) { // again, if a rotation comes between
		if k, err = s.authorizeKey(ctx, call, "kms:ListKeyRotations", *in.KeyId, keyOnly); err != nil {
			return err
		}
		if k.Spec != string(types.KeySpecSymmetricDefault) {
			return unsupported("%s key spec is %s which is not valid for this operation.", k.arn, k.Spec)
		}
		if all, err = s.db.BackingKeys(ctx, k.Key, k.backingKeys); err != nil {
			return err
		}
		pending, err = s.pendingState(ctx, k, all)
		return err
	})
	if err != nil {
		return nil, err
	}
	list := listOf(call, k.ID)
	after, err := list.after(in.Marker)
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(in.Limit, 100, 1000)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(b store.BackingKey) bool {
		return number(b) <= after || b.Rotated == nil && in.IncludeKeyMaterial != types.IncludeKeyMaterialAllKeyMaterial
	})
	shown, next := page(list, all, limit, number)
	entries := make([]types.RotationsListEntry, len(shown))
	for i, b := range shown {
		entries[i] = k.rotationEntry(b, pending)
	}
	return &awskms.ListKeyRotationsOutput{Rotations: entries, Truncated: next != nil, NextMarker: next}, nil
}

// number is a backing key's place among those of its key, as text that sorts.
func number(b store.BackingKey) string { return fmt.Sprintf("%010d", b.Number) }

func (k *key) rotationEntry(b store.BackingKey, pending types.KeyMaterialState) types.RotationsListEntry {
	e := types.RotationsListEntry{
		KeyId:            aws.String(k.arn),
		KeyMaterialId:    aws.String(b.MaterialID),
		KeyMaterialState: types.KeyMaterialStateNonCurrent,
		RotationDate:     b.Rotated,
		RotationType:     types.RotationType(b.RotationType),
	}
	switch {
	case b.ID == k.backing.ID:
		e.KeyMaterialState = types.KeyMaterialStateCurrent
	case b.Pending:
		e.KeyMaterialState = pending
	}
	if k.Origin == string(types.OriginTypeExternal) {
		e.ImportState = types.ImportStatePendingImport
		if len(b.EKT) > 0 {
			e.ImportState, e.ExpirationModel, e.ValidTo = types.ImportStateImported, expirationModel(b), b.Expires
		}
		if b.Description != "" {
			e.KeyMaterialDescription = aws.String(b.Description)
		}
	}
	return e
}
