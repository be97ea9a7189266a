package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	dto "github.com/prometheus/client_model/go"
)

// sealedTables says, for each table with a MAC, how to read all its rows with
// verification. TestTampering walks the schema, so that a table or a column
// that is added later cannot be forgotten.
var sealedTables = map[string]func(context.Context, *DB) error{
	"keys":               func(ctx context.Context, db *DB) error { return all[Key](ctx, db, keySQL) },
	"backing_keys":       func(ctx context.Context, db *DB) error { return all[BackingKey](ctx, db, backingKeySQL) },
	"encryption_budgets": func(ctx context.Context, db *DB) error { return all[budget](ctx, db, budgetSQL) },
	"grants":             func(ctx context.Context, db *DB) error { return all[Grant](ctx, db, grantSQL) },
	"grant_pages":        func(ctx context.Context, db *DB) error { return all[grantPage](ctx, db, grantPageSQL) },
	"aliases":            func(ctx context.Context, db *DB) error { return all[Alias](ctx, db, aliasSQL) },
	"principals":         func(ctx context.Context, db *DB) error { return all[Principal](ctx, db, principalSQL) },
	"access_keys":        func(ctx context.Context, db *DB) error { return all[AccessKey](ctx, db, accessKeySQL) },
	"deployment":         func(ctx context.Context, db *DB) error { _, err := db.Deployment(ctx); return err },
	"domain_generations": func(ctx context.Context, db *DB) error { _, _, err := db.DomainGenerations(ctx); return err },
	"domain_members":     func(ctx context.Context, db *DB) error { _, _, _, err := db.Domain(ctx); return err },
	"audit_batches": func(ctx context.Context, db *DB) error {
		b, err := db.LastAuditBatch(ctx, "host")
		if err != nil {
			b, err = db.LastAuditBatch(ctx, "hostx")
		}
		return errors.Join(err, db.VerifyAudit(ctx, &b))
	},
}

func all[T any, P rowOf[T]](ctx context.Context, db *DB, sql statements) error {
	found, err := load[T, P](ctx, db, sql.selectAll)
	if err == nil && len(found) == 0 {
		return errors.New("no row to tamper with")
	}
	return err
}

// unsealed are the columns that no MAC covers, and why.
var unsealed = map[string]string{
	"deployment.singleton":       "constant",
	"audit_batches.records":      "bound by last_hash, which audit's verification recomputes",
	"audit_batches.committed_at": "the server's clock, for people; each record has its own time",
}

// alterations are SQL expressions that change a value of a type.
var alterations = map[string][]string{
	"text":                     {"%s || 'x'"},
	"boolean":                  {"NOT %s"},
	"bigint":                   {"%s + 1", "%s - 1"},
	"integer":                  {"%s + 1"},
	"timestamp with time zone": {"%s + interval '1 microsecond'", "NULL"},
	"uuid":                     {"gen_random_uuid()"},
	"bytea":                    {`%s || '\x00'`, `''`},
	"ARRAY":                    {`%s || 'x'::text`, `'{}'`},
	"jsonb":                    {`%s || '[{"Key":"z","Value":""}]'`, `'[]'`, `'7'`},
}

