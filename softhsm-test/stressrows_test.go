package softhsmtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/jackc/pgx/v5"
)

// crashPostgres ends one backend, which is the end of all, and returns when
// Postgres has found that out: what it answers from then on, it will not cut.
func (s *stress) crashPostgres(t *testing.T) {
	t.Helper()
	witness, err := pgx.Connect(t.Context(), s.d.database)
	if err != nil {
		return // it is down
	}
	defer witness.Close(t.Context()) //nolint:errcheck // it is cut
	var pid int
	if err := s.d.pool.QueryRow(t.Context(), "SELECT pg_backend_pid()").Scan(&pid); err == nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = witness.Exec(t.Context(), "SELECT pg_sleep(60)")
	}
}

// keyRows is what the database says of keys.
func (s *stress) keyRows(t *testing.T) map[string]*modelKey {
	t.Helper()
	rows, err := s.d.pool.Query(t.Context(), `
		SELECT region || '/' || id, state, description, primary_region, CASE WHEN policy LIKE '%key-default-1%' THEN '' ELSE policy END, tags::text, rotation_period_days,
			(SELECT count(*) FROM backing_keys b WHERE b.key_id = k.id AND b.region = k.region),
			ARRAY(SELECT g.id FROM grants g WHERE g.key_id = k.id AND g.region = k.region) FROM keys k`)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*modelKey{}
	var id, tags string
	var k modelKey
	_, err = pgx.ForEachRow(rows, []any{&id, &k.State, &k.Description, &k.Primary, &k.Policy, &tags, &k.Days, &k.Materials, &k.Grants}, func() error {
		kept := k
		k.Grants, kept.Tags = nil, map[string]string{}
		var list []struct{ Key, Value string }
		if err := json.Unmarshal([]byte(tags), &list); err != nil {
			return fmt.Errorf("%s: %w", tags, err)
		}
		for _, tag := range list {
			kept.Tags[tag.Key] = tag.Value
		}
		found[id] = &kept
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func (s *stress) aliasRows(t *testing.T) map[string]string {
	t.Helper()
	rows, err := s.d.pool.Query(t.Context(), "SELECT region || '/' || name, key_id FROM aliases")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	var name, id string
	if _, err := pgx.ForEachRow(rows, []any{&name, &id}, func() error { found[name] = id; return nil }); err != nil {
		t.Fatal(err)
	}
	return found
}

// openAll demands that every key that is left works, and that all that was
// sealed under it opens, on each host.
func (s *stress) openAll(t *testing.T, m *model) {
	t.Helper()
	client := func(i int, region string) *kms.Client {
		return newRegionClient(s.hosts[i].Load().url, region, s.d.admin, &recorder{})
	}
	for _, name := range slices.Sorted(maps.Keys(m.keys)) {
		region, id, _ := strings.Cut(name, "/")
		c := client(0, region)
		if strings.HasPrefix(m.keys[name].State, "Pending") {
			must(c.CancelKeyDeletion(t.Context(), &kms.CancelKeyDeletionInput{KeyId: &id}))(t)
		}
		if m.keys[name].State != "Enabled" {
			must(c.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &id}))(t)
		}
	}
	opened := 0
	for i := range s.hosts {
		for _, saw := range s.saw {
			for _, name := range []string{saw.key, m.related(saw.key)} {
				if saw.blob != nil && m.keys[name] != nil {
					region, _, _ := strings.Cut(name, "/")
					wantDecrypt(t, client(i, region), saw.blob, saw.text, nil)
					opened++
				}
			}
		}
		wantAllKeysWork(t, client(i, region))
		wantAllKeysWork(t, client(i, otherRegion))
	}
	t.Logf("opened %d times", opened)
}
