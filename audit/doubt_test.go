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

// slowCommit makes the commit of every batch with this text take a while.
func slowCommit(t *testing.T, db *store.DB, text string, pause time.Duration) {
	t.Helper()
	_, err := db.Pool().Exec(t.Context(), fmt.Sprintf(`
		CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF position('%s' IN NEW.records) > 0 THEN PERFORM pg_sleep(%f); END IF;
			RETURN NULL;
		END $$;
		CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON audit_batches
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow_commit()`, text, pause.Seconds()))
	if err != nil {
		t.Fatal(err)
	}
}

// awaitCommit returns once a commit sleeps.
func awaitCommit(t *testing.T, db *store.DB, answer <-chan error) {
	t.Helper()
	for range 1000 {
		var sleeps bool
		err := db.Pool().QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event = 'PgSleep')`).Scan(&sleeps)
		if err != nil {
			t.Fatal(err)
		}
		if sleeps {
			return
		}
		select {
		case err := <-answer:
			t.Fatalf("answered before the commit: %v", err)
		case <-time.After(2 * time.Millisecond):
		}
	}
	t.Fatal("no commit sleeps")
}

// TestCutWhileCommitting cuts the connection while Postgres commits, for
// longer than one look or than all of them: what was committed is never
// answered with an error that promises that it was not.
func TestCutWhileCommitting(t *testing.T) {
	for name, c := range map[string]struct {
		pause  time.Duration
		change bool
		doubt  bool // remains
	}{
		"record":          {pause: 700 * time.Millisecond},
		"change":          {pause: 700 * time.Millisecond, change: true},
		"record, long":    {pause: 4 * time.Second, doubt: true},
		"change, long":    {pause: 4 * time.Second, change: true, doubt: true},
		"record, at once": {pause: 50 * time.Millisecond},
		"change, at once": {pause: 50 * time.Millisecond, change: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct := testenv.Postgres(t)
			beside := migrated(t, direct)
			wire, u := through(t, direct)
			db := connect(t, u)
			w := openWriter(t, db, 0)
			if _, err := w.Record(t.Context(), sample()); err != nil {
				t.Fatal(err)
			}
			slowCommit(t, beside, "in flight", c.pause)
			r := sample()
			r.EventID = "in flight"
			answer := make(chan error, 1)
			go func() { answer <- write(w, db, r, c.change) }()
			awaitCommit(t, beside, answer)
			wire.cut()
			err := <-answer
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
	beside := migrated(t, direct)
	wire, u := through(t, direct)
	before := openWriter(t, connect(t, u), 0)
	if _, err := before.Record(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	slowCommit(t, beside, "in flight", 900*time.Millisecond)
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
	if _, err := w.Record(t.Context(), sample()); err != nil {
		t.Fatalf("first record of the next process: %v", err)
	}
	if n, err := VerifyChain(t.Context(), beside, testHost); n != 3 || err != nil {
		t.Errorf("chain of %d, %v", n, err)
	}
}
