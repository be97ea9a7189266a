package kms

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/store"
)

// usageInterval is how often a host writes the last uses of keys. What it has
// not written when it is killed is not noted; the audit log has it.
const usageInterval = 5 * time.Second

// tracked are the operations that count as uses of a key.
var tracked = types.KeyLastUsageTrackingOperation("").Values()

// usages holds the last use of each key that this host has used since it last
// wrote them to the database.
type usages struct {
	db *store.DB

	mu      sync.Mutex
	last    map[keyRef]store.KeyUsage // guarded by mu
	writing map[keyRef]store.KeyUsage // what write has taken; guarded by mu, contents read-only
}

func newUsages(db *store.DB) *usages { return &usages{db: db, last: map[keyRef]store.KeyUsage{}} }

// note keeps that call, which succeeded and was recorded as r, used its keys.
func (u *usages) note(call *Call, r *audit.Record) {
	if len(call.keys) == 0 || !slices.Contains(tracked, types.KeyLastUsageTrackingOperation(call.Operation)) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, ref := range call.keys {
		u.keep(ref, store.KeyUsage{
			Key:       store.KeyRef{Account: ref.account, Region: ref.region, ID: ref.id},
			Operation: call.Operation,
			Used:      r.EventTime,
			EventID:   r.EventID,
			RequestID: r.RequestID,
		})
	}
}

// keep keeps the newer one. u.mu is held.
func (u *usages) keep(ref keyRef, usage store.KeyUsage) {
	if before, found := u.last[ref]; !found || !usage.Used.Before(before.Used) {
		u.last[ref] = usage
	}
}

// of returns the last use of a key that may not be in the database yet.
func (u *usages) of(ref keyRef) (usage store.KeyUsage, found bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if usage, found = u.last[ref]; !found {
		usage, found = u.writing[ref]
	}
	return usage, found
}

// write brings what has been noted to the database. What cannot be written
// waits for the next time. One call at a time.
func (u *usages) write(ctx context.Context) error {
	u.mu.Lock()
	noted := u.last
	u.last, u.writing = make(map[keyRef]store.KeyUsage, len(noted)), noted
	u.mu.Unlock()
	all := make([]store.KeyUsage, 0, len(noted))
	for _, usage := range noted {
		all = append(all, usage)
	}
	err := u.db.NoteUsage(ctx, all)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.writing = nil
	if err != nil {
		for ref, usage := range noted {
			u.keep(ref, usage)
		}
	}
	return err
}

// run writes what is noted every interval until ctx ends, and then once more.
func (u *usages) run(ctx context.Context, interval time.Duration, report func(error)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		write, cancel := context.WithTimeout(context.WithoutCancel(ctx), interval)
		if err := u.write(write); err != nil {
			report(err)
		}
		cancel()
	}
}

// GetKeyLastUsage shows the last successful cryptographic operation with a key
// on any host, as of a few seconds ago, and on this host as of now.
func (s *Service) GetKeyLastUsage(ctx context.Context, call *Call, in *awskms.GetKeyLastUsageInput) (*awskms.GetKeyLastUsageOutput, error) {
	if err := s.refresh(ctx, call); err != nil {
		return nil, err
	}
	k, err := s.authorizeKey(ctx, call, "kms:GetKeyLastUsage", *in.KeyId, keyOnly)
	if err != nil {
		return nil, err
	}
	// In this order: what is not in memory any more is in the database.
	own, found := s.usages.of(keyRef{account: k.Account, region: k.Region, id: k.ID})
	usage, since, err := s.db.LastUsage(ctx, store.KeyRef{Account: k.Account, Region: k.Region, ID: k.ID})
	if err != nil {
		return nil, err
	}
	if found && !own.Used.Before(usage.Used) {
		usage = own
	}
	if k.Created.After(since) {
		since = k.Created
	}
	out := &awskms.GetKeyLastUsageOutput{
		KeyId:             aws.String(k.ID),
		KeyCreationDate:   aws.Time(k.Created),
		TrackingStartDate: aws.Time(since),
		KeyLastUsage:      &types.KeyLastUsageData{},
	}
	if !usage.Used.IsZero() {
		*out.KeyLastUsage = types.KeyLastUsageData{
			Operation:         types.KeyLastUsageTrackingOperation(usage.Operation),
			Timestamp:         aws.Time(usage.Used),
			CloudTrailEventId: aws.String(usage.EventID),
			KmsRequestId:      aws.String(usage.RequestID),
		}
	}
	return out, nil
}
