package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/internal/testenv"
	"github.com/trent-kms/trent/store"
)

// fixedSealer is a real HMAC-SHA-256 with a key in memory: what is tested here
// is the chain and its faults, not the HSM.
type fixedSealer struct{}

func (fixedSealer) Sum(_ context.Context, message []byte) (uint32, []byte, error) {
	h := hmac.New(sha256.New, []byte("key"))
	h.Write(message)
	return 1, h.Sum(nil), nil
}

func (s fixedSealer) Verify(ctx context.Context, generation uint32, message, mac []byte) (bool, error) {
	_, want, _ := s.Sum(ctx, message)
	return generation == 1 && hmac.Equal(mac, want), nil
}

const testHost = "host-1"

// connect opens the database at url with a sealer.
func connect(t testing.TB, url string) *store.DB {
	t.Helper()
	db, err := store.Open(context.Background(), store.Config{URL: url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	db.SetSealer([16]byte{1}, fixedSealer{})
	return db
}

// migrated returns a fresh database at url.
func migrated(t testing.TB, url string) *store.DB {
	t.Helper()
	db := connect(t, url)
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

func openWriter(t testing.TB, db *store.DB, queue int) *Writer {
	t.Helper()
	w, err := Open(context.Background(), Config{
		DB: db, Host: testHost, Queue: queue,
		Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close(context.Background()) })
	return w
}

// acknowledged are the event ids that Record has confirmed.
type acknowledged struct {
	sync.Mutex
	ids map[string]bool
}

// load runs callers that record until ctx ends, at least once each. Errors go to
// failed, which may be nil.
func load(ctx context.Context, w *Writer, callers int, failed func(error)) *acknowledged {
	acked := &acknowledged{ids: map[string]bool{}}
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for first := true; first || ctx.Err() == nil; first = false {
				r := sample()
				r.EventID = ""
				if _, err := w.Record(context.Background(), r); err != nil {
					if failed != nil {
						failed(err)
					}
					time.Sleep(time.Millisecond)
					continue
				}
				acked.Lock()
				acked.ids[r.EventID] = true
				acked.Unlock()
			}
		})
	}
	group.Wait()
	return acked
}

