package store

import (
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sampleGrant is a grant whose id begins with an octet.
func sampleGrant(first byte) Grant {
	raw := append([]byte{first}, make([]byte, 31)...)
	for i := range raw[1:] {
		raw[i+1] = byte(rand.Uint32()) // #nosec G404 -- of a test
	}
	return Grant{
		ID: hex.EncodeToString(raw), Name: "n", Grantee: "arn:aws:iam::111122223333:role/app",
		RetiringPrincipal: "arn:aws:iam::111122223333:user/ops", IssuingAccount: "arn:aws:iam::111122223333:root",
		Operations: "Encrypt,Decrypt", Constraints: `{"SourceArn":"arn:x"}`, RequestDigest: []byte("digest"), Created: time.Now(),
	}
}

// grant gives k, as it was loaded, a grant, and returns k as it is then.
func grant(t *testing.T, db *DB, k Key, g Grant) Key {
	t.Helper()
	k = reloaded(t, db, k)
	must(t, db, func(c *Change) error { return c.InsertGrant(t.Context(), k, g) })
	return reloaded(t, db, k)
}

func reloaded(t *testing.T, db *DB, k Key) Key {
	t.Helper()
	k, err := db.Key(t.Context(), k.Account, k.Region, k.ID)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func idsOf(grants []Grant) (ids []string) {
	for _, g := range grants {
		ids = append(ids, g.ID)
	}
	return ids
}

func TestGrants(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	k, _ := made(t, db, "k")
	var want []string
	for _, first := range []byte{0x80, 0x00, 0xff, 0x80, 0x7f, 0x80} {
		g := sampleGrant(first)
		k = grant(t, db, k, g)
		want = append(want, g.ID)
	}
	slices.Sort(want)
	if k.GrantCount != 6 || len(k.GrantPages) != 4*pageVersionSize {
		t.Errorf("%d grants, pages %x", k.GrantCount, k.GrantPages)
	}
	for limit := 1; limit < 8; limit++ {
		var seen []string
		for after := ""; ; after = seen[len(seen)-1] {
			page, err := db.ListGrants(ctx, k, after, limit)
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, idsOf(page)...)
			if len(page) < limit {
				break
			}
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("limit %d: %s", limit, diff)
		}
	}
	g, err := db.Grant(ctx, k, want[2])
	if err != nil {
		t.Fatal(err)
	}
	again := sampleGrant(0)
	again.Account, again.Region, again.KeyID, again.ID, again.Version, again.Created = k.Account, k.Region, k.ID, want[2], 1, g.Created
	if diff := cmp.Diff(again, g); diff != "" {
		t.Error(diff)
	}
	for _, id := range []string{sampleGrant(0x80).ID, sampleGrant(1).ID, "x", ""} {
		if _, err := db.Grant(ctx, k, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("grant %q: %v", id, err)
		}
	}
	must(t, db, func(c *Change) error { return c.DeleteGrant(ctx, k, g) })
	if _, err := db.Grant(ctx, k, g.ID); !errors.Is(err, ErrConflict) {
		t.Errorf("a key that has changed: %v", err)
	}
	k = reloaded(t, db, k)
	if _, err := db.Grant(ctx, k, g.ID); !errors.Is(err, ErrNotFound) || k.GrantCount != 5 {
		t.Errorf("deleted grant, of %d: %v", k.GrantCount, err)
	}
	must(t, db, func(c *Change) error { return c.DeleteKey(ctx, k) })
	if n := count(t, db, "grants") + count(t, db, "grant_pages"); n != 0 {
		t.Errorf("%d rows of a deleted key", n)
	}
}

// Who changes the grants of a key that has changed since writes nothing.
func TestGrantRaces(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	k, _ := made(t, db, "k")
	old := reloaded(t, db, k)
	k = grant(t, db, k, sampleGrant(1))
	if _, err := try(t, db, func(c *Change) error { return c.InsertGrant(ctx, old, sampleGrant(2)) }); !errors.Is(err, ErrConflict) {
		t.Errorf("grant on an old row: %v", err)
	}
	g, err := db.ListGrants(ctx, k, "", 10)
	if err != nil || len(g) != 1 {
		t.Fatal(g, err)
	}
	// The page has moved on: the change fails while it is made, or committed.
	grant(t, db, k, sampleGrant(1))
	if err := db.NewChange().DeleteGrant(ctx, k, g[0]); !errors.Is(err, ErrConflict) {
		t.Errorf("revoking on an old row: %v", err)
	}
	k = reloaded(t, db, k)
	k.GrantCount = MaxGrants
	var quota *ErrQuota
	if err := db.NewChange().InsertGrant(ctx, k, sampleGrant(3)); !errors.As(err, &quota) || quota.What != QuotaGrants {
		t.Errorf("grant over the quota: %v", err)
	}
}

func TestGrantOfRequest(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	k, _ := made(t, db, "k")
	other, _ := made(t, db, "other")
	unnamed, named := sampleGrant(1), sampleGrant(2)
	unnamed.Name = ""
	k = grant(t, db, k, unnamed)
	if _, err := db.GrantOfRequest(ctx, k, unnamed.RequestDigest); !errors.Is(err, ErrNotFound) {
		t.Errorf("unnamed: %v", err)
	}
	k = grant(t, db, k, named)
	if g, err := db.GrantOfRequest(ctx, k, named.RequestDigest); err != nil || g.ID != named.ID {
		t.Errorf("%+v, %v", g, err)
	}
	if _, err := db.GrantOfRequest(ctx, reloaded(t, db, other), named.RequestDigest); !errors.Is(err, ErrNotFound) {
		t.Errorf("of another key: %v", err)
	}
}

func TestRetirableGrants(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	var want []string
	for _, name := range []string{"a", "b", "c"} {
		k, _ := made(t, db, name)
		for i := range 3 {
			g := sampleGrant(byte(i))
			k = grant(t, db, k, g)
			want = append(want, name+g.ID)
			g = sampleGrant(byte(i))
			g.RetiringPrincipal = []string{"", "arn:aws:iam::111122223333:user/other"}[i%2]
			k = grant(t, db, k, g)
		}
	}
	for _, limit := range []int{1, 2, 4, 10} {
		var seen []string
		var after GrantRef
		for {
			page, err := db.RetirableGrants(ctx, "111122223333", "eu-central-1", "arn:aws:iam::111122223333:user/ops", after, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range page {
				after = GrantRef{g.KeyID, g.ID}
				seen = append(seen, g.KeyID+g.ID)
			}
			if len(page) < limit {
				break
			}
		}
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("limit %d: %s", limit, diff)
		}
	}
}

// TestGrantSet alters the set of a key's grants in every way that an intruder
// with old rows at hand can.
func TestGrantSet(t *testing.T) {
	const (
		putRow  = `INSERT INTO grants SELECT * FROM old_grants WHERE id = 'REVOKED'`
		putPage = `; UPDATE grant_pages p SET version = o.version, members = o.members, mac = o.mac
			FROM old_grant_pages o WHERE p.key_id = 'k' AND o.key_id = 'k' AND p.number = o.number`
	)
	for name, sql := range map[string]string{
		"left out":               `DELETE FROM grants WHERE id = 'KEPT'`,
		"all left out":           `DELETE FROM grants WHERE key_id = 'k'`,
		"a revoked one put back": putRow,
		"put back with its page": putRow + putPage,
		"only the old page":      `SELECT 'REVOKED'` + putPage,
		"page left out":          `DELETE FROM grant_pages WHERE key_id = 'k'`,
		"another key's put in":   `UPDATE grants SET key_id = 'k' WHERE key_id = 'other'`,
		"another key's page":     `UPDATE grant_pages SET members = (SELECT members FROM grant_pages WHERE key_id = 'other' LIMIT 1) WHERE key_id = 'k'`,
	} {
		t.Run(name, func(t *testing.T) {
			db, _ := open(t)
			ctx := t.Context()
			other, _ := made(t, db, "other")
			grant(t, db, other, sampleGrant(7))
			k, _ := made(t, db, "k")
			revoked, kept := sampleGrant(7), sampleGrant(7)
			k = grant(t, db, grant(t, db, k, revoked), kept)
			exec(t, db, "CREATE TABLE old_grants AS SELECT * FROM grants; CREATE TABLE old_grant_pages AS SELECT * FROM grant_pages")
			revoked, err := db.Grant(ctx, k, revoked.ID)
			if err != nil {
				t.Fatal(err)
			}
			must(t, db, func(c *Change) error { return c.DeleteGrant(ctx, k, revoked) })
			k = reloaded(t, db, k)
			unguard(t, db)
			exec(t, db, strings.NewReplacer("REVOKED", revoked.ID, "KEPT", kept.ID).Replace(sql))
			var tampered *ErrTampered
			if _, err := db.ListGrants(ctx, k, "", 10); !errors.As(err, &tampered) {
				t.Errorf("listing: %v", err)
			}
			_, first := db.Grant(ctx, k, revoked.ID)
			_, second := db.Grant(ctx, k, kept.ID)
			if !errors.As(first, &tampered) && !errors.As(second, &tampered) && name != "another key's put in" {
				t.Errorf("each: %v, %v", first, second)
			}
			_, err = db.RetirableGrants(ctx, k.Account, k.Region, kept.RetiringPrincipal, GrantRef{}, 10)
			// What is not there any more cannot show across keys.
			if gone := count(t, db, "grants WHERE key_id = 'k'") == 0; !gone && name != "left out" && !errors.As(err, &tampered) {
				t.Errorf("listing across keys: %v", err)
			}
		})
	}
}

// The cost of a change and of a check does not grow with a key's grants: they
// read one page, whose members are those of one octet.
func TestPagesStaySmall(t *testing.T) {
	db, s := open(t)
	k, _ := made(t, db, "k")
	calls := func(g Grant) int64 {
		before := s.calls.Load()
		k = grant(t, db, k, g)
		return s.calls.Load() - before
	}
	calls(sampleGrant(0))
	few := calls(sampleGrant(0))
	for i := range 200 {
		calls(sampleGrant(byte(i)))
	}
	if many := calls(sampleGrant(0)); many != few {
		t.Errorf("%d MACs for a grant of a key with few, %d of one with many", few, many)
	}
	if pages := count(t, db, "grant_pages WHERE length(members) > 128"); pages != 0 {
		t.Errorf("%d pages hold the ids of others", pages)
	}
}

// A replica key that is deleted and made again has the name of the one before,
// and nothing of its grants.
func TestGrantsOfAKeyMadeAgain(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	k, _ := made(t, db, "k")
	before := sampleGrant(7)
	k = grant(t, db, k, before)
	exec(t, db, "CREATE TABLE old_grants AS SELECT * FROM grants; CREATE TABLE old_grant_pages AS SELECT * FROM grant_pages")
	must(t, db, func(c *Change) error { return c.DeleteKey(ctx, k) })
	k, _ = made(t, db, "k")
	k = grant(t, db, k, sampleGrant(7))
	exec(t, db, `DELETE FROM grants; INSERT INTO grants SELECT * FROM old_grants;
		DELETE FROM grant_pages; INSERT INTO grant_pages SELECT * FROM old_grant_pages`)
	var tampered *ErrTampered
	if _, err := db.ListGrants(ctx, k, "", 10); !errors.As(err, &tampered) {
		t.Errorf("listing: %v", err)
	}
	if _, err := db.Grant(ctx, k, before.ID); !errors.As(err, &tampered) {
		t.Errorf("the grant of the key before: %v", err)
	}
}
