package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/store"
)

const (
	defaultRotationPeriod = 365 // days

	// maxOnDemandRotations is AWS's quota per key.
	maxOnDemandRotations = 25

	// onDemandDistance is how near to an automatic rotation AWS refuses one on
	// demand.
	onDemandDistance = 20 * time.Minute

	day = 24 * time.Hour
)

// EnableKeyRotation has a key rotated every so many days, counted from now.
// A call that says again what holds already leaves the schedule as it is: a
// rotation must not be put off by a client that repeats itself.
func (s *Service) EnableKeyRotation(ctx context.Context, call *Call, in *awskms.EnableKeyRotationInput) (*awskms.EnableKeyRotationOutput, error) {
	days := int32(defaultRotationPeriod)
	if in.RotationPeriodInDays != nil {
		days = *in.RotationPeriodInDays
	}
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		if err := s.checkSchedule(k); err != nil {
			return err
		}
		if k.RotationPeriodInDays != days {
			next := s.now().UTC().Add(time.Duration(days) * day)
			k.RotationPeriodInDays, k.NextRotation = days, &next
		}
		return nil
	})
	return &awskms.EnableKeyRotationOutput{}, err
}

// DisableKeyRotation ends automatic rotation. Old backing keys stay.
func (s *Service) DisableKeyRotation(ctx context.Context, call *Call, in *awskms.DisableKeyRotationInput) (*awskms.DisableKeyRotationOutput, error) {
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		if err := s.checkSchedule(k); err != nil {
			return err
		}
		k.RotationPeriodInDays, k.NextRotation = 0, nil
		return nil
	})
	return &awskms.DisableKeyRotationOutput{}, err
}

