package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// column ties a column to the field of the row that holds it.
type column struct {
	name  string
	value any // pointer to the field
}

// row is a sealed row. Its list of columns is the only one: the MAC, INSERT,
// UPDATE and SELECT all walk it, so that none can leave a column out.
type row interface {
	table() string
	identity() string
	columns() []column // with version; without mac_generation and mac
}

// extended is a row whose table has got columns after rows had been sealed.
// Its later columns are left out of the MAC while they hold their zero value,
// which is their default in the schema: rows sealed before still verify, and a
// column that is left out cannot be mistaken for any other value.
type extended interface{ later() []string }

// sealed lists the columns that r's MAC covers.
func sealed(r row) []column {
	columns := r.columns()
	if r, ok := r.(extended); ok {
		later := r.later()
		columns = slices.DeleteFunc(columns, func(c column) bool { return slices.Contains(later, c.name) && zero(c.value) })
	}
	return columns
}

func zero(value any) bool {
	switch v := value.(type) {
	case *[]byte:
		return len(*v) == 0
	case *[]Tag:
		return len(*v) == 0
	case *[]string:
		return len(*v) == 0
	}
	return reflect.ValueOf(value).Elem().IsZero()
}

// statements are the SQL that every sealed table needs.
type statements struct{ insert, update, selectAll string }

// statementsFor writes the SQL for r's table, whose primary key is key.
// update has the parameters of insert and, last, the version to replace.
func statementsFor(r row, key ...string) statements {
	var names, places, sets, where []string
	for i, c := range r.columns() {
		place := fmt.Sprintf("$%d", i+1)
		names, places = append(names, c.name), append(places, place)
		if slices.Contains(key, c.name) {
			where = append(where, c.name+" = "+place)
		} else {
			sets = append(sets, c.name+" = "+place)
		}
	}
	for _, name := range []string{"mac_generation", "mac"} {
		place := fmt.Sprintf("$%d", len(names)+1)
		names, places = append(names, name), append(places, place)
		sets = append(sets, name+" = "+place)
	}
	where = append(where, fmt.Sprintf("version = $%d", len(names)+1))
	list := strings.Join(names, ", ")
	return statements{
		insert:    fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", r.table(), list, strings.Join(places, ", ")),
		update:    fmt.Sprintf("UPDATE %s SET %s WHERE %s", r.table(), strings.Join(sets, ", "), strings.Join(where, " AND ")),
		selectAll: fmt.Sprintf("SELECT %s FROM %s ", list, r.table()),
	}
}

// arguments are the parameters of insert, and of update but for its last.
func arguments(r row, s seal) []any {
	var args []any
	for _, c := range r.columns() {
		switch v := c.value.(type) {
		case *[]byte:
			args = append(args, append([]byte{}, *v...)) // nil would be NULL
		case *[]Tag:
			args = append(args, append([]Tag{}, *v...))
		case *[]string:
			args = append(args, append([]string{}, *v...))
		default:
			args = append(args, c.value)
		}
	}
	return append(args, int64(s.generation), append([]byte{}, s.mac...))
}

// settle brings fields to the form in which Postgres gives them back, so that
// the MAC made before writing holds after loading.
func settle(r row) {
	for _, c := range r.columns() {
		switch v := c.value.(type) {
		case *time.Time:
			*v = v.UTC().Truncate(time.Microsecond)
		case **time.Time:
			if *v != nil {
				t := (*v).UTC().Truncate(time.Microsecond)
				*v = &t
			}
		case *[]Tag:
			*v = slices.Clone(*v)
			slices.SortFunc(*v, func(a, b Tag) int { return strings.Compare(a.Key, b.Key) })
			if len(*v) == 0 {
				*v = nil
			}
		case *[]string:
			*v = slices.Sorted(slices.Values(*v))
			if len(*v) == 0 {
				*v = nil
			}
		case *[]byte:
			if len(*v) == 0 {
				*v = nil
			}
		}
	}
}

// scan reads one row of statements.selectAll.
func scan(rows pgx.CollectableRow, r row) (seal, error) {
	var targets []any
	for _, c := range r.columns() {
		targets = append(targets, c.value)
	}
	var generation int64
	var mac []byte
	err := rows.Scan(append(targets, &generation, &mac)...)
	if err != nil {
		return seal{}, err
	}
	if generation < 0 || generation > math.MaxUint32 {
		return seal{}, errGeneration
	}
	settle(r)
	return seal{uint32(generation), mac}, nil
}

var errGeneration = errors.New("no such generation of the MAC key")

// rowOf is the pointer to a row struct.
type rowOf[T any] interface {
	*T
	row
}

// load returns the rows that query selects, each with its MAC verified.
func load[T any, P rowOf[T]](ctx context.Context, db *DB, query string, args ...any) ([]T, error) {
	var found []T
	var seals []seal
	rows, _ := db.pool.Query(ctx, query, args...) // its error comes out of CollectRows
	found, err := pgx.CollectRows(rows, func(rows pgx.CollectableRow) (T, error) {
		var v T
		s, err := scan(rows, P(&v))
		seals = append(seals, s)
		return v, err
	})
	if err != nil {
		return nil, db.loadFault(P(new(T)).table(), args, err)
	}
	for i := range found {
		if err := db.verify(ctx, P(&found[i]), seals[i]); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// loadOne is load for a query by primary key.
func loadOne[T any, P rowOf[T]](ctx context.Context, db *DB, query string, args ...any) (T, error) {
	var none T
	found, err := load[T, P](ctx, db, query, args...)
	if err != nil {
		return none, err
	}
	switch len(found) {
	case 0:
		return none, ErrNotFound
	case 1:
		return found[0], nil
	}
	return none, db.tamperedRow(P(&none).table(), fmt.Sprint(args...), "its primary key is not unique")
}

// loadFault tells a value that Trent never wrote from a failing database.
func (db *DB) loadFault(table string, args []any, err error) error {
	var unreadable pgx.ScanArgError
	if errors.As(err, &unreadable) || errors.Is(err, errGeneration) {
		return db.tamperedRow(table, fmt.Sprint(args...), err.Error())
	}
	return fmt.Errorf("loading from %s: %w", table, fault(err))
}
