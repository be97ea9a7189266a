package kms

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/store"
)

const statusActive = "Active"

// verdict is what a key state means for an operation.
type verdict int

const (
	ok verdict = iota
	disabled
	pendingDeletion
	notPendingDeletion
)

// keyStates are the states that keys of this release can be in, in the order
// of the columns of stateTable.
var keyStates = [...]types.KeyState{types.KeyStateEnabled, types.KeyStateDisabled, types.KeyStatePendingDeletion}

// stateTable is "Key states of AWS KMS keys" of the KMS developer guide for
// what is built: the verdict per operation on an Enabled, Disabled and
// PendingDeletion key. An operation that is not listed may not touch a key.
var stateTable = map[string][len(keyStates)]verdict{
	"Encrypt":                         {ok, disabled, pendingDeletion},
	"Decrypt":                         {ok, disabled, pendingDeletion},
	"ReEncrypt":                       {ok, disabled, pendingDeletion},
	"GenerateDataKey":                 {ok, disabled, pendingDeletion},
	"GenerateDataKeyWithoutPlaintext": {ok, disabled, pendingDeletion},
	"DescribeKey":                     {ok, ok, ok},
	"GetKeyPolicy":                    {ok, ok, ok},
	"PutKeyPolicy":                    {ok, ok, ok},
	"ListKeyPolicies":                 {ok, ok, ok},
	"ListResourceTags":                {ok, ok, ok},
	"ListAliases":                     {ok, ok, ok},
	"ListKeyRotations":                {ok, ok, ok},
	"GetKeyRotationStatus":            {ok, ok, ok},
	"GetKeyLastUsage":                 {ok, ok, ok},
	"DeleteAlias":                     {ok, ok, ok},
	"CreateAlias":                     {ok, ok, pendingDeletion},
	"TagResource":                     {ok, ok, pendingDeletion},
	"UntagResource":                   {ok, ok, pendingDeletion},
	"UpdateKeyDescription":            {ok, ok, pendingDeletion},
	"UpdateAlias":                     {ok, ok, pendingDeletion},
	"EnableKey":                       {ok, ok, pendingDeletion},
	"DisableKey":                      {ok, ok, pendingDeletion},
	"EnableKeyRotation":               {ok, disabled, pendingDeletion},
	"DisableKeyRotation":              {ok, disabled, pendingDeletion},
	"RotateKeyOnDemand":               {ok, disabled, pendingDeletion},
	"ScheduleKeyDeletion":             {ok, ok, pendingDeletion},
	"CancelKeyDeletion":               {notPendingDeletion, notPendingDeletion, ok},
}

// checkState says whether the key's state lets operation go on.
func checkState(operation string, k *key) error {
	row, listed := stateTable[operation]
	if !listed {
		return fmt.Errorf("operation %s is missing from the table of key states", operation)
	}
	for i, state := range keyStates {
		if string(state) != k.State {
			continue
		}
		switch row[i] {
		case disabled:
			return &types.DisabledException{Message: aws.String(k.arn + " is disabled.")}
		case pendingDeletion:
			return invalidState(k.arn, "pending deletion")
		case notPendingDeletion:
			return invalidState(k.arn, "not pending deletion")
		}
		return nil
	}
	return fmt.Errorf("key %s is in the unknown state %q", k.arn, k.State)
}

// updateKey authorises a change of one key's row and commits it.
func (s *Service) updateKey(ctx context.Context, call *Call, keyID string, edit func(k *store.Key) error) (*key, error) {
	var updated *key
	err := s.change(ctx, call, func() error {
		k, err := s.authorizeKey(ctx, call, "kms:"+call.Operation, keyID, keyOnly)
		if err != nil {
			return err
		}
		row := k.Key
		if err := edit(&row); err != nil {
			return err
		}
		change := s.db.NewChange()
		if err := change.UpdateKey(ctx, row); err != nil {
			return unstorable(err)
		}
		if call.response == nil {
			call.answeredKey(k.arn)
		}
		updated = &key{Key: row, arn: k.arn, backing: k.backing, backingKeys: k.backingKeys}
		return s.commit(ctx, call, change)
	})
	return updated, err
}

// EnableKey makes a disabled key usable again.
func (s *Service) EnableKey(ctx context.Context, call *Call, in *awskms.EnableKeyInput) (*awskms.EnableKeyOutput, error) {
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		k.State = string(types.KeyStateEnabled)
		return nil
	})
	return &awskms.EnableKeyOutput{}, err
}

// DisableKey makes a key unusable until it is enabled: no call that begins
// after it has returned is served, on any host.
func (s *Service) DisableKey(ctx context.Context, call *Call, in *awskms.DisableKeyInput) (*awskms.DisableKeyOutput, error) {
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		k.State = string(types.KeyStateDisabled)
		return nil
	})
	return &awskms.DisableKeyOutput{}, err
}
