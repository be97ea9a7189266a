package kms

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/store"
)

// The waiting period before a key is deleted, in days.
const (
	minPendingWindow     = 7
	maxPendingWindow     = 30
	defaultPendingWindow = 30
)

// ScheduleKeyDeletion makes a key unusable at once and has it deleted when
// the waiting period is over.
func (s *Service) ScheduleKeyDeletion(ctx context.Context, call *Call, in *awskms.ScheduleKeyDeletionInput) (*awskms.ScheduleKeyDeletionOutput, error) {
	out := &awskms.ScheduleKeyDeletionOutput{}
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		days := int32(defaultPendingWindow)
		if in.PendingWindowInDays != nil {
			days = *in.PendingWindowInDays
		}
		if days < minPendingWindow || days > maxPendingWindow {
			return validation("PendingWindowInDays must be between %d and %d.", minPendingWindow, maxPendingWindow)
		}
		s.awaitDeletion(k, days)
		arn := s.keyARN(k.Account, k.Region, k.ID)
		*out = awskms.ScheduleKeyDeletionOutput{
			KeyId:               aws.String(arn),
			DeletionDate:        k.DeletionDate,
			KeyState:            types.KeyState(k.State),
			PendingWindowInDays: aws.Int32(days),
		}
		shown := ""
		if k.DeletionDate != nil { // CloudTrail shows dates as text
			shown = fmt.Sprintf(`"deletionDate":%q,`, k.DeletionDate.Format("Jan 2, 2006, 3:04:05 PM"))
		}
		call.response = fmt.Appendf(nil, `{"keyId":%q,"keyState":%q,%s"pendingWindowInDays":%d}`, arn, k.State, shown, days)
		return nil
	})
	return out, err
}

// awaitDeletion begins the waiting period; that of a primary key with replicas
// begins only when the last of these is gone.
func (s *Service) awaitDeletion(k *store.Key, days int32) {
	k.State, k.DeletionDate, k.PendingWindowInDays = string(types.KeyStatePendingReplicaDeletion), nil, days
	if !k.Primary() || len(k.ReplicaRegions) == 0 {
		due := s.now().UTC().Add(time.Duration(days) * day)
		k.State, k.DeletionDate = string(types.KeyStatePendingDeletion), &due
	}
}

// toBeDeleted reports whether k's deletion is scheduled.
func toBeDeleted(k *key) bool {
	return k.State == string(types.KeyStatePendingDeletion) || k.State == string(types.KeyStatePendingReplicaDeletion)
}

// CancelKeyDeletion takes a scheduled deletion back. The key is then Disabled.
func (s *Service) CancelKeyDeletion(ctx context.Context, call *Call, in *awskms.CancelKeyDeletionInput) (*awskms.CancelKeyDeletionOutput, error) {
	k, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		if k.DeletionDate != nil && !s.now().Before(*k.DeletionDate) {
			return notFound("Key '%s' does not exist", s.keyARN(k.Account, k.Region, k.ID))
		}
		k.State = string(types.KeyStateDisabled)
		if k.MaterialMissing {
			k.State = string(types.KeyStatePendingImport)
		}
		k.DeletionDate, k.PendingWindowInDays = nil, 0
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &awskms.CancelKeyDeletionOutput{KeyId: aws.String(k.arn)}, nil
}

// deleteDue deletes the keys whose waiting period is over. Who asks for it is
// only a hint: what is deleted is decided by the sealed rows and the clock.
func (s *Service) deleteDue(ctx context.Context) error {
	find := func(after store.KeyRef, limit int) ([]store.KeyRef, error) {
		return s.db.KeysDueForDeletion(ctx, s.now(), after, limit)
	}
	return slice(&s.cursors.deleting, within(ctx, 15*time.Second), find, func(ref store.KeyRef) error {
		if err := passing(s.deleteKey(ctx, ref)); err != nil { // it may have been cancelled meanwhile
			return fmt.Errorf("deleting key %s: %w", ref.ID, err)
		}
		return nil
	})
}

func (s *Service) deleteKey(ctx context.Context, ref store.KeyRef) error {
	k, err := s.db.Key(ctx, ref.Account, ref.Region, ref.ID)
	if err != nil {
		return err
	}
	if k.State != string(types.KeyStatePendingDeletion) || k.DeletionDate == nil || s.now().Before(*k.DeletionDate) {
		return nil
	}
	arn := s.keyARN(k.Account, k.Region, k.ID)
	change := s.db.NewChange()
	if err := change.DeleteKey(ctx, k); err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	if err := s.leaveRelated(ctx, change, k); err != nil {
		return err
	}
	event := s.serviceEvent("DeleteKey", k.Account, k.Region, arn, stringMember("keyId", k.ID), s.now().UTC())
	if _, err = s.audit.Commit(ctx, event, change); err != nil {
		return err
	}
	s.log.Info("deleted key", "key", arn, "due", k.DeletionDate)
	return nil
}

// leaveRelated adds to change what the keys that are related to k lose by its
// deletion. A primary key that has waited for its last replica begins its own
// waiting period.
func (s *Service) leaveRelated(ctx context.Context, change *store.Change, k store.Key) error {
	related, err := s.db.RelatedKeys(ctx, k)
	if err != nil || len(related) == 0 {
		return err
	}
	if k.Primary() {
		return fmt.Errorf("multi-Region primary key %s still has replicas in %v", k.ID, k.ReplicaRegions)
	}
	replicas := slices.DeleteFunc(slices.Clone(k.ReplicaRegions), func(region string) bool { return region == k.Region })
	rows := withRegions(k, related, k.PrimaryRegion, replicas)[1:]
	for i := range rows {
		if rows[i].State == string(types.KeyStatePendingReplicaDeletion) {
			s.awaitDeletion(&rows[i], rows[i].PendingWindowInDays)
		}
	}
	if err := change.UpdateKeys(ctx, rows...); err != nil {
		return fmt.Errorf("sealing related keys: %w", err)
	}
	return nil
}

// serviceEvent is the record of what is done to a key without a caller.
func (s *Service) serviceEvent(name, account, region, arn string, details []byte, now time.Time) *audit.Record {
	return &audit.Record{
		UserIdentity:        audit.UserIdentity{AccountID: account, InvokedBy: "AWS Internal"},
		EventTime:           now,
		EventName:           name,
		EventType:           "AwsServiceEvent",
		AWSRegion:           region,
		SourceIPAddress:     "AWS Internal",
		UserAgent:           "AWS Internal",
		ServiceEventDetails: details,
		Resources:           []audit.Resource{{AccountID: account, ARN: arn}},
		RecipientAccountID:  account,
	}
}
