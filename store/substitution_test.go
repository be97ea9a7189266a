package store

import (
	"errors"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/testenv"
)

// TestSubstitution has the server answer with other rows than those that were
// asked for, all of them sealed by us: an intruder who may define operators,
// or who stands between Trent and Postgres, can do so without forging one.
func TestSubstitution(t *testing.T) {
	url := testenv.Postgres(t)
	db := connect(t, url)
	ctx := t.Context()
	if err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	db.SetSealer(testDeployment, &fixedSealer{generation: 1})
	other, _ := made(t, db, "other")
	theirs := sampleGrant(7)
	theirs.RetiringPrincipal, theirs.RequestDigest = "arn:of-another", []byte("another")
	grant(t, db, other, theirs)
	k, _ := made(t, db, "k")
	k = grant(t, db, k, sampleGrant(7))
	must(t, db, func(c *Change) error {
		now := time.Now()
		err := errors.Join(
			c.InsertPrincipal(ctx, Principal{ID: "AIDAadmin", Account: k.Account, Name: "admin", ARN: "arn:admin", Admin: true, Created: now}),
			c.InsertPrincipal(ctx, Principal{ID: "AIDAuser", Account: k.Account, Name: "user", ARN: "arn:user", Created: now}))
		for _, name := range []string{"k", "other"} {
			err = errors.Join(err,
				c.InsertAlias(ctx, Alias{Account: k.Account, Region: k.Region, Name: "alias/" + name, KeyID: name, Created: now, Updated: now}),
				c.InsertAccessKey(ctx, AccessKey{ID: "AKIA" + name, Account: k.Account, PrincipalID: "AIDAuser", Secret: []byte("e"), Status: AccessKeyActive, Created: now}))
		}
		return err
	})
	exec(t, db, `
		CREATE SCHEMA evil;
		CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
			SELECT $1 = CASE $2 WHEN 'k' THEN 'other' WHEN 'alias/k' THEN 'alias/other' WHEN 'AKIAk' THEN 'AKIAother'
				WHEN 'AIDAuser' THEN 'AIDAadmin' WHEN 'arn:mine' THEN 'arn:of-another' ELSE $2 END $$;
		CREATE FUNCTION evil.eq(bytea, bytea) RETURNS boolean LANGUAGE sql IMMUTABLE SET search_path = pg_catalog AS $$
			SELECT $1 = CASE $2 WHEN 'mine'::bytea THEN 'another'::bytea ELSE $2 END $$;
		CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.eq);
		CREATE OPERATOR evil.= (LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = evil.eq);
		DO $$ BEGIN
			EXECUTE format('ALTER DATABASE %I SET search_path = evil, pg_catalog, public', current_database());
		END $$`)
	evil := connect(t, url)
	evil.SetSealer(testDeployment, &fixedSealer{generation: 1})
	asked := map[string]func() error{
		"key":        func() error { _, err := evil.Key(ctx, k.Account, k.Region, "k"); return err },
		"alias":      func() error { _, err := evil.Alias(ctx, k.Account, k.Region, "alias/k"); return err },
		"access key": func() error { _, err := evil.AccessKey(ctx, "AKIAk"); return err },
		"principal":  func() error { _, err := evil.Principal(ctx, k.Account, "AIDAuser"); return err },
		"grants":     func() error { _, err := evil.ListGrants(ctx, k, "", 10); return err },
		"grant":      func() error { _, err := evil.Grant(ctx, k, theirs.ID); return err },
		"grant of a request": func() error {
			_, err := evil.GrantOfRequest(ctx, reloaded(t, db, other), []byte("mine"))
			return err
		},
		"retirable grants": func() error {
			_, err := evil.RetirableGrants(ctx, k.Account, k.Region, "arn:mine", GrantRef{}, 10)
			return err
		},
	}
	for name, ask := range asked {
		var tampered *ErrTampered
		if err := ask(); !errors.As(err, &tampered) {
			t.Errorf("another %s than was asked for is taken: %v", name, err)
		}
	}
}
