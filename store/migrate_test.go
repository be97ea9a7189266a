package store

import (
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/trent-kms/trent/internal/testenv"
)

func TestMigrate(t *testing.T) {
	db := connect(t, testenv.Postgres(t))
	ctx := t.Context()
	if err := db.CheckSchema(ctx); !errors.Is(err, ErrOlderSchema) {
		t.Errorf("empty database: %v", err)
	}
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			if err := db.Migrate(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if err := db.CheckSchema(ctx); err != nil {
		t.Errorf("migrated database: %v", err)
	}
	if n := count(t, db, "river_job"); n != 0 {
		t.Errorf("%d jobs", n)
	}
	for _, newer := range []string{
		"INSERT INTO schema_migrations (version_id, is_applied) VALUES (9999, true)",
		"INSERT INTO river_migration (line, version) VALUES ('main', 9999)",
	} {
		exec(t, db, newer)
		for what, err := range map[string]error{"migrate": db.Migrate(ctx), "check": db.CheckSchema(ctx)} {
			if !errors.Is(err, ErrNewerSchema) || !strings.Contains(err.Error(), newerNext) {
				t.Errorf("%s after %s: %v", what, newer, err)
			}
		}
		exec(t, db, "DELETE FROM schema_migrations WHERE version_id = 9999")
		exec(t, db, "DELETE FROM river_migration WHERE version = 9999")
	}
}

func TestOpenRefuses(t *testing.T) {
	good := testenv.Postgres(t)
	u, err := url.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("synchronous_commit", "off")
	u.RawQuery = q.Encode()
	var setting *ErrSetting
	if _, err := Open(t.Context(), Config{URL: u.String()}); !errors.As(err, &setting) || setting.Setting != "synchronous_commit" {
		t.Errorf("synchronous_commit=off: %v", err)
	}
	if _, err := Open(t.Context(), Config{URL: "postgres://u:geheim@127.0.0.1:1/x?connect_timeout=1"}); !errors.Is(err, ErrUnavailable) ||
		!strings.Contains(err.Error(), "is it running") || strings.Contains(err.Error(), "geheim") {
		t.Errorf("no server: %v", err)
	}
	if _, err := Open(t.Context(), Config{URL: "postgres://u:geheim@host:x/"}); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("bad URL: %v", err)
	}
	missing := strings.Replace(good, "/test_", "/nowhere_", 1)
	if _, err := Open(t.Context(), Config{URL: missing}); err == nil || !strings.Contains(err.Error(), "create it") {
		t.Errorf("no database: %v", err)
	}
}

func TestAuditView(t *testing.T) {
	db, _ := open(t)
	b := &AuditBatch{Host: "h", BootID: id(), FirstSeq: 1, LastSeq: 2, PrevHash: make([]byte, 32), LastHash: []byte{1}, Records: []byte("{\"a\":1}\n{\"a\":2}\n")}
	if err := db.SealAudit(t.Context(), nil, b); err != nil {
		t.Fatal(err)
	}
	if seq, err := db.AppendAudit(t.Context(), b); err != nil || seq != 0 {
		t.Fatal(seq, err)
	}
	if n := count(t, db, "audit_records WHERE seq = 2 AND record->>'a' = '2'"); n != 1 || count(t, db, "audit_records") != 2 {
		t.Error("the view does not split the batch")
	}
	if _, err := db.AppendAudit(t.Context(), b); !errors.Is(err, ErrAuditHead) {
		t.Errorf("same batch again: %v", err)
	}
	b.FirstSeq, b.LastSeq = 4, 5
	if _, err := db.AppendAudit(t.Context(), b); !errors.Is(err, ErrAuditHead) {
		t.Errorf("a batch behind a gap: %v", err)
	}
}