// GetKeyRotationStatus shows whether and when a key rotates. A key that is
// pending deletion does not; it has its schedule back when that is cancelled.
func (s *Service) GetKeyRotationStatus(ctx context.Context, call *Call, in *awskms.GetKeyRotationStatusInput) (*awskms.GetKeyRotationStatusOutput, error) {
	var k, primary *key
	err := s.change(ctx, call, func() (err error) { // again, if a replica has become the primary key
		if k, err = s.authorizeKey(ctx, call, "kms:GetKeyRotationStatus", *in.KeyId, keyOnly); err != nil {
			return err
		}
		primary, err = s.primaryOf(ctx, k)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &awskms.GetKeyRotationStatusOutput{KeyId: aws.String(k.arn)}
	if primary.RotationPeriodInDays > 0 && !toBeDeleted(k) && !toBeDeleted(primary) {
		out.KeyRotationEnabled = true
		out.RotationPeriodInDays = aws.Int32(primary.RotationPeriodInDays)
		out.NextRotationDate = primary.NextRotation
	}
	return out, nil
}

// RotateKeyOnDemand gives a key a new backing key at once, whatever its
// schedule, which does not change. AWS does it in the background; here it is
// done when it is answered. Another host may seal one more call under the
// backing key before, which it finds out when it commits the audit record.
func (s *Service) RotateKeyOnDemand(ctx context.Context, call *Call, in *awskms.RotateKeyOnDemandInput) (*awskms.RotateKeyOnDemandOutput, error) {
	out := &awskms.RotateKeyOnDemandOutput{}
	err := s.change(ctx, call, func() error {
		k, err := s.authorizeKey(ctx, call, "kms:RotateKeyOnDemand", *in.KeyId, keyOnly)
		if err != nil {
			return err
		}
		if err := s.checkOnDemand(k); err != nil {
			return err
		}
		row := k.Key
		row.OnDemandRotations++
		rotation := s.rotation
		if k.Origin == string(types.OriginTypeExternal) {
			rotation = s.importedRotation
		}
		r, err := rotation(ctx, k, row, types.RotationTypeOnDemand)
		if err != nil {
			return err
		}
		out.KeyId = aws.String(k.arn)
		call.answeredKey(k.arn)
		return s.commit(ctx, call, r.change, r.events...)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Service) checkOnDemand(k *key) error {
	if err := s.checkNotReplica(&k.Key); err != nil {
		return err
	}
	if k.Spec != string(types.KeySpecSymmetricDefault) {
		return &types.UnsupportedOperationException{} // AWS's has no text
	}
	if err := s.checkAutomatic(&k.Key); err != nil && k.Origin != string(types.OriginTypeExternal) {
		return err
	}
	if k.OnDemandRotations >= maxOnDemandRotations {
		return limitExceeded("The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: %s", k.arn)
	}
	if k.NextRotation != nil && s.now().Add(onDemandDistance).After(*k.NextRotation) {
		return &types.ConflictException{Message: aws.String("An automatic rotation of " + k.arn + " is under way or begins within 20 minutes.")}
	}
	return nil
}

// checkSchedule refuses keys that have no schedule of their own.
func (s *Service) checkSchedule(k *store.Key) error {
	if err := s.checkAutomatic(k); err != nil {
		return err
	}
	return s.checkNotReplica(k)
}

// checkAutomatic refuses keys that AWS does not rotate by itself.
func (s *Service) checkAutomatic(k *store.Key) error {
	arn := s.keyARN(k.Account, k.Region, k.ID)
	if k.Spec != string(types.KeySpecSymmetricDefault) {
		return unsupported("%s key spec is %s which is not valid for this operation.", arn, k.Spec)
	}
	if k.Origin != string(types.OriginTypeAwsKms) {
		return unsupported("%s origin is %s which is not valid for this operation.", arn, k.Origin)
	}
	return nil
}

// rotatesItself says whether Trent can give k a new backing key unasked.
func rotatesItself(k *key) bool {
	return k.Spec == string(types.KeySpecSymmetricDefault) && k.Origin == string(types.OriginTypeAwsKms)
}

// rotated is a rotation that is ready to be committed.
type rotated struct {
	change *store.Change
	events []*audit.Record // RotateKey, in each Region
}

// rotation has the HSM make a new backing key for k, whose row is to become
// row, and gathers what is written for it: the new backing key, the key's row
// and the audit event are committed together or not at all. Of what is made
// before that, nothing stays: the HSM's object is gone once it is wrapped.
// Two hosts that rotate the same k conflict on its row's version.
func (s *Service) rotation(ctx context.Context, k *key, row store.Key, kind types.RotationType) (rotated, error) {
	now := s.now().UTC()
	next, err := s.newBackingKey(ctx, row, now)
	if err != nil {
		return rotated{}, err
	}
	next.RotationType, next.Rotated = string(kind), &now
	change := s.db.NewChange()
	if err := change.RotateKey(ctx, row, k.backingKeys, next); err != nil {
		return rotated{}, fmt.Errorf("sealing a rotation: %w", err)
	}
	failpoint.Hit("rotation.sealed")
	return s.rotatedTo(ctx, change, k, next, kind, now)
}

// rotatedTo completes a rotation by what records it, and by k's related keys.
func (s *Service) rotatedTo(ctx context.Context, change *store.Change, k *key, next store.BackingKey, kind types.RotationType, now time.Time) (rotated, error) {
	event, err := s.rotationEvent(k, next, kind, now)
	if err != nil {
		return rotated{}, err
	}
	r := rotated{change, []*audit.Record{event}}
	return r, s.shareRotation(ctx, &r, k, next, kind, now)
}

// importedRotation is rotation with the imported material that is pending.
func (s *Service) importedRotation(ctx context.Context, k *key, row store.Key, kind types.RotationType) (rotated, error) {
	all, err := s.db.BackingKeys(ctx, k.Key, k.backingKeys)
	if err != nil {
		return rotated{}, err
	}
	now := s.now().UTC()
	for i, next := range all {
		if !next.Pending || gone(next, now) {
			continue
		}
		next.Pending, next.RotationType, next.Rotated = false, string(kind), &now
		all[i] = next
		row.CurrentBackingKey = next.ID
		restate(&row, all)
		change := s.db.NewChange()
		if err := change.ChangeMaterial(ctx, row, k.backingKeys, next); err != nil {
			return rotated{}, fmt.Errorf("sealing a rotation: %w", err)
		}
		return s.rotatedTo(ctx, change, k, next, kind, now)
	}
	return rotated{}, nothingPending(k.arn)
}

func nothingPending(arn string) error {
	return &types.KMSInvalidStateException{Message: aws.String("No available key material pending rotation for the key: " + arn + ".")}
}

// rotationEvent is the service event that CloudTrail has of a rotation.
func (s *Service) rotationEvent(k *key, next store.BackingKey, kind types.RotationType, now time.Time) (*audit.Record, error) {
	details, err := json.Marshal(struct {
		RotationType          types.RotationType `json:"rotationType"`
		KeyOrigin             string             `json:"keyOrigin"`
		PreviousKeyMaterialID string             `json:"previousKeyMaterialId"`
		CurrentKeyMaterialID  string             `json:"currentKeyMaterialId"`
		KeyID                 string             `json:"keyId"`
	}{kind, k.Origin, k.backing.MaterialID, next.MaterialID, k.ID})
	if err != nil {
		return nil, fmt.Errorf("encoding a rotation's event: %w", err)
	}
	return s.serviceEvent("RotateKey", k.Account, k.Region, k.arn, details, now), nil
}

// rotateDue rotates the keys whose time has come. Who asks for it, how often
// and on how many hosts is all the same: what is rotated is decided by the
// sealed rows and the clock, and the commit of a rotation moves the date.
func (s *Service) rotateDue(ctx context.Context) error {
	find := func(after store.KeyRef, limit int) ([]store.KeyRef, error) {
		return s.db.KeysDueForRotation(ctx, s.now(), after, limit)
	}
	// What a long downtime has left over is the next sweep's: it is near.
	return slice(&s.cursors.rotating, within(ctx, 30*time.Second), find, func(ref store.KeyRef) error {
		if err := s.rotateIfDue(ctx, ref); err != nil {
			return fmt.Errorf("rotating key %s: %w", ref.ID, err)
		}
		return nil
	})
}

func (s *Service) rotateIfDue(ctx context.Context, ref store.KeyRef) error {
	return s.rotateUnasked(ctx, keyRef{account: ref.Account, region: ref.Region, id: ref.ID}, "it is due", func(k *key) bool {
		return k.NextRotation != nil && !s.now().Before(*k.NextRotation)
	})
}

// renew replaces k's backing key because of how much it has encrypted: see
// budgets.
func (s *Service) renew(ctx context.Context, k *key) error {
	ref := keyRef{account: k.Account, region: k.Region, id: k.ID}
	return s.rotateUnasked(ctx, ref, "encryption budget", func(fresh *key) bool {
		return fresh.backing.ID == k.backing.ID
	})
}

// rotateUnasked rotates the key that ref names if it is enabled and, by its
// rows as they are now, still needs it.
func (s *Service) rotateUnasked(ctx context.Context, ref keyRef, why string, needed func(*key) bool) error {
	k, err := s.cache.load(ctx, s, ref)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if k.State != string(types.KeyStateEnabled) || !rotatesItself(k) || !needed(k) {
		return nil
	}
	seq, err := s.rotateNow(ctx, k)
	if errors.Is(err, store.ErrConflict) {
		return nil // another host was first, or the key was changed: the next sweep looks again
	}
	if err != nil {
		return err
	}
	s.log.Info("rotated key", "key", k.arn, "why", why, "due", k.NextRotation)
	if err := s.cache.advance(ctx, seq); err != nil {
		s.log.Warn("following own rotation", "key", k.arn, "error", err)
	}
	return nil
}

// rotateNow gives k, and its related keys, a new backing key. A replica that is
// in use needs it whatever the state of its primary key.
func (s *Service) rotateNow(ctx context.Context, k *key) (seq int64, err error) {
	if k, err = s.primaryOf(ctx, k); err != nil {
		return 0, err
	}
	row := k.Key
	row.NextRotation = followingRotation(row, s.now().UTC())
	r, err := s.rotation(ctx, k, row, types.RotationTypeAutomatic)
	if err != nil {
		return 0, err
	}
	return s.audit.Commit(ctx, r.events[0], r.change, r.events[1:]...)
}

// followingRotation is the date after k's next rotation: by the schedule, or a
// period from now if that has been missed too. What was missed while hosts
// were down or the key was disabled is made up for by one rotation.
func followingRotation(k store.Key, now time.Time) *time.Time {
	if k.NextRotation == nil || now.Before(*k.NextRotation) {
		return k.NextRotation
	}
	period := time.Duration(k.RotationPeriodInDays) * day
	next := k.NextRotation.Add(period)
	if !next.After(now) {
		next = now.Add(period)
	}
	return &next
}
