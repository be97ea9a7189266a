package kms

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/store"
)

// verdict is what a key state means for an operation.
type verdict int

const (
	unlisted verdict = iota // a row that is too short must not allow anything
	ok
	disabled
	pendingDeletion
	notPendingDeletion
	pendingImport
)

// keyStates are the states that keys of this release can be in, in the order
// of the columns of stateTable. PendingReplicaDeletion has its column together
// with PendingDeletion, as in AWS's table. Creating and Updating do not occur:
// what AWS does meanwhile is done when the call is answered.
var keyStates = [...]types.KeyState{types.KeyStateEnabled, types.KeyStateDisabled, types.KeyStatePendingDeletion, types.KeyStatePendingImport}

// stateTable is "Key states of AWS KMS keys" of the KMS developer guide for
// what is built: the verdict per operation on an Enabled, Disabled,
// PendingDeletion and PendingImport key. An operation that is not listed may not touch a key.
var stateTable = map[string][len(keyStates)]verdict{
	"Encrypt":                             {ok, disabled, pendingDeletion, pendingImport},
	"Decrypt":                             {ok, disabled, pendingDeletion, pendingImport},
	"ReEncrypt":                           {ok, disabled, pendingDeletion, pendingImport},
	"GenerateDataKey":                     {ok, disabled, pendingDeletion, pendingImport},
	"GenerateDataKeyWithoutPlaintext":     {ok, disabled, pendingDeletion, pendingImport},
	"GenerateDataKeyPair":                 {ok, disabled, pendingDeletion, pendingImport},
	"GenerateDataKeyPairWithoutPlaintext": {ok, disabled, pendingDeletion, pendingImport},
	"Sign":                                {ok, disabled, pendingDeletion, pendingImport},
	"Verify":                              {ok, disabled, pendingDeletion, pendingImport},
	"GetPublicKey":                        {ok, disabled, pendingDeletion, pendingImport},
	"GenerateMac":                         {ok, disabled, pendingDeletion, pendingImport},
	"VerifyMac":                           {ok, disabled, pendingDeletion, pendingImport},
	"DeriveSharedSecret":                  {ok, disabled, pendingDeletion, pendingImport},
	"Encapsulate":                         {ok, disabled, pendingDeletion, pendingImport},
	"Decapsulate":                         {ok, disabled, pendingDeletion, pendingImport},
	"DescribeKey":                         {ok, ok, ok, ok},
	"GetKeyPolicy":                        {ok, ok, ok, ok},
	"PutKeyPolicy":                        {ok, ok, ok, ok},
	"ListKeyPolicies":                     {ok, ok, ok, ok},
	"ListResourceTags":                    {ok, ok, ok, ok},
	"ListAliases":                         {ok, ok, ok, ok},
	"ListKeyRotations":                    {ok, ok, ok, ok},
	"GetKeyRotationStatus":                {ok, ok, ok, ok},
	"GetKeyLastUsage":                     {ok, ok, ok, ok},
	"DeleteAlias":                         {ok, ok, ok, ok},
	"ListGrants":                          {ok, ok, ok, ok},
	"RetireGrant":                         {ok, ok, ok, ok},
	"RevokeGrant":                         {ok, ok, ok, ok},
	"CreateGrant":                         {ok, disabled, pendingDeletion, pendingImport},
	"CreateAlias":                         {ok, ok, pendingDeletion, ok},
	"TagResource":                         {ok, ok, pendingDeletion, ok},
	"UntagResource":                       {ok, ok, pendingDeletion, ok},
	"UpdateKeyDescription":                {ok, ok, pendingDeletion, ok},
	"UpdateAlias":                         {ok, ok, pendingDeletion, ok},
	"EnableKey":                           {ok, ok, pendingDeletion, pendingImport},
	"DisableKey":                          {ok, ok, pendingDeletion, pendingImport},
	"EnableKeyRotation":                   {ok, disabled, pendingDeletion, ok},
	"DisableKeyRotation":                  {ok, disabled, pendingDeletion, ok},
	"RotateKeyOnDemand":                   {ok, disabled, pendingDeletion, pendingImport},
	"ScheduleKeyDeletion":                 {ok, ok, pendingDeletion, ok},
	"GetParametersForImport":              {ok, ok, pendingDeletion, ok},
	"ImportKeyMaterial":                   {ok, ok, pendingDeletion, ok},
	"DeleteImportedKeyMaterial":           {ok, ok, ok, ok},
	"ReplicateKey":                        {ok, disabled, pendingDeletion, pendingImport},
	"UpdatePrimaryRegion":                 {ok, disabled, pendingDeletion, pendingImport},
	"CancelKeyDeletion":                   {notPendingDeletion, notPendingDeletion, ok, notPendingDeletion},
}

// checkState says whether the key's state lets operation go on.
func checkState(operation string, k *key) error {
	row, listed := stateTable[operation]
	if !listed {
		return fmt.Errorf("operation %s is missing from the table of key states", operation)
	}
	current := types.KeyState(k.State)
	if current == types.KeyStatePendingReplicaDeletion {
		current = types.KeyStatePendingDeletion
	}
	for i, state := range keyStates {
		if state != current {
			continue
		}
		switch row[i] {
		case disabled:
			return &types.DisabledException{Message: aws.String(k.arn + " is disabled.")}
		case pendingDeletion:
			return invalidState(k.arn, "pending deletion")
		case notPendingDeletion:
			return invalidState(k.arn, "not pending deletion")
		case pendingImport:
			return invalidState(k.arn, "pending import")
		case unlisted:
			return fmt.Errorf("operation %s in state %s is missing from the table of key states", operation, state)
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