// written returns how often each event id is in the log.
func written(t testing.TB, db *store.DB) map[string]int {
	t.Helper()
	rows, err := db.Pool().Query(context.Background(), "SELECT record->>'eventID' FROM audit_records ORDER BY seq")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	found := map[string]int{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		found[id]++
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	return found
}

// demandAll demands every acknowledged record once, none twice, and an intact
// chain without gap or fork.
func demandAll(t testing.TB, db *store.DB, ids map[string]bool) {
	t.Helper()
	found := written(t, db)
	for id := range ids {
		if found[id] != 1 {
			t.Errorf("acknowledged record %s is in the log %d times", id, found[id])
		}
	}
	n, err := VerifyChain(context.Background(), db, testHost)
	if err != nil {
		t.Errorf("after %d records: %v", n, err)
	}
	total := 0
	for id, times := range found {
		if total += times; times != 1 {
			t.Errorf("record %s is in the log %d times", id, times)
		}
	}
	if int(n) != total {
		t.Errorf("chain has %d records, the view %d", n, total)
	}
}

func TestRecordAndChain(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	w := openWriter(t, db, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	acked := load(ctx, w, 8, func(err error) { t.Error(err) })
	if len(acked.ids) == 0 {
		t.Fatal("nothing recorded")
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Record(t.Context(), sample()); !errors.Is(err, ErrClosed) {
		t.Errorf("record after Close: %v", err)
	}
	// The next boot goes on where this one ended.
	w = openWriter(t, db, 0)
	r := sample()
	r.UserAgent, r.EventID = "nul\x00 \xff \"\\\n", "last"
	if _, err := w.Record(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	acked.ids["last"] = true
	demandAll(t, db, acked.ids)
	seq, hash, err := db.AuditHead(t.Context(), testHost)
	if err != nil || int(seq) != len(acked.ids) || len(hash) != 32 {
		t.Errorf("head %d, %v", seq, err)
	}
}

func TestCommitWithChange(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	w := openWriter(t, db, 0)
	ctx := t.Context()
	principal := func(id, name string) *store.Change {
		c := db.NewChange()
		if err := c.InsertPrincipal(ctx, store.Principal{ID: id, Account: "1", Name: name}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	seq, err := w.Commit(ctx, &Record{EventID: "a"}, principal("AIDA1", "x"))
	if err != nil || seq != 1 {
		t.Fatalf("sequence %d, %v", seq, err)
	}
	if _, err = w.Commit(ctx, &Record{EventID: "b"}, principal("AIDA2", "x")); !errors.Is(err, store.ErrExists) {
		t.Fatalf("taken name: %v", err)
	}
	if seq, err = w.Record(ctx, &Record{EventID: "c"}); err != nil || seq != 1 {
		t.Fatalf("sequence %d, %v", seq, err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err = w.Commit(gone, &Record{EventID: "d"}, principal("AIDA3", "z")); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled change: %v", err)
	}
	if found := written(t, db); len(found) != 2 || found["b"] != 0 {
		t.Errorf("log has %v", found)
	}
	demandAll(t, db, map[string]bool{"a": true, "c": true})
	if all, err := db.Principals(ctx, "1"); err != nil || len(all) != 1 {
		t.Errorf("principals %v, %v", all, err)
	}
}

// TestSequenceIsFresh demands I5: a record that begins after a change was
// committed, by anyone, is answered with that change's number or a later one.
func TestSequenceIsFresh(t *testing.T) {
	url := testenv.Postgres(t)
	db, other := migrated(t, url), connect(t, url)
	w := openWriter(t, db, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	background := make(chan *acknowledged)
	go func() { background <- load(ctx, w, 4, nil) }()
	for i := range 50 {
		c := other.NewChange()
		if err := c.InsertPrincipal(t.Context(), store.Principal{ID: fmt.Sprint(i), Account: "1", Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
		changed, err := other.Commit(t.Context(), c, nil)
		if err != nil {
			t.Fatal(err)
		}
		seen, err := w.Record(t.Context(), sample())
		if err != nil || seen < changed {
			t.Fatalf("record saw %d after change %d, %v", seen, changed, err)
		}
	}
	cancel()
	<-background
}

func TestTamperedLog(t *testing.T) {
	db := migrated(t, testenv.Postgres(t))
	w := openWriter(t, db, 0)
	for range 3 {
		if _, err := w.Record(t.Context(), sample()); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{
		"UPDATE audit_batches SET records = replace(records, 'alice', 'mallory') WHERE first_seq = 2",
		"UPDATE audit_batches SET records = records || records WHERE first_seq = 3",
		"DELETE FROM audit_batches WHERE first_seq = 2",
		"UPDATE audit_batches SET first_seq = 7, last_seq = 7 WHERE first_seq = 2",
		"UPDATE audit_batches SET last_hash = prev_hash WHERE first_seq = 1",
		"UPDATE audit_batches SET mac = '' WHERE first_seq = 1",
	} {
		for _, step := range []string{"CREATE TABLE saved AS SELECT * FROM audit_batches", sql} {
			if _, err := db.Pool().Exec(t.Context(), step); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := VerifyChain(t.Context(), db, testHost); err == nil {
			t.Errorf("not noticed: %s", sql)
		}
		if _, err := db.Pool().Exec(t.Context(), `DELETE FROM audit_batches;
			INSERT INTO audit_batches SELECT * FROM saved; DROP TABLE saved`); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := VerifyChain(t.Context(), db, testHost); n != 3 || err != nil {
		t.Errorf("restored log: %d, %v", n, err)
	}
}

func BenchmarkRecord(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			w := openWriter(b, migrated(b, testenv.Postgres(b)), 0)
			b.ReportAllocs()
			var left sync.Mutex
			n := b.N
			next := func() bool { left.Lock(); defer left.Unlock(); n--; return n >= 0 }
			b.ResetTimer()
			var group sync.WaitGroup
			for range callers {
				group.Go(func() {
					for next() {
						if _, err := w.Record(context.Background(), sample()); err != nil {
							b.Error(err)
						}
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
