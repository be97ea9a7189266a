package store

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// activeDeployment writes a deployment that is set up.
func activeDeployment(t *testing.T, db *DB) {
	t.Helper()
	d := Deployment{ID: testDeployment, Account: "111122223333", Partition: "aws", Created: time.Now()}
	if err := db.InsertDeployment(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	d.State, d.Version = StateActive, 1
	must(t, db, func(c *Change) error { return c.UpdateDeployment(t.Context(), d) })
}

func TestGenerations(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	activeDeployment(t, db)
	d, all, err := db.DomainGenerations(ctx)
	if err != nil || len(all) != 1 || all[0].Number != 1 || all[0].Version != 0 || all[0].State != GenerationActive {
		t.Fatalf("never rotated: %+v, %v", all, err)
	}
	second := DomainGeneration{Number: 2, Profile: "trusted", State: GenerationCreated, Created: time.Now()}
	second.SetTokens([]string{"b", "a", "b"})
	seq := must(t, db, func(c *Change) error { return c.WriteDomain(ctx, d, all, append(slices.Clone(all), second), nil, nil) })
	changes, _, _, err := db.ChangesSince(ctx, seq-1)
	if err != nil || !slices.ContainsFunc(changes, func(c Changed) bool { return c.Kind == KindGeneration && c.ID == "2" }) {
		t.Errorf("changes %+v, %v", changes, err)
	}
	stale, before := d, all
	if d, all, err = db.DomainGenerations(ctx); err != nil || len(all) != 2 || all[0].Version != 1 || !slices.Equal(all[1].Tokens(), []string{"a", "b"}) {
		t.Fatalf("%+v, %v", all, err)
	}
	if _, err := try(t, db, func(c *Change) error { return c.WriteDomain(ctx, stale, before, append(before, second), nil, nil) }); err == nil {
		t.Error("two rotations at once were both written")
	}
	after := slices.Clone(all)
	after[1].State = GenerationActive
	must(t, db, func(c *Change) error { return c.WriteDomain(ctx, d, all, after, nil, nil) })
	if _, all, err = db.DomainGenerations(ctx); err != nil || all[0].Version != 1 || all[1].Version != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	// Whoever writes to the database cannot make an earlier generation the
	// active one, by leaving rows out or by putting an old one back.
	var tampered *ErrTampered
	exec(t, db, "CREATE TABLE saved AS SELECT * FROM domain_generations")
	for _, sql := range []string{"DELETE FROM domain_generations", "DELETE FROM domain_generations WHERE number = 2"} {
		exec(t, db, sql)
		if _, _, err := db.DomainGenerations(ctx); !errors.As(err, &tampered) {
			t.Errorf("%s: %v", sql, err)
		}
		exec(t, db, "TRUNCATE domain_generations")
		exec(t, db, "INSERT INTO domain_generations SELECT * FROM saved")
	}
	exec(t, db, "UPDATE deployment SET domain_set = ''")
	if _, _, err := db.DomainGenerations(ctx); !errors.As(err, &tampered) {
		t.Errorf("without the set: %v", err)
	}
	exec(t, db, "UPDATE deployment SET mac = '', state = 'initialising'") // as one whose row needs no seal yet
	exec(t, db, "TRUNCATE domain_generations")
	if _, all, err := db.DomainGenerations(ctx); !errors.As(err, &tampered) {
		t.Errorf("set back to before it was sealed: %+v, %v", all, err)
	}
}

func TestReseal(t *testing.T) {
	db, sealer := open(t)
	ctx := t.Context()
	fill(t, db)
	sealer.generation = 2
	if _, err := db.Reseal(ctx, 3, 10, ResealFrom{}); err == nil {
		t.Error("sealed for a generation that is not the active one")
	}
	uses, err := db.GenerationUses(ctx)
	rows := int(uses[1].MACs)
	if err != nil || rows < len(reseals) || uses[2].MACs != 0 {
		t.Fatalf("uses %v, %v", uses, err)
	}
	exec(t, db, "UPDATE aliases SET name = 'alias/forged'")
	var tampered *ErrTampered
	r, err := db.Reseal(ctx, 2, 10, ResealFrom{})
	if err != nil || !errors.As(errors.Join(r.Refused...), &tampered) || r.Done != rows-1 {
		t.Errorf("sealed %+v with a forged row among them, %v", r, err)
	}
	exec(t, db, "UPDATE aliases SET name = 'alias/a'")
	if r, err = db.Reseal(ctx, 2, 10, ResealFrom{}); err != nil || r.Done != 1 || r.Refused != nil {
		t.Errorf("sealed %+v, %v", r, err)
	}
	if r, err = db.Reseal(ctx, 2, 10, ResealFrom{}); err != nil || r.Done != 0 || r.More {
		t.Errorf("sealed %+v that needed none, %v", r, err)
	}
	for table, read := range sealedTables {
		if err := read(ctx, db); err != nil {
			t.Errorf("%s: %v", table, err)
		}
	}
	if uses, err = db.GenerationUses(ctx); err != nil || uses[1].MACs != 0 || int(uses[2].MACs) != rows {
		t.Errorf("uses %v, %v", uses, err)
	}
	if found, err := db.LogSealedUnder(ctx, 1); err != nil || !found {
		t.Errorf("the audit log under generation 1: %t, %v", found, err)
	}
}

// TestResealKnowsAllTables: a sealed table that is added later and not sealed
// anew would need its first MAC key for ever.
func TestResealKnowsAllTables(t *testing.T) {
	db, _ := open(t)
	rows, _ := db.pool.Query(context.Background(), `
		SELECT table_name::text FROM information_schema.columns
		WHERE table_schema = 'public' AND column_name = 'mac' AND table_name <> 'audit_batches'`)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) == 0 {
		t.Fatal(err)
	}
	for _, table := range tables {
		if reseals[table] == nil {
			t.Errorf("%s has MACs, but Reseal does not know it", table)
		}
	}
	if len(tables) != len(reseals) {
		t.Errorf("Reseal knows %d tables, the schema %d", len(reseals), len(tables))
	}
}
