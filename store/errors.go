package store

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrNotFound says that what the caller named does not exist. It never
	// stands for a row of our own that has gone missing: that is ErrTampered.
	ErrNotFound = errors.New("no such row")
	// ErrConflict says that a row changed, or vanished, since it was loaded:
	// nothing was written; load again and retry.
	ErrConflict = errors.New("row changed since it was loaded")
	// ErrLocked says that somebody else's transaction kept a row locked for
	// too long. It comes with ErrConflict.
	ErrLocked = errors.New("row is locked by another transaction")
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
	// ErrInitRunning says that another process is setting the database up.
	ErrInitRunning = errors.New("another trent init is running: wait until it has ended")
	// ErrDomainBusy says that another process is changing what tokens hold.
	ErrDomainBusy = errors.New("another `trent domain` or `trent ceremony` is making or destroying keys on the tokens: wait until it has ended, look at `trent domain status`, then run this again")
	// ErrDomainUnlocked says that this process may have been no longer the only one.
	ErrDomainUnlocked = errors.New("the connection to Postgres was lost by which other commands were kept from the tokens, so this one has stopped: look at `trent domain status`, then run it again")
	// ErrUnavailable says that Postgres was not reached, or went away.
	ErrUnavailable = errors.New("Postgres is not available")
	// ErrUnfit says that Postgres was reached but is in no state to work, as its
	// text tells: read-only, a full disk, no connection left.
	ErrUnfit = errors.New("Postgres is not fit for work")
	// ErrInDoubt says that the connection was lost while the transaction was
	// being committed: it may have happened. It comes with ErrUnavailable.
	ErrInDoubt = errors.New("outcome of the commit is unknown")
	// ErrAuditHead says that a batch of audit records does not follow the newest
	// one of its host: an earlier commit in doubt did happen, another process
	// writes as this host, or the database has lost what it had confirmed.
	ErrAuditHead = errors.New("audit records do not follow the newest of their host")
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
	What string // QuotaKeys, QuotaAliases or QuotaGrants
}

// The quotas that Commit enforces, and InsertGrant.
const (
	QuotaKeys    = "keys per account and region"
	QuotaAliases = "aliases per key"
	QuotaGrants  = "grants per key"

	MaxKeys    = 100_000
	MaxAliases = 50
	MaxGrants  = 50_000
)

func (e *ErrQuota) Error() string { return "quota reached: " + e.What }

// ErrSetting says that a setting of the Postgres server makes it unfit.
type ErrSetting struct {
	Setting, Value, Next string
}

func (e *ErrSetting) Error() string {
	return fmt.Sprintf("Postgres runs with %s=%s: %s", e.Setting, e.Value, e.Next)
}

// nextSteps says what an operator can do about a server that is not fit.
// Keys are SQLSTATE codes (Postgres manual, appendix A).
var nextSteps = map[string]string{
	"53100": "the disk of Postgres is full: free space there; trent serve goes on by itself, any other command must be run again",
	"53200": "Postgres is out of memory: give it more, or lower its work_mem and max_connections",
	"53300": "Postgres has no connection left: raise its max_connections, or lower Trent's",
	"25006": "Postgres is read-only: point the database URL at the primary",
	"28P01": "the password is wrong: correct the database URL",
	"28000": "Postgres refuses this role: check pg_hba.conf and the database URL",
	"3D000": "the database does not exist: create it (CREATE DATABASE … ENCODING 'UTF8')",
	"42501": "the role lacks a right: make it the owner of the database",
	"42P01": "a table is missing: run `trent init`",
}

// fault sorts an error of pgx into this package's own, keeping its text.
func fault(err error) error {
	var pg *pgconn.PgError
	var quota *ErrQuota
	switch {
	case err == nil, errors.Is(err, ErrConflict), errors.As(err, &quota):
		return err
	case errors.Is(err, pgx.ErrNoRows):
		return ErrNotFound
	case errors.As(err, &pg):
		return sqlFault(err, pg)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func sqlFault(err error, pg *pgconn.PgError) error {
	if next, ok := nextSteps[pg.Code]; ok {
		return fmt.Errorf("%w: %s: %w", ErrUnfit, next, err)
	}
	switch {
	case strings.HasPrefix(pg.Code, "58"), strings.HasPrefix(pg.Code, "XX"): // system errors, internal errors
		return fmt.Errorf("Postgres itself is in trouble: see its log, and whether its disk is full: %w", err)
	case (pg.Code == "23505" || pg.Code == "23502") && pg.TableName == "audit_batches":
		return fmt.Errorf("%w: %w", ErrAuditHead, err)
	case pg.Code == "23505":
		return fmt.Errorf("%w: %w", ErrExists, err)
	case pg.Code == "55P03": // lock not available in time
		return fmt.Errorf("%w: %w: %w", ErrConflict, ErrLocked, err)
	case pg.Code == "23503", // the key that an alias or backing key names has gone
		pg.Code == "25P03",               // this process paused for too long within a change
		strings.HasPrefix(pg.Code, "40"): // serialisation failure, deadlock
		return fmt.Errorf("%w: %w", ErrConflict, err)
	case strings.HasPrefix(pg.Code, "08"), strings.HasPrefix(pg.Code, "57P"): // server going away
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case pg.Code == "22021", pg.Code == "22P05":
		return fmt.Errorf("%w: %w", ErrUnstorable, err)
	}
	return err
}

// commitFault is fault for the statement that commits: unless the server has
// answered with a refusal, or was never asked, the outcome is open.
func commitFault(err error) error {
	sorted := fault(err)
	if errors.Is(sorted, ErrUnavailable) && !pgconn.SafeToRetry(err) {
		return fmt.Errorf("%w: %w", ErrInDoubt, sorted)
	}
	return sorted
}
