package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trent-kms/trent/failpoint"
)

// BackingKey is one version of a key's material, wrapped by the HSM.
type BackingKey struct {
	Account, Region, KeyID string
	ID                     [16]byte // random; what ciphertexts carry. Related keys share it
	Version                int64
	EKT                    []byte
	MaterialID             string // AWS's KeyMaterialId, 64 hex digits
	Provenance             []byte // JSON
	PublicKey              []byte // nil for a symmetric key
	Created                time.Time

	Number       int32      // 0 for a key's first, then counting up
	RotationType string     // AWS's RotationType, "" for a key's first
	Rotated      *time.Time // when it became the current one; nil for a key's first

	// Of imported material; its EKT is nil while it is deleted or has expired.
	Pending     bool       // not the current one yet
	Expires     *time.Time // nil: never
	Description string
}

func (k *BackingKey) table() string    { return "backing_keys" }
func (k *BackingKey) identity() string { return fmt.Sprintf("%s/%x", k.Region, k.ID) }
func (k *BackingKey) columns() []column {
	return []column{
		{"account", &k.Account}, {"region", &k.Region}, {"key_id", &k.KeyID}, {"id", &k.ID},
		{"version", &k.Version}, {"ekt", &k.EKT}, {"material_id", &k.MaterialID},
		{"provenance", &k.Provenance}, {"public_key", &k.PublicKey}, {"created", &k.Created},
		{"number", &k.Number}, {"rotation_type", &k.RotationType}, {"rotated", &k.Rotated},
		{"pending", &k.Pending}, {"expires", &k.Expires}, {"description", &k.Description},
	}
}

func (k *BackingKey) later() []string {
	return []string{"number", "rotation_type", "rotated", "pending", "expires", "description"}
}

var backingKeySQL = statementsFor(&BackingKey{}, "account", "region", "id")

// BackingKey returns a backing key, or ErrNotFound. The caller still has to
// compare KeyID with the key it means.
func (db *DB) BackingKey(ctx context.Context, account, region string, id [16]byte) (BackingKey, error) {
	return loadOne[BackingKey](ctx, db, backingKeySQL.selectAll, equal{"account", account}, equal{"region", region}, equal{"id", id})
}

// OneOfEach returns, for each generation and class of EKTs (see ektGeneration)
// that there are, one of the backing keys.
func (db *DB) OneOfEach(ctx context.Context) ([]BackingKey, error) {
	return load[BackingKey](ctx, db, backingKeySQL.selectAll+`WHERE (account, region, id) IN (
		SELECT DISTINCT ON (substring(ekt from 2 for 5)) account, region, id FROM backing_keys
		WHERE length(ekt) > 5 ORDER BY substring(ekt from 2 for 5), account, region, id)`)
}

// InsertBackingKey adds a backing key, and its encryption budget with nothing
// reserved.
func (c *Change) InsertBackingKey(ctx context.Context, k BackingKey) error {
	if err := c.insertShared(ctx, k); err != nil {
		return err
	}
	b := budget{BackingKey: k.ID}
	return c.insert(ctx, &b, &b.Version, budgetSQL)
}

// insertShared adds a backing key whose budget there is already: it counts for
// all Regions.
func (c *Change) insertShared(ctx context.Context, k BackingKey) error {
	c.touched(k.Account, k.Region, KindKey, k.KeyID)
	return c.insert(ctx, &k, &k.Version, backingKeySQL)
}

// budget counts the encryptions that hosts have reserved under a backing key:
// with random 96-bit IVs, NIST SP 800-38D §8.3 allows 2^32.
type budget struct {
	BackingKey [16]byte
	Version    int64
	Reserved   int64
}

func (b *budget) table() string    { return "encryption_budgets" }
func (b *budget) identity() string { return fmt.Sprintf("%x", b.BackingKey) }
func (b *budget) columns() []column {
	return []column{{"backing_key", &b.BackingKey}, {"version", &b.Version}, {"reserved", &b.Reserved}}
}

var budgetSQL = statementsFor(&budget{}, "backing_key")

// ReserveEncryptions reserves the next block encryptions under a backing key,
// and returns them as the half-open range [from, to), committed. The last
// block is shorter; past limit it answers ErrBudgetExhausted. What a crash
// leaves of a block counts as spent.
func (db *DB) ReserveEncryptions(ctx context.Context, hbkID [16]byte, block, limit int64) (from, to int64, err error) {
	if block <= 0 {
		return 0, 0, errors.New("reserving encryptions: block must be positive")
	}
	// Each round that loses was won by another host.
	for range 100 {
		from, to, err = db.reserveOnce(ctx, hbkID, block, limit)
		if !errors.Is(err, ErrConflict) {
			return from, to, err
		}
	}
	return 0, 0, fmt.Errorf("reserving encryptions: %w", err)
}

func (db *DB) reserveOnce(ctx context.Context, hbkID [16]byte, block, limit int64) (from, to int64, err error) {
	b, err := loadOne[budget](ctx, db, budgetSQL.selectAll, equal{"backing_key", hbkID})
	if errors.Is(err, ErrNotFound) {
		return 0, 0, db.budgetMissing(ctx, hbkID)
	}
	if err != nil {
		return 0, 0, err
	}
	if b.Reserved >= limit {
		return 0, 0, ErrBudgetExhausted
	}
	from, to = b.Reserved, min(b.Reserved+block, limit)
	old := b.Version
	b.Version, b.Reserved = old+1, to
	s, err := db.seal(ctx, &b)
	if err != nil {
		return 0, 0, err
	}
	tag, err := db.pool.Exec(ctx, budgetSQL.update, append(arguments(&b, s), old)...)
	if err != nil {
		return 0, 0, fmt.Errorf("reserving encryptions: %w", fault(err))
	}
	if tag.RowsAffected() == 0 {
		return 0, 0, ErrConflict
	}
	failpoint.Hit("budget.reserved")
	return from, to, nil
}

// budgetMissing tells a backing key that was deleted from a budget that
// someone removed to start the count anew.
func (db *DB) budgetMissing(ctx context.Context, hbkID [16]byte) error {
	var exists bool
	err := db.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM backing_keys WHERE id = $1)", hbkID).Scan(&exists)
	if err != nil {
		return fmt.Errorf("looking for the backing key of a budget: %w", fault(err))
	}
	if !exists {
		return ErrNotFound
	}
	return db.tamperedRow("encryption_budgets", fmt.Sprintf("%x", hbkID), "it is missing")
}
