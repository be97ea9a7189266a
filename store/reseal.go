package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/trent-kms/trent/failpoint"
)

// reseals are the sealed tables whose rows get a MAC of the active generation
// when the MAC key is rotated. Audit batches are not among them: nobody
// rewrites the log, so its MAC keys stay as long as it does.
var reseals = map[string]func(ctx context.Context, db *DB, generation uint32, limit int, from ResealFrom) (Resealed, error){
	"deployment":         reseal[Deployment](deploymentSQL),
	"principals":         reseal[Principal](principalSQL),
	"access_keys":        reseal[AccessKey](accessKeySQL),
	"keys":               reseal[Key](keySQL),
	"backing_keys":       reseal[BackingKey](backingKeySQL),
	"encryption_budgets": reseal[budget](budgetSQL),
	"aliases":            reseal[Alias](aliasSQL),
	"grants":             reseal[Grant](grantSQL),
	"grant_pages":        reseal[grantPage](grantPageSQL),
	"domain_generations": reseal[DomainGeneration](generationSQL),
	"domain_members":     reseal[DomainMember](memberSQL),
}

// ResealFrom is where Reseal goes on in each table: the primary key of the row
// that it looked at last. It begins empty.
type ResealFrom map[string][]any

// Resealed is what Reseal came to.
type Resealed struct {
	Done    int     // rows that have a new MAC
	Refused []error // rows that are not as Trent wrote them, and stay as they are
	More    bool    // there may be more rows behind those
}

// Reseal gives up to limit rows of each sealed table, whose MACs are of
// earlier generations, a MAC of the active one, which must be generation. It
// goes on from where it was the last time, so that rows that it refuses hold up
// no others. A row's version does not change, since its meaning does not; a row
// that changes meanwhile is sealed anew by whoever changes it.
func (db *DB) Reseal(ctx context.Context, generation uint32, limit int, from ResealFrom) (Resealed, error) {
	var all Resealed
	var failures []error
	for _, table := range slices.Sorted(maps.Keys(reseals)) {
		r, err := reseals[table](ctx, db, generation, limit, from)
		if err != nil {
			failures = append(failures, fmt.Errorf("sealing rows of %s anew: %w", table, err))
		}
		all.Done += r.Done
		all.Refused = append(all.Refused, r.Refused...)
		all.More = all.More || r.More
	}
	return all, errors.Join(failures...)
}

func reseal[T any, P rowOf[T]](sql statements) func(context.Context, *DB, uint32, int, ResealFrom) (Resealed, error) {
	return func(ctx context.Context, db *DB, generation uint32, limit int, from ResealFrom) (r Resealed, err error) {
		table := P(new(T)).table()
		query, args := sql.selectSealedBefore(generation, limit, from[table])
		var seals []seal
		rows, _ := db.pool.Query(ctx, query, args...)
		found, err := pgx.CollectRows(rows, func(rows pgx.CollectableRow) (T, error) {
			var v T
			s, err := scan(rows, P(&v))
			seals = append(seals, s)
			return v, err
		})
		if err != nil {
			return r, db.loadFault(table, nil, err)
		}
		for i := range found {
			err := db.resealRow(ctx, sql, P(&found[i]), seals[i], generation)
			var tampered *ErrTampered
			switch {
			case err == nil:
				r.Done++
			case errors.As(err, &tampered):
				r.Refused = append(r.Refused, err)
			default:
				return r, err
			}
			from[table] = sql.keyOf(P(&found[i]))
		}
		r.More = len(found) == limit
		return r, nil
	}
}

// selectSealedBefore selects rows with MACs of earlier generations, in the order
// of the primary key and behind the row that has the one given; nil = from the
// first.
func (sql statements) selectSealedBefore(generation uint32, limit int, after []any) (query string, args []any) {
	args = append([]any{int64(generation), limit}, after...)
	key := strings.Join(sql.key, ", ")
	behind := ""
	if after != nil {
		var places []string
		for i := range after {
			places = append(places, fmt.Sprintf("$%d", i+3))
		}
		behind = fmt.Sprintf(" AND (%s) > (%s)", key, strings.Join(places, ", "))
	}
	return fmt.Sprintf("%sWHERE mac_generation < $1 AND mac <> ''%s ORDER BY %s LIMIT $2", sql.selectAll, behind, key), args
}

// keyOf is the row's primary key.
func (sql statements) keyOf(r row) []any {
	var key []any
	for _, name := range sql.key {
		for _, c := range r.columns() {
			if c.name == name {
				key = append(key, c.value)
			}
		}
	}
	return key
}

