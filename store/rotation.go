package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// BackingKeySet holds the row versions of all backing keys of a key, by id.
type BackingKeySet map[[16]byte]int64

// firstOnly is the set of a key as it was made, which needs no digest.
func firstOnly(current [16]byte) BackingKeySet { return BackingKeySet{current: 1} }

// digest is what a key's row, and so its MAC, says of the set: SHA-256 of
//
//	"backing keys" int(number of members) { bytes(id) int(version) }*  sorted by id
//
// in the grammar of sealed rows, or nothing for the set of a key as it was
// made. With it, a member that is left out, one that never belonged to the key
// and an earlier version of one that has changed since all show, for one
// verification of the key's row.
func (s BackingKeySet) digest(current [16]byte) []byte {
	if len(s) == 1 && s[current] == 1 {
		return nil
	}
	ids := make([][16]byte, 0, len(s))
	for id := range s {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	var m message
	m.text("backing keys")
	m.int(int64(len(ids)))
	for _, id := range ids {
		m.bytes(id[:])
		m.int(s[id])
	}
	sum := sha256.Sum256(m.b)
	return sum[:]
}

// KeyWithSet returns a key, or ErrNotFound, and the set of its backing keys as
// the key's row binds it. A key that was never rotated costs one query, any
// other two.
func (db *DB) KeyWithSet(ctx context.Context, account, region, id string) (Key, BackingKeySet, error) {
	var before int64
	for {
		k, err := db.Key(ctx, account, region, id)
		if err != nil {
			return Key{}, nil, err
		}
		if len(k.BackingKeySet) == 0 {
			return k, firstOnly(k.CurrentBackingKey), nil
		}
		set, err := db.backingKeySet(ctx, k)
		if err != nil {
			return Key{}, nil, err
		}
		if bytes.Equal(set.digest(k.CurrentBackingKey), k.BackingKeySet) {
			return k, set, nil
		}
		// A rotation may have come between the two queries: then the key's
		// row is another one now.
		if k.Version == before {
			return Key{}, nil, db.tamperedRow("backing_keys", k.identity(), "the key's backing keys are not those that its row names")
		}
		before = k.Version
	}
}

func (db *DB) backingKeySet(ctx context.Context, k Key) (BackingKeySet, error) {
	rows, _ := db.pool.Query(ctx, `
		SELECT id, version FROM backing_keys
		WHERE account = $1 AND region = $2 AND key_id = $3`, k.Account, k.Region, k.ID)
	set := BackingKeySet{}
	var id [16]byte
	var version int64
	_, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error {
		set[id] = version
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading which backing keys a key has: %w", fault(err))
	}
	return set, nil
}

// BackingKeys returns all backing keys of k, the first one first, verified to
// be those of set, which KeyWithSet returned with k. ErrConflict if the key
// has changed since.
func (db *DB) BackingKeys(ctx context.Context, k Key, set BackingKeySet) ([]BackingKey, error) {
	all, err := load[BackingKey](ctx, db,
		backingKeySQL.selectAll+"WHERE account = $1 AND region = $2 AND key_id = $3 ORDER BY number", k.Account, k.Region, k.ID)
	if err != nil {
		return nil, err
	}
	found := BackingKeySet{}
	for _, b := range all {
		found[b.ID] = b.Version
	}
	if bytes.Equal(found.digest(k.CurrentBackingKey), set.digest(k.CurrentBackingKey)) {
		return all, nil
	}
	if now, err := db.Key(ctx, k.Account, k.Region, k.ID); err != nil || now.Version != k.Version {
		return nil, ErrConflict
	}
	return nil, db.tamperedRow("backing_keys", k.identity(), "the key's backing keys are not those that its row names")
}

// RotateKey makes next the current backing key of k, whose backing keys so far
// are set, and writes k as UpdateKey does. It fills in what ties the two
// together: next's number, and k's current backing key and set.
func (c *Change) RotateKey(ctx context.Context, k Key, set BackingKeySet, next BackingKey) error {
	next.Account, next.Region, next.KeyID = k.Account, k.Region, k.ID
	next.Number = int32(len(set)) // #nosec G115 -- a key is not rotated 2^31 times
	grown := BackingKeySet{next.ID: 1}
	for id, version := range set {
		grown[id] = version
	}
	k.CurrentBackingKey = next.ID
	k.BackingKeySet = grown.digest(next.ID)
	if err := c.UpdateKey(ctx, k); err != nil {
		return err
	}
	return c.InsertBackingKey(ctx, next)
}

// KeysDueForRotation returns up to limit keys after the key after whose next
// rotation has come, by account, region and id. It is a hint: load the key and
// look before rotating it.
func (db *DB) KeysDueForRotation(ctx context.Context, now time.Time, after KeyRef, limit int) ([]KeyRef, error) {
	rows, _ := db.pool.Query(ctx, `
		SELECT account, region, id FROM keys
		WHERE next_rotation <= $1 AND state = 'Enabled' AND (account, region, id) > ($2, $3, $4)
		ORDER BY account, region, id LIMIT $5`, now, after.Account, after.Region, after.ID, limit)
	due, err := pgx.CollectRows(rows, pgx.RowToStructByPos[KeyRef])
	if err != nil {
		return nil, fmt.Errorf("looking for keys due for rotation: %w", fault(err))
	}
	return due, nil
}
