package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trent-kms/trent/failpoint"
)

// Change gathers what one call writes. Rows are sealed as they are added, so
// that no HSM call falls inside the transaction; versions make sure that what
// was sealed still replaces what was loaded. Not for concurrent use.
type Change struct {
	db      *DB
	steps   []step
	changed []Changed
}

// step is one statement, and what its result must be.
type step struct {
	sql   string
	args  []any
	check check
}

// check reads one result of a batch. It may add to what has changed.
type check func(pgx.BatchResults) ([]Changed, error)

// NewChange begins an empty change.
func (db *DB) NewChange() *Change { return &Change{db: db} }

func (c *Change) queue(check check, sql string, args ...any) {
	c.steps = append(c.steps, step{sql, args, check})
}

func (c *Change) touched(account, region, kind, id string) {
	c.changed = append(c.changed, Changed{Account: account, Region: region, Kind: kind, ID: id})
}

// insert queues r, sealed, as version 1.
func (c *Change) insert(ctx context.Context, r row, version *int64, sql statements) error {
	*version = 1
	return c.insertAsIs(ctx, r, sql)
}

// insertAsIs queues r, sealed, in the version that it has.
func (c *Change) insertAsIs(ctx context.Context, r row, sql statements) error {
	settle(r)
	s, err := c.db.seal(ctx, r)
	if err != nil {
		return err
	}
	c.queue(oneRow, sql.insert, arguments(r, s)...)
	return nil
}

// update queues r, sealed, as the successor of the version it was loaded with.
func (c *Change) update(ctx context.Context, r row, version *int64, sql statements) error {
	old := *version
	*version = old + 1
	settle(r)
	s, err := c.db.seal(ctx, r)
	if err != nil {
		return err
	}
	c.queue(oneRow, sql.update, append(arguments(r, s), old)...)
	return nil
}

// RequireKey makes Commit answer ErrConflict if the key's row is no longer the
// one that was loaded: what the change does was decided on that row.
func (c *Change) RequireKey(k Key) {
	c.queue(oneRow, "SELECT FROM keys WHERE account = $1 AND region = $2 AND id = $3 AND version = $4 FOR UPDATE",
		k.Account, k.Region, k.ID, k.Version)
}

// RequireRights makes Commit answer ErrConflict if a principal or an access
// key has changed after the change sequence since, at which the change was
// authorised.
func (c *Change) RequireRights(since int64) {
	c.queue(oneRow, rightsUnchanged, since, KindPrincipal, KindAccessKey)
}

// rightsUnchanged, like every statement on changes, bounds seq on both sides:
// with one bound, Postgres's plan for any value reads the whole table, under
// the locks of the change that asks. No row lies above the sequence.
const rightsUnchanged = `
	SELECT WHERE NOT EXISTS (SELECT FROM changes
		WHERE seq > $1 AND seq <= (SELECT seq FROM change_sequence) AND kind IN ($2, $3))`

// anyRows accepts every result but an error.
func anyRows(r pgx.BatchResults) ([]Changed, error) {
	_, err := r.Exec()
	return nil, err
}

// oneRow demands that the statement met its row as it was loaded.
var oneRow = oneRowOr(ErrConflict)

func oneRowOr(otherwise error) check {
	return func(r pgx.BatchResults) ([]Changed, error) {
		tag, err := r.Exec()
		if err == nil && tag.RowsAffected() != 1 {
			err = otherwise
		}
		return nil, err
	}
}

// Commit writes c, the next change sequence number and b in one transaction,
// and returns the number. b is nil only where there is no call to audit.
// ErrConflict, ErrExists and *ErrQuota mean that nothing was written; so does
// every other error without ErrInDoubt.
func (db *DB) Commit(ctx context.Context, c *Change, b *AuditBatch) (seq int64, err error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return 0, fmt.Errorf("connecting to Postgres: %w", fault(err))
	}
	defer conn.Release()
	seq, err = db.commit(ctx, conn, c, b)
	if err != nil {
		abandon(conn)
		return 0, err
	}
	return seq, nil
}

// commit is two round trips: the statements of the change, whose results
// decide; then sequence, audit record and COMMIT together, so that the
// sequence, on which every change of the fleet waits, is held only briefly.
func (db *DB) commit(ctx context.Context, conn *pgxpool.Conn, c *Change, b *AuditBatch) (int64, error) {
	var batch pgx.Batch
	batch.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	for _, s := range c.steps {
		batch.Queue(s.sql, s.args...)
	}
	changed, err := readSteps(conn.SendBatch(ctx, &batch), c)
	if err != nil {
		return 0, fmt.Errorf("writing a change: %w", fault(err))
	}
	failpoint.Hit("change.before_commit")
	batch = pgx.Batch{}
	queueSequence(&batch, changed)
	if b != nil {
		batch.Queue(insertAudit, b.arguments()...)
	}
	batch.Queue("COMMIT")
	seq, err := readCommit(conn.SendBatch(ctx, &batch), b != nil)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "23502" && pg.TableName == "changes" {
		return 0, db.tamperedRow("change_sequence", "", noSequence)
	}
	if err != nil {
		return 0, fmt.Errorf("committing a change: %w", commitFault(err))
	}
	failpoint.Hit("change.after_commit")
	return seq, nil
}

func readSteps(results pgx.BatchResults, c *Change) ([]Changed, error) {
	changed := append([]Changed(nil), c.changed...)
	_, err := results.Exec() // BEGIN
	for i := 0; err == nil && i < len(c.steps); i++ {
		var more []Changed
		more, err = c.steps[i].check(results)
		changed = append(changed, more...)
	}
	if closed := results.Close(); err == nil {
		err = closed
	}
	return changed, err
}

const noSequence = "its only row is missing"

func readCommit(results pgx.BatchResults, audited bool) (seq int64, err error) {
	err = results.QueryRow().Scan(&seq)
	if err == nil && audited {
		var ignored int64
		err = results.QueryRow().Scan(&ignored)
	}
	if err == nil {
		_, err = results.Exec() // COMMIT
	}
	if closed := results.Close(); err == nil {
		err = closed
	}
	return seq, err
}

// abandon ends a transaction that failed. A connection on which that does not
// work is closed, which ends it too.
func abandon(conn *pgxpool.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if conn.Conn().PgConn().IsClosed() || conn.Conn().PgConn().TxStatus() == 'I' {
		return
	}
	if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
		_ = conn.Conn().Close(ctx)
	}
}
