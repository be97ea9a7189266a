package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Kinds of what changes.
const (
	KindKey        = "key"    // with its backing keys
	KindGrants     = "grants" // of a key; its row has changed with them
	KindAlias      = "alias"
	KindPrincipal  = "principal"
	KindAccessKey  = "access_key"
	KindDeployment = "deployment"
	KindGeneration = "generation" // of the domain keys
)

// Changed names something that a change has written or removed.
type Changed struct {
	Seq             int64
	Account, Region string
	Kind            string
	ID              string
}

// most is how many changes ChangesSince returns before it gives up.
const most = 10_000

// queueSequence takes the next number and notes what has changed under it.
// Nothing but the audit record may follow before COMMIT. Were the sequence's
// row missing, NULL would be refused and the transaction fail: every change
// notes something.
func queueSequence(batch *pgx.Batch, changed []Changed) {
	var accounts, regions, kinds, ids []string
	seen := map[Changed]bool{}
	for _, c := range changed {
		if seen[c] {
			continue
		}
		seen[c] = true
		accounts, regions = append(accounts, c.Account), append(regions, c.Region)
		kinds, ids = append(kinds, c.Kind), append(ids, c.ID)
	}
	batch.Queue(`
		WITH next AS (UPDATE change_sequence SET seq = seq + 1 RETURNING seq),
		noted AS (
			INSERT INTO changes (seq, account, region, kind, id)
			SELECT (SELECT seq FROM next), c.* FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS c)
		SELECT seq FROM next`, accounts, regions, kinds, ids)
}

// ChangeSequence returns the number of the newest change. A cache filled after
// reading it is good until it moves (in either direction: a restored database
// goes back).
func (db *DB) ChangeSequence(ctx context.Context) (int64, error) {
	var seq int64
	err := db.pool.QueryRow(ctx, "SELECT seq FROM change_sequence").Scan(&seq)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, db.tamperedRow("change_sequence", "", noSequence)
	}
	if err != nil {
		return 0, fmt.Errorf("reading the change sequence: %w", fault(err))
	}
	return seq, nil
}

// changesSince reads no more than most numbers, each of which has a change at
// least: see rightsUnchanged.
const changesSince = `
	SELECT s.seq, s.pruned_to, coalesce(c.seq, 0), coalesce(c.account, ''),
		coalesce(c.region, ''), coalesce(c.kind, ''), coalesce(c.id, '')
	FROM change_sequence s LEFT JOIN changes c ON c.seq > $1 AND c.seq <= $1 + $2
	ORDER BY c.seq, c.kind, c.account, c.region, c.id LIMIT $2 + 1`

// ChangesSince returns what has changed after seq, and the number of the newest
// change. complete is false when some of it has been pruned, is too much, or
// seq lies ahead of the database: drop all caches then.
func (db *DB) ChangesSince(ctx context.Context, seq int64) (changes []Changed, head int64, complete bool, err error) {
	// One statement, hence one snapshot: head belongs to the changes.
	rows, _ := db.pool.Query(ctx, changesSince, seq, int64(most))
	var prunedTo int64
	var c Changed
	_, err = pgx.ForEachRow(rows, []any{&head, &prunedTo, &c.Seq, &c.Account, &c.Region, &c.Kind, &c.ID}, func() error {
		if c.Seq != 0 {
			changes = append(changes, c)
		}
		return nil
	})
	if err != nil {
		return nil, 0, false, fmt.Errorf("reading changes: %w", fault(err))
	}
	if seq < prunedTo || seq > head || head-seq > most || len(changes) > most {
		return nil, head, false, nil
	}
	return slices.Clip(changes), head, true, nil
}

const (
	movePruned = "UPDATE change_sequence SET pruned_to = seq - $1 WHERE pruned_to < seq - $1"
	// prune is bounded below for the sake of its plan: see rightsUnchanged.
	prune = `
		DELETE FROM changes
		WHERE seq >= (SELECT min(seq) FROM changes) AND seq <= (SELECT pruned_to FROM change_sequence)`
)

// PruneChanges forgets all changes but those of the newest keep numbers. The mark
// is committed first, so that no change waits for the sequence's row meanwhile:
// who reads below it drops all caches, whatever is still there.
func (db *DB) PruneChanges(ctx context.Context, keep int64) error {
	_, err := db.pool.Exec(ctx, movePruned, keep)
	if err == nil {
		_, err = db.pool.Exec(ctx, prune)
	}
	if err != nil {
		return fmt.Errorf("pruning changes: %w", fault(err))
	}
	return nil
}
