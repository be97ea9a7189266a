package softhsmtest

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Every constraint that the service model has for an operation that works is
// broken by itself, through the wire. Each such request is refused with AWS's
// error, recorded once, and changes nothing.
func TestEveryConstraint(t *testing.T) {
	const atLeast = 2400 // fewer mean that the generator has lost some
	d := shared(t)
	keyID := *createKey(t, d.client(t)).KeyId
	built, _ := operationTable(t)
	var all []badRequest
	for _, operation := range built {
		made := newGenerator(t, operation, keyID).generate(t)
		if len(made) < 10 {
			t.Errorf("%s: only %d bad requests", operation, len(made))
		}
		all = append(all, made...)
	}
	before, started := d.state(t), time.Now()
	calls := sendAll(t, d, all, func(b badRequest) request { return request{operation: b.operation, body: b.body} }, badRequest.judge)
	t.Logf("%d bad requests to %d operations in %s", len(all), len(built), time.Since(started).Round(time.Millisecond))
	if len(all) < atLeast {
		t.Errorf("%d bad requests, want at least %d", len(all), atLeast)
	}
	d.wantState(t, before)
	d.wantRecords(t, calls)
}

// sendAll sends many requests over several connections and judges each answer.
// It returns the calls, to look for their records.
func sendAll[R any](t *testing.T, d *deployment, all []R, build func(R) request, judge func(R, answer) error) []call {
	t.Helper()
	width := 4 * runtime.GOMAXPROCS(0)
	through := &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: width}}
	defer through.CloseIdleConnections()
	calls := make([]call, len(all))
	var next, failures atomic.Int64
	var group sync.WaitGroup
	for range width {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(all)); i = next.Add(1) - 1 {
				r := build(all[i])
				a, err := d.send(through, r)
				if err == nil {
					calls[i] = call{Operation: r.operation, RequestID: a.requestID, ErrorCode: a.code, Status: a.status}
					err = judge(all[i], a)
				}
				if err != nil && failures.Add(1) <= 40 {
					t.Errorf("%s: %v", r.operation, err)
				}
			}
		})
	}
	group.Wait()
	if n := failures.Load(); n > 40 {
		t.Errorf("and %d more", n-40)
	}
	return calls
}

var validationErrors = regexp.MustCompile(`^[1-9]\d* validation errors? detected: Value`)

// judge says what is wrong with the answer to b.
func (b badRequest) judge(a answer) error {
	fault := func(format string, args ...any) error {
		return fmt.Errorf("%s: answered %d %.300s: %s", b.what, a.status, a.body, fmt.Sprintf(format, args...))
	}
	switch {
	case a.status != 400 || a.code != b.code:
		return fault("want 400 %s", b.code)
	case a.requestID == "" || !a.hasText || a.text == "" || strings.Contains(a.text, marker):
		return fault("want a request id, and a text without the value")
	case !strings.Contains(a.text, b.text):
		return fault("want %q in it", b.text)
	case b.code == "SerializationException":
		return nil
	case !validationErrors.MatchString(a.text):
		return fault("that is not how AWS begins")
	}
	if b.path == "" {
		return nil
	}
	// A value may break its length and its pattern at once, but nothing else
	// is wrong with the request.
	at := " at '" + b.path + "' failed to satisfy constraint: "
	if n := strings.Count(a.text, " failed to satisfy constraint: "); n == 0 || n != strings.Count(a.text, at) {
		return fault("want it to complain about %s only", b.path)
	}
	if shown := !strings.Contains(a.text, "Value"+at); shown == b.hidden {
		return fault("value shown: %t", shown)
	}
	return nil
}

// writtenBehind are the tables that requests, also refused ones, do not change
// there and then: the audit log itself, and hints about last uses that are
// written seconds later. The tables of the jobs move by themselves, too.
var writtenBehind = []string{"audit_batches", "key_last_usage", "key_usage_tracking"}

// state is a digest of each table of the database.
func (d *deployment) state(t testing.TB) map[string]string {
	t.Helper()
	ctx := context.Background()
	rows, err := d.pool.Query(ctx, `SELECT table_name::text FROM information_schema.tables
		WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' AND table_name <> ALL($1) AND table_name NOT LIKE 'river\_%'`, writtenBehind)
	if err != nil {
		t.Fatal(err)
	}
	tables := must(pgx.CollectRows(rows, pgx.RowTo[string]))(t)
	if !slices.Contains(tables, "keys") || !slices.Contains(tables, "changes") {
		t.Fatalf("the database has tables %v", tables)
	}
	digests := map[string]string{}
	for _, table := range tables {
		var digest string
		sql := `SELECT count(*) || ' rows ' || coalesce(md5(string_agg(r::text, '|' ORDER BY r::text)), '') FROM ` + pgx.Identifier{table}.Sanitize() + ` r`
		if err := d.pool.QueryRow(ctx, sql).Scan(&digest); err != nil {
			t.Fatal(err)
		}
		digests[table] = digest
	}
	return digests
}

// wantState demands that nothing has changed since before.
func (d *deployment) wantState(t testing.TB, before map[string]string) {
	t.Helper()
	after := d.state(t)
	for _, table := range slices.Sorted(maps.Keys(before)) {
		if before[table] != after[table] {
			t.Errorf("refused requests changed table %s: %s, then %s", table, before[table], after[table])
		}
	}
}

// The digest sees a change of one column of one row.
func TestStateSeesChanges(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	key := createKey(t, c)
	before := d.state(t)
	if again := d.state(t); !maps.Equal(before, again) {
		t.Errorf("the state moves by itself: %v, %v", before, again)
	}
	if err := tagKey(c, key.KeyId, tag("k", "v")); err != nil {
		t.Fatal(err)
	}
	if after := d.state(t); before["keys"] == after["keys"] || before["changes"] == after["changes"] || before["aliases"] != after["aliases"] {
		t.Errorf("before a change %v, after it %v", before, after)
	}
}
