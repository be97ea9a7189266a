package kms

import (
	"strconv"
	"strings"
	"testing"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestClocksApart: a host does not delete what is due by its own clock alone.
// Here Postgres's is the one that is moved. The change log is pruned meanwhile:
// it would grow for as long as nobody corrects the clocks.
func TestClocksApart(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	if _, err := do(f, s, "ScheduleKeyDeletion", (*Service).ScheduleKeyDeletion, &awskms.ScheduleKeyDeletionInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	f.pass(30)
	run := func(sql string) {
		t.Helper()
		if _, err := s.db.Pool().Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		s.db.Renew()
	}
	run(`CREATE SCHEMA moved;
		CREATE FUNCTION moved.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() - interval '6 min' $$;
		DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = moved, pg_catalog, public', current_database()); END $$`)
	run(`UPDATE change_sequence SET seq = seq + 2 * ` + strconv.Itoa(keptChanges))
	w := &sweeper{service: s}
	if err := w.Work(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "apart by 6m0s") {
		t.Errorf("clocks six minutes apart: %v", err)
	}
	var left int
	if err := s.db.Pool().QueryRow(t.Context(), "SELECT count(*) FROM changes").Scan(&left); left != 0 || err != nil {
		t.Errorf("%d old changes are left, %v", left, err)
	}
	wantState(t, f, s, id, types.KeyStatePendingDeletion)
	run(`DROP SCHEMA moved CASCADE`)
	if err := w.Work(t.Context(), nil); err != nil {
		t.Error(err)
	}
	_, err := do(f, s, "DescribeKey", (*Service).DescribeKey, &awskms.DescribeKeyInput{KeyId: &id})
	wantCode(t, err, "NotFoundException")
}

// TestReadOnlyPostgres, as after a failover: callers are told to try again.
func TestReadOnlyPostgres(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	if _, err := s.db.Pool().Exec(t.Context(), `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`); err != nil {
		t.Fatal(err)
	}
	s.db.Renew()
	_, err := do(f, s, "CreateKey", (*Service).CreateKey, &awskms.CreateKeyInput{})
	wantCode(t, err, "DependencyTimeoutException")
	if !strings.Contains(err.Error(), "point the database URL at the primary") {
		t.Errorf("the log has no next step: %v", err)
	}
}
