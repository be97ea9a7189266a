package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// WrappedKeys counts what is wrapped under each generation, in rows that it reads
// and verifies one by one as their uses would: every key with the set of its
// material, and every access key. It fails, and names up to ten, if some are
// not as Trent wrote them. What was removed as a whole does not show. progress is
// told now and then how many keys have been read.
func (db *DB) WrappedKeys(ctx context.Context, progress func(read int)) (map[uint32]int64, error) {
	w := wrapped{db: db, under: map[uint32]int64{}, progress: progress}
	err := readAll(ctx, db, "SELECT account, region, id FROM keys WHERE (account, region, id) > ($1, $2, $3) ORDER BY account, region, id LIMIT $4",
		func(after KeyRef) []any { return []any{after.Account, after.Region, after.ID} }, w.addKey)
	if err == nil {
		err = readAll(ctx, db, "SELECT id FROM access_keys WHERE id > $1 ORDER BY id LIMIT $2",
			func(after accessKeyRef) []any { return []any{after.ID} }, w.addAccessKey)
	}
	if refused := errors.Join(w.refused...); err != nil || refused != nil {
		return nil, errors.Join(refused, err)
	}
	return w.under, nil
}

type accessKeyRef struct{ ID string }

// readAll calls add for all rows of a query that pages behind a key.
func readAll[Ref any](ctx context.Context, db *DB, query string, key func(Ref) []any, add func(context.Context, Ref) error) error {
	const atATime = 500
	for after := *new(Ref); ; {
		rows, _ := db.pool.Query(ctx, query, append(key(after), atATime)...)
		page, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Ref])
		if err != nil {
			return fmt.Errorf("reading what holds wrapped keys: %w", fault(err))
		}
		for _, ref := range page {
			if err := add(ctx, ref); err != nil {
				return err
			}
		}
		if len(page) < atATime {
			return nil
		}
		after = page[atATime-1]
	}
}

// wrapped is what WrappedKeys has come to.
type wrapped struct {
	db       *DB
	under    map[uint32]int64
	read     int
	progress func(int)
	refused  []error
}

func (w *wrapped) addKey(ctx context.Context, ref KeyRef) error {
	all, err := w.db.material(ctx, ref)
	for _, b := range all {
		w.count(b.EKT)
	}
	return w.done(err)
}

func (w *wrapped) addAccessKey(ctx context.Context, ref accessKeyRef) error {
	k, err := w.db.AccessKey(ctx, ref.ID)
	if err == nil {
		w.count(k.Secret)
	}
	return w.done(err)
}

func (w *wrapped) count(ekt []byte) {
	if len(ekt) > 5 {
		w.under[binary.BigEndian.Uint32(ekt[1:])]++
	}
}

// done passes over what is gone by now, and goes on behind what is not as Trent
// wrote it, so that an officer hears of more than one.
func (w *wrapped) done(err error) error {
	const told, every = 10, 10_000
	if w.read++; w.read%every == 0 {
		w.progress(w.read)
	}
	var tampered *ErrTampered
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case errors.As(err, &tampered):
		if w.refused = append(w.refused, err); len(w.refused) < told {
			return nil
		}
		return errors.New("and there may be more")
	}
	return err
}

// material is all of a key, whatever changes it meanwhile.
func (db *DB) material(ctx context.Context, ref KeyRef) ([]BackingKey, error) {
	for {
		k, set, err := db.KeyWithSet(ctx, ref.Account, ref.Region, ref.ID)
		if err != nil {
			return nil, err
		}
		all, err := db.BackingKeys(ctx, k, set)
		if !errors.Is(err, ErrConflict) {
			return all, err
		}
	}
}