// resealRow verifies before it seals: a MAC of ours must not bless what
// someone else wrote.
func (db *DB) resealRow(ctx context.Context, sql statements, r row, old seal, generation uint32) error {
	if err := db.verify(ctx, r, old); err != nil {
		return err
	}
	s, err := db.seal(ctx, r)
	if err != nil {
		return err
	}
	if s.generation != generation {
		return fmt.Errorf("the active MAC key is of generation %d, not %d", s.generation, generation)
	}
	args := []any{int64(s.generation), s.mac, old.mac}
	var where []string
	for _, c := range r.columns() {
		if slices.Contains(sql.key, c.name) || c.name == "version" {
			args = append(args, c.value)
			where = append(where, fmt.Sprintf("%s = $%d", c.name, len(args)))
		}
	}
	_, err = db.pool.Exec(ctx, fmt.Sprintf("UPDATE %s SET mac_generation = $1, mac = $2 WHERE mac = $3 AND %s",
		r.table(), strings.Join(where, " AND ")), args...)
	if err != nil {
		return fmt.Errorf("writing a row's new MAC: %w", fault(err))
	}
	failpoint.Hit("reseal.row")
	return nil
}

// GenerationUse is what still needs a generation.
type GenerationUse struct {
	EKTs int64 // wrapped keys
	MACs int64 // sealed rows, without the audit log's
}

// ektGeneration is the generation in an EKT's bytes (hsm.EKT).
const ektGeneration = "substring(%s from 2 for 4)"

// GenerationUses counts what needs each generation. The counts are the
// database's: rows are not verified one by one.
func (db *DB) GenerationUses(ctx context.Context) (map[uint32]GenerationUse, error) {
	uses := map[uint32]GenerationUse{}
	for table, column := range map[string]string{"backing_keys": "ekt", "access_keys": "secret"} {
		generation := fmt.Sprintf(ektGeneration, column)
		rows, _ := db.pool.Query(ctx, fmt.Sprintf("SELECT %s, count(*) FROM %s WHERE length(%s) > 5 GROUP BY 1", generation, table, column))
		var number []byte
		var count int64
		_, err := pgx.ForEachRow(rows, []any{&number, &count}, func() error {
			use := uses[binary.BigEndian.Uint32(number)]
			use.EKTs += count
			uses[binary.BigEndian.Uint32(number)] = use
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("counting wrapped keys: %w", fault(err))
		}
	}
	for table := range reseals {
		rows, _ := db.pool.Query(ctx, fmt.Sprintf("SELECT mac_generation, count(*) FROM %s WHERE mac <> '' GROUP BY 1", table))
		var number, count int64
		_, err := pgx.ForEachRow(rows, []any{&number, &count}, func() error {
			use := uses[uint32(number)] // #nosec G115 -- rows are sealed under 32-bit generations; another is nobody's
			use.MACs += count
			uses[uint32(number)] = use // #nosec G115 -- as above
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("counting sealed rows: %w", fault(err))
		}
	}
	return uses, nil
}

// LogSealedUnder says whether audit batches carry MACs of the generation.
func (db *DB) LogSealedUnder(ctx context.Context, generation uint32) (bool, error) {
	var found bool
	err := db.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM audit_batches WHERE mac_generation = $1)", int64(generation)).Scan(&found)
	if err != nil {
		return false, fmt.Errorf("looking for audit batches of a generation: %w", fault(err))
	}
	return found, nil
}

func ektGenerations(generations []uint32) [][]byte {
	var all [][]byte
	for _, g := range generations {
		all = append(all, binary.BigEndian.AppendUint32(nil, g))
	}
	return all
}

// KeysUnder returns up to limit keys after the key after that have material
// wrapped under one of the generations. It is a hint.
func (db *DB) KeysUnder(ctx context.Context, generations []uint32, after KeyRef, limit int) ([]KeyRef, error) {
	rows, _ := db.pool.Query(ctx, fmt.Sprintf(`
		SELECT DISTINCT account, region, key_id FROM backing_keys
		WHERE %s = ANY ($1::bytea[]) AND (account, region, key_id) > ($2, $3, $4)
		ORDER BY account, region, key_id LIMIT $5`, fmt.Sprintf(ektGeneration, "ekt")),
		ektGenerations(generations), after.Account, after.Region, after.ID, limit)
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[KeyRef])
	if err != nil {
		return nil, fmt.Errorf("looking for keys under old generations: %w", fault(err))
	}
	return found, nil
}

// CountKeysUnder counts the keys that have material under a generation.
func (db *DB) CountKeysUnder(ctx context.Context, generation uint32) (n int64, err error) {
	err = db.pool.QueryRow(ctx, fmt.Sprintf("SELECT count(DISTINCT (account, region, key_id)) FROM backing_keys WHERE %s = $1", fmt.Sprintf(ektGeneration, "ekt")),
		ektGenerations([]uint32{generation})[0]).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("counting the keys under a generation: %w", fault(err))
	}
	return n, nil
}

// AccessKeysUnder is KeysUnder for access keys; it returns ids.
func (db *DB) AccessKeysUnder(ctx context.Context, generations []uint32, after string, limit int) ([]string, error) {
	rows, _ := db.pool.Query(ctx, fmt.Sprintf("SELECT id FROM access_keys WHERE %s = ANY ($1::bytea[]) AND id > $2 ORDER BY id LIMIT $3",
		fmt.Sprintf(ektGeneration, "secret")), ektGenerations(generations), after, limit)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("looking for access keys under old generations: %w", fault(err))
	}
	return found, nil
}
