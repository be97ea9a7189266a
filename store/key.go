package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Tag is a label on a key.
type Tag struct{ Key, Value string }

// Key is a KMS key. Policy and tags live in its row, so that one MAC binds
// them together and an old policy cannot be put back beside a new state.
type Key struct {
	Account, Region, ID string
	Version             int64
	State               string // AWS's KeyState
	Spec                string // AWS's KeySpec
	Usage               string // AWS's KeyUsage
	Origin              string
	Description         string
	Policy              string
	Tags                []Tag // sorted by key
	MultiRegion         bool
	Created             time.Time
	DeletionDate        *time.Time // nil unless deletion is scheduled
	PendingWindowInDays int32
	CurrentBackingKey   [16]byte // id of the BackingKey that encrypts

	RotationPeriodInDays int32      // 0: no automatic rotation
	NextRotation         *time.Time // nil without automatic rotation
	OnDemandRotations    int32      // made so far
	BackingKeySet        []byte     // see BackingKeySet.digest

	MaterialMissing bool       // imported material that the key needs is not there
	MaterialExpires *time.Time // when the first of what is there expires

	// Of a multi-Region key, and the same in the rows of all related keys.
	PrimaryRegion  string
	ReplicaRegions []string // sorted

	GrantCount int32
	GrantPages []byte // see grantPage
}

// KeyRef names a key.
type KeyRef struct{ Account, Region, ID string }

func (k *Key) table() string    { return "keys" }
func (k *Key) identity() string { return k.Account + "/" + k.Region + "/" + k.ID }
func (k *Key) columns() []column {
	return []column{
		{"account", &k.Account}, {"region", &k.Region}, {"id", &k.ID}, {"version", &k.Version},
		{"state", &k.State}, {"spec", &k.Spec}, {"usage", &k.Usage}, {"origin", &k.Origin},
		{"description", &k.Description}, {"policy", &k.Policy}, {"tags", &k.Tags},
		{"multi_region", &k.MultiRegion}, {"created", &k.Created}, {"deletion_date", &k.DeletionDate},
		{"pending_window_in_days", &k.PendingWindowInDays}, {"current_backing_key", &k.CurrentBackingKey},
		{"rotation_period_days", &k.RotationPeriodInDays}, {"next_rotation", &k.NextRotation},
		{"on_demand_rotations", &k.OnDemandRotations}, {"backing_key_set", &k.BackingKeySet},
		{"material_missing", &k.MaterialMissing}, {"material_expires", &k.MaterialExpires},
		{"primary_region", &k.PrimaryRegion}, {"replica_regions", &k.ReplicaRegions},
		{"grant_count", &k.GrantCount}, {"grant_pages", &k.GrantPages},
	}
}

func (k *Key) later() []string {
	return []string{"rotation_period_days", "next_rotation", "on_demand_rotations", "backing_key_set",
		"material_missing", "material_expires", "primary_region", "replica_regions", "grant_count", "grant_pages"}
}

var keySQL = statementsFor(&Key{}, "account", "region", "id")

// Key returns a key, or ErrNotFound.
func (db *DB) Key(ctx context.Context, account, region, id string) (Key, error) {
	return loadOne[Key](ctx, db, keySQL.selectAll, equal{"account", account}, equal{"region", region}, equal{"id", id})
}

// ListKeys returns up to limit key ids after afterID, sorted. Ids alone are not
// verified: they grant nothing.
func (db *DB) ListKeys(ctx context.Context, account, region, afterID string, limit int) ([]string, error) {
	rows, _ := db.pool.Query(ctx, `
		SELECT id FROM keys
		WHERE account = $1 AND region = $2 AND id > $3
		ORDER BY id LIMIT $4`, account, region, afterID, limit)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("listing keys: %w", fault(err))
	}
	return ids, nil
}

// KeysDueForDeletion returns up to limit keys after the key after whose deletion
// date has come, by account, region and id. It is a hint: load the key and look
// before deleting it.
func (db *DB) KeysDueForDeletion(ctx context.Context, now time.Time, after KeyRef, limit int) ([]KeyRef, error) {
	rows, _ := db.pool.Query(ctx, `
		SELECT account, region, id FROM keys
		WHERE deletion_date <= $1 AND (account, region, id) > ($2, $3, $4)
		ORDER BY account, region, id LIMIT $5`, now, after.Account, after.Region, after.ID, limit)
	due, err := pgx.CollectRows(rows, pgx.RowToStructByPos[KeyRef])
	if err != nil {
		return nil, fmt.Errorf("looking for keys due for deletion: %w", fault(err))
	}
	return due, nil
}

// InsertKey adds a key. Commit answers *ErrQuota when the account has
// MaxKeys keys in the region.
func (c *Change) InsertKey(ctx context.Context, k Key) error {
	c.touched(k.Account, k.Region, KindKey, k.ID)
	if err := c.insert(ctx, &k, &k.Version, keySQL); err != nil {
		return err
	}
	c.queue(oneRowOr(&ErrQuota{QuotaKeys}), `
		INSERT INTO account_regions AS r (account, region, key_count) VALUES ($1, $2, 1)
		ON CONFLICT (account, region) DO UPDATE SET key_count = r.key_count + 1
		WHERE r.key_count < $3`, k.Account, k.Region, MaxKeys)
	return nil
}

// UpdateKey replaces the key of version k.Version.
func (c *Change) UpdateKey(ctx context.Context, k Key) error {
	c.touched(k.Account, k.Region, KindKey, k.ID)
	return c.update(ctx, &k, &k.Version, keySQL)
}

// DeleteKey removes the key of version k.Version with its backing keys, those
// budgets that no related key shares, its grants and its aliases. What it
// encrypted cannot be decrypted any more, but by a related key.
func (c *Change) DeleteKey(_ context.Context, k Key) error {
	c.touched(k.Account, k.Region, KindKey, k.ID)
	key := []any{k.Account, k.Region, k.ID}
	c.queue(oneRow, "DELETE FROM keys WHERE account = $1 AND region = $2 AND id = $3 AND version = $4",
		append(key, k.Version)...)
	c.queue(anyRows, `
		DELETE FROM encryption_budgets b USING backing_keys h
		WHERE h.id = b.backing_key AND h.account = $1 AND h.region = $2 AND h.key_id = $3
			AND NOT EXISTS (SELECT FROM backing_keys o WHERE o.id = h.id AND (o.account, o.region) <> ($1, $2))`, key...)
	c.queue(anyRows, "DELETE FROM backing_keys WHERE account = $1 AND region = $2 AND key_id = $3", key...)
	c.queue(anyRows, "DELETE FROM key_last_usage WHERE account = $1 AND region = $2 AND key_id = $3", key...)
	c.queue(anyRows, "DELETE FROM grants WHERE account = $1 AND region = $2 AND key_id = $3", key...)
	c.queue(anyRows, "DELETE FROM grant_pages WHERE account = $1 AND region = $2 AND key_id = $3", key...)
	c.queue(aliasesGone(k.Account, k.Region),
		"DELETE FROM aliases WHERE account = $1 AND region = $2 AND key_id = $3 RETURNING name", key...)
	c.queue(oneRow, "UPDATE account_regions SET key_count = key_count - 1 WHERE account = $1 AND region = $2",
		k.Account, k.Region)
	return nil
}
