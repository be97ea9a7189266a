package store

import (
	"errors"
	"fmt"
)

var (
	// ErrNotFound says that what the caller named does not exist. It never
	// stands for a row of our own that has gone missing: that is ErrTampered.
	ErrNotFound = errors.New("no such row")
	// ErrConflict says that a row changed, or vanished, since it was loaded:
	// nothing was written; load again and retry.
	ErrConflict = errors.New("row changed since it was loaded")
	// ErrExists says that the identity (an alias name, a key id) is taken.
	ErrExists = errors.New("row exists already")
	// ErrBudgetExhausted says that a backing key has used up its encryptions.
	ErrBudgetExhausted = errors.New("encryption budget of the backing key is exhausted")
	// ErrNewerSchema says that a newer release has migrated the database.
	ErrNewerSchema = errors.New("database schema is newer than this binary")
	// ErrOlderSchema says that the database awaits migration.
	ErrOlderSchema = errors.New("database schema is older than this binary")
	// ErrNoSealer says that sealed rows were asked for before SetSealer.
	ErrNoSealer = errors.New("no row MAC key is open yet")
	// ErrUnstorable says that a text holds NUL or invalid UTF-8, which
	// Postgres cannot keep.
	ErrUnstorable = errors.New("text holds NUL or invalid UTF-8")
	// ErrHostTaken says that another live process writes audit records under
	// the same host name.
	ErrHostTaken = errors.New("another live process writes audit records as this host")
)

// ErrTampered says that a sealed row, or one that must exist, is not as Trent
// wrote it.
type ErrTampered struct {
	Table, ID string
	Reason    string
}

func (e *ErrTampered) Error() string {
	return fmt.Sprintf("row %s of table %s is not as Trent wrote it (%s): "+
		"restore it from a backup and find out who wrote to the database", e.ID, e.Table, e.Reason)
}

// ErrQuota says that a limit of AWS would be passed.
type ErrQuota struct {
	What string // QuotaKeys or QuotaAliases
}

// The quotas that Commit enforces.
const (
	QuotaKeys    = "keys per account and region"
	QuotaAliases = "aliases per key"

	MaxKeys    = 100_000
	MaxAliases = 50
)

func (e *ErrQuota) Error() string { return "quota reached: " + e.What }

// ErrSetting says that a setting of the Postgres server makes it unfit.
type ErrSetting struct {
	Setting, Value, Next string
}

func (e *ErrSetting) Error() string {
	return fmt.Sprintf("Postgres runs with %s=%s: %s", e.Setting, e.Value, e.Next)
}
