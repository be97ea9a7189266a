package store

import (
	"strings"
	"testing"
)

// TestPlansOfChanges: every call that changes something asks the change log
// whether rights have changed, and must not read all of it, however long it is.
// Postgres makes the plan that a statement gets after a few uses without knowing
// its parameters.
func TestPlansOfChanges(t *testing.T) {
	db, _ := open(t)
	exec(t, db, `INSERT INTO changes SELECT n, '111122223333', 'us-east-1', 'key', n::text FROM generate_series(1, 20000) n`)
	exec(t, db, `UPDATE change_sequence SET seq = 20000`)
	exec(t, db, `ANALYZE changes`)
	conn, err := db.Pool().Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	run := func(sql string) (lines string) {
		t.Helper()
		// Not by way of pgx, which would want the parameters of what PREPARE gets.
		results, err := conn.Conn().PgConn().Exec(t.Context(), sql).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range results[0].Rows {
			lines += string(row[0]) + "\n"
		}
		return lines
	}
	for statement, arguments := range map[string]string{
		rightsUnchanged: "(19999, 'principal', 'access_key')",
		changesSince:    "(19999, 10000)",
		prune:           "",
	} {
		run("PREPARE tested AS " + statement)
		for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
			run("SET plan_cache_mode = " + mode)
			plan := run("EXPLAIN EXECUTE tested" + arguments)
			if !strings.Contains(plan, "changes_pkey") || strings.Contains(plan, "Seq Scan on changes") {
				t.Errorf("%s reads the whole table with %s:\n%s", statement, mode, plan)
			}
		}
		run("DEALLOCATE tested")
	}
}
