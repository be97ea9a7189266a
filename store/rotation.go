package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// BackingKeySet holds the row versions of all backing keys of a key, by id.
type BackingKeySet map[[16]byte]int64

// firstOnly is the set of a key as it was made, which needs no digest: one, or
// none where material has yet to be imported.
func firstOnly(current [16]byte) BackingKeySet {
	if current == ([16]byte{}) {
		return BackingKeySet{}
	}
	return BackingKeySet{current: 1}
}

// digest is what a key's row, and so its MAC, says of the set: SHA-256 of
//
//	"backing keys" int(number of members) { bytes(id) int(version) }*  sorted by id
//
// in the grammar of sealed rows, or nothing for the set of a key as it was
// made. With it, a member that is left out, one that never belonged to the key
// and an earlier version of one that has changed since all show, for one
// verification of the key's row.
func (s BackingKeySet) digest(current [16]byte) []byte {
	if maps.Equal(s, firstOnly(current)) {
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
	k.CurrentBackingKey = next.ID
	return c.ChangeMaterial(ctx, k, set, next)
}

// ChangeMaterial writes k as UpdateKey does, with backing keys of its that are
// new (version 0; their number is filled in) or have changed. set are those of
// k so far.
func (c *Change) ChangeMaterial(ctx context.Context, k Key, set BackingKeySet, written ...BackingKey) error {
	return c.changeMaterial(ctx, k, set, written, c.InsertBackingKey)
}

func (c *Change) changeMaterial(ctx context.Context, k Key, set BackingKeySet, written []BackingKey, insert insertion) error {
	after := maps.Clone(set)
	for i := range written {
		b := &written[i]
		if b.Version == 0 {
			b.Account, b.Region, b.KeyID = k.Account, k.Region, k.ID
			b.Number = int32(len(after)) // #nosec G115 -- a key is not rotated 2^31 times
		}
		after[b.ID] = b.Version + 1
	}
	return c.writeMaterial(ctx, k, after, written, insert)
}

// insertion is how a new backing key is written: with a budget or without.
type insertion func(context.Context, BackingKey) error

// DropMaterial writes k as UpdateKey does and removes dropped, the newest of
// its backing keys, with its budget: drop it from all related keys.
func (c *Change) DropMaterial(ctx context.Context, k Key, set BackingKeySet, dropped BackingKey) error {
	after := maps.Clone(set)
	delete(after, dropped.ID)
	c.queue(anyRows, "DELETE FROM encryption_budgets WHERE backing_key = $1", dropped.ID)
	c.queue(oneRow, "DELETE FROM backing_keys WHERE account = $1 AND region = $2 AND id = $3 AND version = $4",
		k.Account, k.Region, dropped.ID, dropped.Version)
	return c.writeMaterial(ctx, k, after, nil, nil)
}

func (c *Change) writeMaterial(ctx context.Context, k Key, after BackingKeySet, written []BackingKey, insert insertion) error {
	k.BackingKeySet = after.digest(k.CurrentBackingKey)
	if err := c.UpdateKey(ctx, k); err != nil {
		return err
	}
	for _, b := range written {
		write := insert
		if b.Version > 0 {
			write = c.updateBackingKey
		}
		if err := write(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (c *Change) updateBackingKey(ctx context.Context, b BackingKey) error {
	return c.update(ctx, &b, &b.Version, backingKeySQL)
}

// KeysWithExpiredMaterial returns up to limit keys after the key after of whose
// imported material some has expired and is still there. It is a hint.
func (db *DB) KeysWithExpiredMaterial(ctx context.Context, now time.Time, after KeyRef, limit int) ([]KeyRef, error) {
	rows, _ := db.pool.Query(ctx, `
		SELECT DISTINCT account, region, key_id FROM backing_keys
		WHERE expires <= $1 AND ekt <> '' AND (account, region, key_id) > ($2, $3, $4)
		ORDER BY account, region, key_id LIMIT $5`, now, after.Account, after.Region, after.ID, limit)
	due, err := pgx.CollectRows(rows, pgx.RowToStructByPos[KeyRef])
	if err != nil {
		return nil, fmt.Errorf("looking for expired key material: %w", fault(err))
	}
	return due, nil
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
