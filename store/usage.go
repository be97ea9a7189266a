package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// KeyUsage is the newest successful cryptographic operation with a key. It is
// a hint, not sealed: the audit log is the authority.
type KeyUsage struct {
	Key       KeyRef
	Operation string
	Used      time.Time
	EventID   string // of the audit record
	RequestID string
}

// NoteUsage keeps each of usages, no two of one key, unless a newer one of its
// key is kept already, in one statement.
func (db *DB) NoteUsage(ctx context.Context, usages []KeyUsage) error {
	if len(usages) == 0 {
		return nil
	}
	// In one order, so that hosts which write at once do not deadlock.
	slices.SortFunc(usages, func(a, b KeyUsage) int {
		return cmp.Or(cmp.Compare(a.Key.Account, b.Key.Account), cmp.Compare(a.Key.Region, b.Key.Region), cmp.Compare(a.Key.ID, b.Key.ID))
	})
	var accounts, regions, ids, operations, events, requests []string
	var times []time.Time
	for _, u := range usages {
		accounts, regions, ids = append(accounts, u.Key.Account), append(regions, u.Key.Region), append(ids, u.Key.ID)
		operations, times = append(operations, u.Operation), append(times, u.Used)
		events, requests = append(events, u.EventID), append(requests, u.RequestID)
	}
	// Not for a key that was deleted meanwhile.
	_, err := db.pool.Exec(ctx, `
		INSERT INTO key_last_usage AS l (account, region, key_id, operation, used, event_id, request_id)
		SELECT u.* FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[])
			AS u (account, region, key_id, operation, used, event_id, request_id)
		WHERE EXISTS (SELECT FROM keys k WHERE k.account = u.account AND k.region = u.region AND k.id = u.key_id)
		ORDER BY u.account COLLATE "C", u.region COLLATE "C", u.key_id COLLATE "C"
		ON CONFLICT (account, region, key_id) DO UPDATE
		SET operation = excluded.operation, used = excluded.used, event_id = excluded.event_id, request_id = excluded.request_id
		WHERE l.used < excluded.used`,
		accounts, regions, ids, operations, times, events, requests)
	if err != nil {
		return fmt.Errorf("noting last uses of keys: %w", fault(err))
	}
	return nil
}

// LastUsage returns the newest use of a key that has been noted, with a zero
// time if there is none, and since when uses are noted.
func (db *DB) LastUsage(ctx context.Context, key KeyRef) (usage KeyUsage, since time.Time, err error) {
	err = db.pool.QueryRow(ctx, "SELECT since FROM key_usage_tracking").Scan(&since)
	if err != nil {
		return KeyUsage{}, time.Time{}, fmt.Errorf("reading since when uses are noted: %w", fault(err))
	}
	usage.Key = key
	err = db.pool.QueryRow(ctx, `
		SELECT operation, used, event_id, request_id FROM key_last_usage
		WHERE account = $1 AND region = $2 AND key_id = $3`, key.Account, key.Region, key.ID).
		Scan(&usage.Operation, &usage.Used, &usage.EventID, &usage.RequestID)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return KeyUsage{}, time.Time{}, fmt.Errorf("reading the last use of a key: %w", fault(err))
	}
	return usage, since, nil
}
