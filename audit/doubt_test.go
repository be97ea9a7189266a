package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/trent-kms/trent/internal/testenv"
	"github.com/trent-kms/trent/store"
)

// A wire stands between a process and Postgres, and can be cut.
type wire struct {
	socket string // of Postgres
	mu     sync.Mutex
	conns  []net.Conn // guarded by mu
}

// through returns a wire, and the URL that leads to Postgres through it.
func through(t *testing.T, direct string) (*wire, string) {
	t.Helper()
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	name := ".s.PGSQL." + q.Get("port")
	w := &wire{socket: filepath.Join(q.Get("host"), name)}
	dir, err := os.MkdirTemp("", "wire") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			w.join(client)
		}
	}()
	q.Set("host", dir)
	u.RawQuery = q.Encode()
	return w, u.String()
}

// join passes on all but requests to cancel, which pgx sends when it loses a
// connection, and which may well be lost too.
func (w *wire) join(client net.Conn) {
	first := make([]byte, 8) // length and version, or the code of a request
	_, err := io.ReadFull(client, first)
	if err != nil || binary.BigEndian.Uint32(first[4:]) == 80877102 {
		_ = client.Close()
		return
	}
	server, err := net.Dial("unix", w.socket)
	if err != nil {
		_ = client.Close()
		return
	}
	_, _ = server.Write(first)
	w.mu.Lock()
	w.conns = append(w.conns, client, server)
	w.mu.Unlock()
	for from, to := range map[net.Conn]net.Conn{client: server, server: client} {
		go func() {
			_, _ = io.Copy(to, from)
			_, _ = from.Close(), to.Close()
		}()
	}
}

// cut ends all connections. Postgres goes on with what it has been told.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

// holdCommit keeps the commit of every batch with this text from its end until
// release.
func holdCommit(t *testing.T, url, text string) (release func()) {
	t.Helper()
	conn := own(t, url)
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(fmt.Sprintf(`
		CREATE FUNCTION held_commit() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
		BEGIN
			IF position('%s' IN NEW.records) > 0 THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
			RETURN NULL;
		END $$;
		CREATE CONSTRAINT TRIGGER held_commit AFTER INSERT ON audit_batches
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION held_commit()`, text))
	exec("SELECT pg_advisory_lock(1)")
	return func() { t.Helper(); exec("SELECT pg_advisory_unlock(1)") }
}

// own is a connection without the bounds that a store's have.
func own(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// awaitCommit returns once a commit is held.
func awaitCommit(t *testing.T, db *store.DB, answer <-chan error) {
	t.Helper()
	for len(waits(t, db, "wait_event = 'advisory'")) == 0 {
		select {
		case err := <-answer:
			t.Fatalf("answered before the commit: %v", err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// awaitLooks returns once n statements, one after the other, have waited for
// what the commit that is held has locked.
func awaitLooks(t *testing.T, db *store.DB, n int, answer <-chan error) {
	t.Helper()
	for seen := map[time.Time]bool{}; len(seen) < n; {
		for _, began := range waits(t, db, "wait_event <> 'advisory'") {
			seen[began] = true
		}
		select {
		case err := <-answer:
			t.Fatalf("answered after %d looks at what is not committed: %v", len(seen), err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// waits is when the statements began that wait for such a lock.
func waits(t *testing.T, db *store.DB, which string) []time.Time {
	t.Helper()
	rows, err := db.Pool().Query(t.Context(), `SELECT query_start FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event_type = 'Lock' AND `+which)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestCutWhileCommitting cuts the connection while Postgres commits, for
// longer than one look or than all of them: what was committed is never
// answered with an error that promises that it was not.
func TestCutWhileCommitting(t *testing.T) {
	const patient = "&lock_timeout=3s" // or a slow machine makes more looks of it
	for name, c := range map[string]struct {
		setting string // of the writer's connections
		looks   int    // while Postgres commits
		change  bool
		doubt   bool // remains
	}{
		"record":          {setting: patient, looks: 2},
		"change":          {setting: patient, looks: 2, change: true},
		"record, long":    {doubt: true},
		"change, long":    {doubt: true, change: true},
		"record, at once": {setting: patient},
		"change, at once": {setting: patient, change: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct := testenv.Postgres(t)
			beside := migrated(t, direct)
			wire, u := through(t, direct)
			db := connect(t, u+c.setting)
			w := openWriter(t, db, 0)
			if _, err := w.Record(t.Context(), sample()); err != nil {
				t.Fatal(err)
			}
			release := holdCommit(t, direct, "in flight")
			r := sample()
			r.EventID = "in flight"
			answer := make(chan error, 1)
			go func() { answer <- write(w, db, r, c.change) }()
			awaitCommit(t, beside, answer)
			wire.cut()
			var err error
			if c.doubt {
				err = <-answer
				release()
			} else {
				awaitLooks(t, beside, c.looks, answer)
				release()
				err = <-answer
			}
			if c.doubt {
				if !errors.Is(err, store.ErrInDoubt) || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
					t.Errorf("unknown outcome: %v", err)
				}
			} else if err != nil {
				t.Errorf("committed, but answered %v", err)
			}
			awaitRecord(t, w)
			if n := written(t, beside)["in flight"]; n != 1 {
				t.Errorf("the record is in the log %d times", n)
			}
			if _, err := VerifyChain(t.Context(), beside, testHost); err != nil {
				t.Error(err)
			}
		})
	}
}

// awaitRecord demands that the writer goes on, if not at once.
func awaitRecord(t *testing.T, w *Writer) {
	t.Helper()
	var err error
	for range 20 {
		if _, err = w.Record(t.Context(), sample()); err == nil {
			return
		}
		if errors.Is(err, ErrChain) {
			break
		}
	}
	t.Fatalf("the writer does not recover: %v", err)
}

func write(w *Writer, db *store.DB, r *Record, change bool) error {
	ctx := context.Background()
	if !change {
		_, err := w.Record(ctx, r)
		return err
	}
	c := db.NewChange()
	if err := c.InsertPrincipal(ctx, store.Principal{ID: "p", Account: "1", Name: "p"}); err != nil {
		return err
	}
	_, err := w.Commit(ctx, r, c)
	return err
}

// TestPredecessorCommitsLate is a process that was killed with a commit in
// flight: the next one reads the log before it and must follow it.
func TestPredecessorCommitsLate(t *testing.T) {
	direct := testenv.Postgres(t)
	beside := migrated(t, direct+"&lock_timeout=3s")
	wire, u := through(t, direct)
	before := openWriter(t, connect(t, u), 0)
	if _, err := before.Record(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	release := holdCommit(t, direct, "in flight")
	old := before.chain.head
	r := sample()
	r.EventID = "in flight"
	answer := make(chan error, 1) // which the process does not live to hear
	go func() { answer <- write(before, nil, r, false) }()
	awaitCommit(t, beside, answer)
	before.stop()
	wire.cut()
	w := awaitWriter(t, beside)
	t.Cleanup(func() { _ = w.Close(context.Background()) })
	if w.chain.head != old {
		t.Fatal("the commit was not late")
	}
	next := make(chan error, 1)
	go func() { next <- write(w, nil, sample(), false) }()
	awaitLooks(t, beside, 1, next)
	release()
	if err := <-next; err != nil {
		t.Fatalf("first record of the next process: %v", err)
	}
	if n, err := VerifyChain(t.Context(), beside, testHost); n != 3 || err != nil {
		t.Errorf("chain of %d, %v", n, err)
	}
}