// fill writes one row into every sealed table.
func fill(t *testing.T, db *DB) {
	t.Helper()
	ctx := t.Context()
	d := Deployment{ID: testDeployment, Account: "111122223333", Partition: "aws", Created: time.Now()}
	if err := db.InsertDeployment(ctx, d); err != nil {
		t.Fatal(err)
	}
	d.State, d.Version = StateActive, 1
	now := time.Now()
	generation := DomainGeneration{Number: 1, Profile: "locked", State: GenerationDestroyed, Holders: `["a"]`, BackupConfirmed: &now, BackupBy: "x",
		Created: now, Activated: &now, Superseded: &now, Destroyed: &now, Proof: "{}"}
	member := DomainMember{Serial: "a", Label: "l", Fingerprint: "f", State: MemberRemoved, Enrolled: now, EnrolledBy: "x", Removed: &now, RemovedBy: "y"}
	k, hbk := sampleKey("k1")
	a := Alias{Account: k.Account, Region: k.Region, Name: "alias/a", KeyID: k.ID, Created: time.Now(), Updated: time.Now()}
	p := Principal{ID: "AIDA1", Account: k.Account, Name: "root", ARN: "arn:x", Created: time.Now()}
	ak := AccessKey{ID: "AKIA1", Account: k.Account, PrincipalID: p.ID, Secret: []byte("e"), Status: AccessKeyActive, Created: time.Now()}
	b := &AuditBatch{Host: "host", BootID: id(), FirstSeq: 1, LastSeq: 2, PrevHash: make([]byte, 32), LastHash: []byte("h"), Records: []byte("{}\n{}\n")}
	c := db.NewChange()
	if err := errors.Join(c.WriteDomain(ctx, d, nil, []DomainGeneration{generation}, nil, []DomainMember{member}), c.InsertKey(ctx, k), c.InsertBackingKey(ctx, hbk), c.InsertAlias(ctx, a),
		c.InsertPrincipal(ctx, p), c.InsertAccessKey(ctx, ak), db.SealAudit(ctx, nil, b)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Commit(ctx, c, b); err != nil {
		t.Fatal(err)
	}
	granted, _ := made(t, db, "granted")
	grant(t, db, granted, sampleGrant(0x10))
}

// unguard removes the constraints that would stop a clumsy intruder; a skilled
// one would do the same.
func unguard(t *testing.T, db *DB) {
	t.Helper()
	exec(t, db, `DO $$ DECLARE r record; BEGIN
		FOR r IN SELECT conname, conrelid::regclass::text AS rel FROM pg_constraint
			WHERE contype IN ('f', 'c') AND connamespace = 'public'::regnamespace LOOP
			EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', r.rel, r.conname);
		END LOOP; END $$`)
}

func TestTampering(t *testing.T) {
	db, _ := open(t)
	fill(t, db)
	unguard(t, db)
	rows, _ := db.pool.Query(t.Context(), `
		SELECT c.table_name, c.column_name, c.data_type FROM information_schema.columns c
		WHERE c.table_schema = 'public' AND EXISTS (SELECT FROM information_schema.columns m
			WHERE m.table_schema = 'public' AND m.table_name = c.table_name AND m.column_name = 'mac')
		ORDER BY 1, 2`)
	type place struct{ Table, Column, Type string }
	places, err := pgx.CollectRows(rows, pgx.RowToStructByPos[place])
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range places {
		seen[p.Table] = true
		name := p.Table + "." + p.Column
		if unsealed[name] != "" {
			continue
		}
		if len(alterations[p.Type]) == 0 || sealedTables[p.Table] == nil {
			t.Errorf("%s (%s): the test does not know this type or table", name, p.Type)
			continue
		}
		for _, with := range alterations[p.Type] {
			if slices.Contains([]string{"%s - 1"}, with) && p.Column != "version" {
				continue
			}
			demandTampered(t, db, p.Table, p.Column, with)
		}
	}
	if len(seen) != len(sealedTables) {
		t.Errorf("tables with a MAC: %v", seen)
	}
}

// demandTampered alters a column, demands that its table refuses to load, and
// puts it back.
func demandTampered(t *testing.T, db *DB, table, col, with string) {
	t.Helper()
	if err := sealedTables[table](t.Context(), db); err != nil {
		t.Fatalf("%s before %s was altered: %v", table, col, err)
	}
	before := counted(t, db, table)
	exec(t, db, "CREATE TABLE saved AS SELECT * FROM "+table)
	if with == "NULL" {
		exec(t, db, fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s DROP NOT NULL", table, col))
	}
	expression := with
	if slices.Contains([]byte(with), '%') {
		expression = fmt.Sprintf(with, col)
	}
	exec(t, db, fmt.Sprintf("UPDATE %s SET %s = %s", table, col, expression))
	var tampered *ErrTampered
	err := sealedTables[table](t.Context(), db)
	if !errors.As(err, &tampered) || tampered.Table != table {
		t.Errorf("%s.%s set to %s: %v", table, col, expression, err)
	}
	if counted(t, db, table) != before+1 {
		t.Errorf("%s.%s was not counted", table, col)
	}
	exec(t, db, "TRUNCATE "+table)
	exec(t, db, fmt.Sprintf("INSERT INTO %s SELECT * FROM saved", table))
	exec(t, db, "DROP TABLE saved")
}

func counted(t *testing.T, db *DB, table string) float64 {
	t.Helper()
	var m dto.Metric
	if err := db.tampered.WithLabelValues(table).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func TestSequenceRemoved(t *testing.T) {
	db, _ := open(t)
	exec(t, db, "DELETE FROM change_sequence")
	var tampered *ErrTampered
	k, _ := sampleKey("k")
	if _, err := try(t, db, func(c *Change) error { return c.InsertKey(t.Context(), k) }); !errors.As(err, &tampered) {
		t.Errorf("change: %v", err)
	}
	if _, err := db.ChangeSequence(t.Context()); !errors.As(err, &tampered) {
		t.Errorf("reading: %v", err)
	}
	if n := count(t, db, "keys"); n != 0 {
		t.Errorf("%d keys written without a sequence number", n)
	}
}
