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
)

// reseals are the sealed tables whose rows get a MAC of the active generation
// when the MAC key is rotated. Audit batches are not among them: nobody
// rewrites the log, so its MAC keys stay as long as it does.
var reseals = map[string]func(ctx context.Context, db *DB, generation uint32, limit int) (int, error){
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

// Reseal gives up to limit rows of each sealed table, whose MACs are of
// earlier generations, a MAC of the active one, which must be generation. It
// returns how many there were; 0 means that none is left. A row's version does
// not change, since its meaning does not; a row that changes meanwhile is
// sealed anew by whoever changes it.
func (db *DB) Reseal(ctx context.Context, generation uint32, limit int) (done int, err error) {
	var failures []error
	for _, table := range slices.Sorted(maps.Keys(reseals)) {
		n, err := reseals[table](ctx, db, generation, limit)
		if err != nil {
			failures = append(failures, fmt.Errorf("sealing rows of %s anew: %w", table, err))
		}
		done += n
	}
	return done, errors.Join(failures...)
}

func reseal[T any, P rowOf[T]](sql statements) func(context.Context, *DB, uint32, int) (int, error) {
	return func(ctx context.Context, db *DB, generation uint32, limit int) (int, error) {
		var seals []seal
		rows, _ := db.pool.Query(ctx, sql.selectAll+"WHERE mac_generation < $1 AND mac <> '' LIMIT $2", int64(generation), limit)
		found, err := pgx.CollectRows(rows, func(rows pgx.CollectableRow) (T, error) {
			var v T
			s, err := scan(rows, P(&v))
			seals = append(seals, s)
			return v, err
		})
		if err != nil {
			return 0, db.loadFault(P(new(T)).table(), nil, err)
		}
		done := 0
		var failures []error
		for i := range found {
			if err := db.resealRow(ctx, sql, P(&found[i]), seals[i], generation); err != nil {
				failures = append(failures, err)
				continue
			}
			done++
		}
		return done, errors.Join(failures...)
	}
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
