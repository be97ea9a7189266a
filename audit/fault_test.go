package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/testenv"
	"github.com/trent-kms/trent/store"
)

// underLoad runs callers while disturb does its work, then demands that the
// writer has recovered and nothing confirmed is lost.
func underLoad(t *testing.T, db *store.DB, w *Writer, failed func(error), disturb func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	acked := make(chan *acknowledged)
	go func() { acked <- load(ctx, w, 8, failed) }()
	time.Sleep(100 * time.Millisecond)
	disturb()
	time.Sleep(300 * time.Millisecond)
	cancel()
	all := <-acked
	r := sample()
	for end := time.Now().Add(20 * time.Second); ; { // on a slow machine it may not be over
		r.EventID = ""
		_, err := w.Record(context.Background(), r)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrUnavailable) || time.Now().After(end) {
			t.Fatalf("record after the fault: %v", err)
		}
	}
	all.ids[r.EventID] = true
	demandAll(t, db, all.ids)
}

func TestConnectionsTerminated(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	w := openWriter(t, db, 0)
	executioner := connect(t, db.Pool().Config().ConnString())
	underLoad(t, db, w, onlyUnavailable(t), func() {
		for range 20 {
			_, err := executioner.Pool().Exec(t.Context(), `SELECT pg_terminate_backend(pid)
				FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(15 * time.Millisecond)
		}
	})
}

func onlyUnavailable(t *testing.T) func(error) {
	return func(err error) {
		if !errors.Is(err, store.ErrUnavailable) {
			t.Error(err)
		}
	}
}

// TestConnectionLostOnce demands that no caller notices: the writer looks up
// what became of the batch, and carries on.
func TestConnectionLostOnce(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	w := openWriter(t, db, 0)
	executioner := connect(t, db.Pool().Config().ConnString())
	underLoad(t, db, w, func(err error) { t.Error(err) }, func() {
		_, err := executioner.Pool().Exec(t.Context(), `SELECT pg_terminate_backend(pid)
			FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestPostgresRestarted(t *testing.T) {
	cluster := testenv.OwnPostgres(t)
	db := migrated(t, cluster.URL("postgres"))
	w := openWriter(t, db, 0)
	underLoad(t, db, w, onlyUnavailable(t), func() {
		if err := cluster.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDiskFull(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	w := openWriter(t, db, 0)
	run := func(sql string) {
		t.Helper()
		if _, err := db.Pool().Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	run(`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$`)
	underLoad(t, db, w, nil, func() {
		run("CREATE TRIGGER full_disk BEFORE INSERT ON audit_batches FOR EACH ROW EXECUTE FUNCTION full_disk()")
		if _, err := w.Record(t.Context(), sample()); err == nil || !strings.Contains(err.Error(), "free space") {
			t.Errorf("on a full disk: %v", err)
		}
		run("DROP TRIGGER full_disk ON audit_batches")
	})
}

func TestSecondWriter(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	w := openWriter(t, db, 0)
	_, err := Open(t.Context(), Config{DB: db, Host: testHost})
	if !errors.Is(err, store.ErrHostTaken) {
		t.Errorf("second writer: %v", err)
	}
	// One that gets past the lock is stopped by the primary key, and the
	// first notices.
	if _, err := w.Record(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	intruder := chain{db: db, host: testHost, boot: [16]byte{9}, head: w.chain.head}
	if _, err := intruder.append(t.Context(), []*entry{{line: []byte("{}")}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.Record(t.Context(), sample()); !errors.Is(err, ErrChain) {
			t.Errorf("record after a fork: %v", err)
		}
	}
	if w.Err() == nil {
		t.Error("the writer holds itself for healthy")
	}
}

// TestInDoubt commits a batch whose caller is told of an error, as when the
// connection is lost at the wrong moment, and demands that the next follows it.
func TestInDoubt(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	w := openWriter(t, db, 0)
	if _, err := w.Record(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	ghost := w.chain // a copy: it writes, and w does not learn of it
	if _, err := ghost.append(t.Context(), []*entry{{line: []byte("{}")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Record(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	if n, err := VerifyChain(t.Context(), db, testHost); n != 3 || err != nil {
		t.Errorf("chain of %d, %v", n, err)
	}
}

// TestLogCutOff has the log lose its newest record: the writer must not go on
// behind the gap, neither with a record nor with a change, be it in doubt after a
// lost connection, or idle in a failover, when no connection of its own broke.
func TestLogCutOff(t *testing.T) {
	for name, c := range map[string]struct{ doubt, change bool }{
		"in doubt, record": {doubt: true}, "in doubt, change": {doubt: true, change: true}, "idle, record": {}, "idle, change": {change: true},
	} {
		t.Run(name, func(t *testing.T) {
			db := migrated(t, testenv.Postgres(t))
			w := openWriter(t, db, 0)
			for range 2 {
				if _, err := w.Record(t.Context(), sample()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := db.Pool().Exec(t.Context(), "DELETE FROM audit_batches WHERE first_seq = 2"); err != nil {
				t.Fatal(err)
			}
			db.Renew()
			w.chain.doubt = c.doubt
			r := sample()
			r.EventID = "behind the gap"
			if err := write(w, db, r, c.change); !errors.Is(err, ErrChain) {
				t.Errorf("behind a gap: %v", err)
			}
			if n, err := VerifyChain(t.Context(), db, testHost); n != 1 || err != nil {
				t.Errorf("chain of %d, %v", n, err)
			}
			if all, err := db.Principals(t.Context(), "1"); err != nil || len(all) != 0 {
				t.Errorf("changed without a record: %v, %v", all, err)
			}
		})
	}
}

func TestFullQueueAndCancelledWait(t *testing.T) {
	url := testenv.Postgres(t)
	db := migrated(t, url+"&lock_timeout=1min")
	w := openWriter(t, db, 3)
	tx, err := own(t, url).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE audit_batches"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error)
	record := func(ctx context.Context, id string) {
		_, err := w.Record(ctx, &Record{EventID: id})
		answers <- err
	}
	go record(t.Context(), "taken") // into the batch that hangs
	for len(queued(w)) > 0 || !hanging(t, db) {
		time.Sleep(5 * time.Millisecond)
	}
	for i := range 3 {
		go record(ctx, fmt.Sprint("queued ", i))
	}
	for len(queued(w)) < 3 {
		time.Sleep(time.Millisecond)
	}
	if _, err := w.Record(t.Context(), sample()); !errors.Is(err, ErrBusy) {
		t.Errorf("fourth in a queue of three: %v", err)
	}
	cancel()
	for range 3 {
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled wait: %v", err)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answers; err != nil {
		t.Errorf("record that hung: %v", err)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	demandAll(t, db, map[string]bool{"taken": true, "queued 0": true, "queued 1": true, "queued 2": true})
}

func queued(w *Writer) []*entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting
}

// hanging reports whether an insert waits for a lock.
func hanging(t *testing.T, db *store.DB) (yes bool) {
	t.Helper()
	err := db.Pool().QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO audit_batches%')`).Scan(&yes)
	if err != nil {
		t.Fatal(err)
	}
	return yes
}

// TestKilled kills a process that records under load, and demands all that it
// has confirmed.
func TestKilled(t *testing.T) {
	const urlVariable = "TRENT_TEST_KILLED"
	if url := os.Getenv(urlVariable); url != "" {
		recordForEver(t, url)
		return
	}
	url := testenv.Postgres(t)
	db := migrated(t, url)
	acked := map[string]bool{}
	for range 3 {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$") // #nosec G204 -- this program
		child.Env = append(os.Environ(), urlVariable+"="+url+"&application_name="+killed)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if id, ok := strings.CutPrefix(lines.Text(), "acked "); ok {
				acked[id] = true
			}
			if n == 500 {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait() // killed
	}
	if len(acked) < 1000 {
		t.Fatalf("only %d records acknowledged", len(acked))
	}
	for working(t, db) { // the last batch of the last one may still be on its way
		time.Sleep(5 * time.Millisecond)
	}
	demandAll(t, db, acked)
}

// killed is what the processes that are killed call themselves to Postgres.
const killed = "killed"

// working reports whether Postgres still has a connection of a killed process.
// That it does nothing is not enough: the last batch may not be read yet.
func working(t *testing.T, db *store.DB) (yes bool) {
	t.Helper()
	err := db.Pool().QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = $1)`, killed).Scan(&yes)
	if err != nil {
		t.Fatal(err)
	}
	return yes
}

func recordForEver(t *testing.T, url string) {
	w := awaitWriter(t, connect(t, url))
	for range 8 {
		go func() {
			for {
				r := sample()
				r.EventID = ""
				if _, err := w.Record(context.Background(), r); err != nil {
					panic(err)
				}
				fmt.Printf("acked %s\n", r.EventID)
			}
		}()
	}
	select {}
}

// awaitWriter opens a writer once the server has noticed its predecessor's end.
func awaitWriter(t *testing.T, db *store.DB) *Writer {
	t.Helper()
	for range 3000 {
		w, err := Open(context.Background(), Config{DB: db, Host: testHost})
		if err == nil {
			return w
		}
		if !errors.Is(err, store.ErrHostTaken) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the predecessor's lock stays")
	return nil
}

// TestStricterIsolation: what the server's or the role's default is does not
// make hosts, which write at the same time, refuse each other's records.
func TestStricterIsolation(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	const stricter = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = serializable', current_database()); END $$"
	if _, err := db.Pool().Exec(t.Context(), stricter); err != nil {
		t.Fatal(err)
	}
	db.Renew()
	var hosts sync.WaitGroup
	for _, host := range []string{"a", "b", "c"} {
		w, err := Open(t.Context(), Config{DB: db, Host: host})
		if err != nil {
			t.Fatal(err)
		}
		hosts.Go(func() {
			defer w.Close(context.Background()) //nolint:errcheck // the records tell
			for i := range 200 {
				if _, err := w.Record(t.Context(), sample()); err != nil {
					t.Errorf("record %d of host %s: %v", i, host, err)
					return
				}
			}
		})
	}
	hosts.Wait()
}
