// Package store keeps keys, principals, aliases and the audit log in Postgres.
// Postgres is untrusted: every row that grants power or names key material is
// sealed with a MAC made in the HSM over its whole meaning and checked on load.
package store

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

type Sealer interface {
	Sum(ctx context.Context, message []byte) (generation uint32, mac []byte, err error)
	Verify(ctx context.Context, generation uint32, message, mac []byte) error
}

type Config struct {
	URL      string
	MaxConns int32
	Logger   *slog.Logger
	Metrics  prometheus.Registerer
}

type DB struct{ pool *pgxpool.Pool }

type Deployment struct {
	ID                 [16]byte
	Account, Partition string
	State              string // StateInitialising or StateActive
	Version            int64
	Created            time.Time
}

const (
	StateInitialising = "initialising"
	StateActive       = "active"
)

type Principal struct {
	ID, Account, Name, ARN string
	Admin                  bool
	Version                int64
	Created                time.Time
}

type AccessKey struct {
	ID, Account, PrincipalID string
	Secret                   []byte
	Status                   string
	Version                  int64
	Created                  time.Time
}

type Tag struct{ Key, Value string }

type Key struct {
	Account, Region, ID                     string
	Version                                 int64
	State, Spec, Usage, Origin, Description string
	Policy                                  string
	Tags                                    []Tag
	MultiRegion                             bool
	Created                                 time.Time
	DeletionDate                            *time.Time
	PendingWindowInDays                     int32
	CurrentBackingKey                       [16]byte
}

type KeyRef struct{ Account, Region, ID string }

type BackingKey struct {
	Account, Region, KeyID string
	ID                     [16]byte
	Version                int64
	EKT                    []byte
	MaterialID             string
	Provenance             []byte
	PublicKey              []byte
	Created                time.Time
}

type Alias struct {
	Account, Region, Name, KeyID string
	Version                      int64
	Created, Updated             time.Time
}

// Kinds of rows in Changed.
const (
	KindKey       = "key"
	KindAlias     = "alias"
	KindPrincipal = "principal"
	KindAccessKey = "access_key"
)

type Changed struct {
	Seq                       int64
	Account, Region, Kind, ID string
}

type AuditBatch struct {
	Host               string
	BootID             [16]byte
	FirstSeq, LastSeq  int64
	PrevHash, LastHash []byte
	Records            []byte
	MACGeneration      uint32
	MAC                []byte
}

type Change struct{ db *DB }

func Open(ctx context.Context, c Config) (*DB, error)  { panic("being written") }
func (db *DB) Close()                                  { panic("being written") }
func (db *DB) Ping(ctx context.Context) error          { panic("being written") }
func (db *DB) Pool() *pgxpool.Pool                     { return db.pool }
func (db *DB) Migrate(ctx context.Context) error       { panic("being written") }
func (db *DB) CheckSchema(ctx context.Context) error   { panic("being written") }
func (db *DB) SetSealer(deployment [16]byte, s Sealer) { panic("being written") }
func (db *DB) CheckDurable(ctx context.Context) error  { panic("being written") }

// InsertDeployment writes the one deployment row, unsealed (there is no MAC key yet). ErrExists if there is one.
func (db *DB) InsertDeployment(ctx context.Context, d Deployment) error { panic("being written") }

// Deployment: ErrNotFound on an empty database. Unsealed is accepted only while initialising; verified once a sealer is set.
func (db *DB) Deployment(ctx context.Context) (Deployment, error) { panic("being written") }
func (db *DB) Principal(ctx context.Context, account, id string) (Principal, error) {
	panic("being written")
}

// Principals of an account, by name order.
func (db *DB) Principals(ctx context.Context, account string) ([]Principal, error) {
	panic("being written")
}
func (db *DB) AccessKey(ctx context.Context, id string) (AccessKey, error) { panic("being written") }

// AccessKeys lists the access keys of a principal, all verified.
func (db *DB) AccessKeys(ctx context.Context, account, principalID string) ([]AccessKey, error) {
	panic("being written")
}
func (db *DB) Key(ctx context.Context, account, region, id string) (Key, error) {
	panic("being written")
}
func (db *DB) ListKeys(ctx context.Context, account, region, afterID string, limit int) ([]string, error) {
	panic("being written")
}
func (db *DB) KeysDueForDeletion(ctx context.Context, now time.Time, limit int) ([]KeyRef, error) {
	panic("being written")
}
func (db *DB) BackingKey(ctx context.Context, account, region string, id [16]byte) (BackingKey, error) {
	panic("being written")
}
func (db *DB) Alias(ctx context.Context, account, region, name string) (Alias, error) {
	panic("being written")
}
func (db *DB) ListAliases(ctx context.Context, account, region, keyID, afterName string, limit int) ([]Alias, error) {
	panic("being written")
}

// ReserveEncryptions returns the half-open range [from, to).
func (db *DB) ReserveEncryptions(ctx context.Context, hbkID [16]byte, block, limit int64) (from, to int64, err error) {
	panic("being written")
}
func (db *DB) ChangeSequence(ctx context.Context) (int64, error) { panic("being written") }
func (db *DB) ChangesSince(ctx context.Context, seq int64) (changes []Changed, head int64, complete bool, err error) {
	panic("being written")
}

// PruneChanges keeps the newest keep sequence numbers.
func (db *DB) PruneChanges(ctx context.Context, keep int64) error { panic("being written") }
func (db *DB) NewChange() *Change                                 { return &Change{db} }
func (db *DB) Commit(ctx context.Context, c *Change, b *AuditBatch) (seq int64, err error) {
	panic("being written")
}
func (db *DB) AppendAudit(ctx context.Context, b *AuditBatch) (seq int64, err error) {
	panic("being written")
}
func (db *DB) AuditHead(ctx context.Context, host string) (lastSeq int64, lastHash []byte, err error) {
	panic("being written")
}

// UpdateDeployment seals the row.
func (c *Change) UpdateDeployment(ctx context.Context, d Deployment) error { panic("being written") }
func (c *Change) InsertPrincipal(ctx context.Context, p Principal) error   { panic("being written") }
func (c *Change) UpdatePrincipal(ctx context.Context, p Principal) error   { panic("being written") }
func (c *Change) InsertAccessKey(ctx context.Context, k AccessKey) error   { panic("being written") }
func (c *Change) UpdateAccessKey(ctx context.Context, k AccessKey) error   { panic("being written") }
func (c *Change) DeleteAccessKey(ctx context.Context, k AccessKey) error   { panic("being written") }
func (c *Change) InsertKey(ctx context.Context, k Key) error               { panic("being written") }
func (c *Change) UpdateKey(ctx context.Context, k Key) error               { panic("being written") }
func (c *Change) DeleteKey(ctx context.Context, k Key) error               { panic("being written") }
func (c *Change) InsertBackingKey(ctx context.Context, k BackingKey) error { panic("being written") }
func (c *Change) InsertAlias(ctx context.Context, a Alias) error           { panic("being written") }
func (c *Change) UpdateAlias(ctx context.Context, a Alias) error           { panic("being written") }
func (c *Change) DeleteAlias(ctx context.Context, a Alias) error           { panic("being written") }
