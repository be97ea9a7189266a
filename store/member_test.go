package store

import (
	"errors"
	"testing"
	"time"
)

func TestMembers(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	activeDeployment(t, db)
	d, all, members, err := db.Domain(ctx)
	if err != nil || len(members) != 0 {
		t.Fatalf("nobody was enrolled: %+v, %v", members, err)
	}
	a := DomainMember{Serial: "a", State: MemberEnrolled, Enrolled: time.Now(), EnrolledBy: "x"}
	b := DomainMember{Serial: "b", State: MemberEnrolled, Enrolled: time.Now(), EnrolledBy: "x"}
	must(t, db, func(c *Change) error { return c.WriteDomain(ctx, d, all, all, nil, []DomainMember{b, a}) })
	if d, all, members, err = db.Domain(ctx); err != nil || len(members) != 2 || members[1].Serial != "b" || members[1].Version != 1 {
		t.Fatalf("%+v, %v", members, err)
	}
	now := time.Now()
	after := []DomainMember{members[0], members[1]}
	after[1].State, after[1].Removed = MemberRemoved, &now
	exec(t, db, "CREATE TABLE saved AS SELECT * FROM domain_members")
	must(t, db, func(c *Change) error { return c.WriteDomain(ctx, d, all, all, members, after) })
	if _, _, members, err = db.Domain(ctx); err != nil || members[0].Version != 1 || members[1].State != MemberRemoved {
		t.Fatalf("%+v, %v", members, err)
	}
	exec(t, db, "CREATE TABLE good AS SELECT * FROM domain_members")
	// Nobody can bring a removed member back, hide one, or change one.
	var tampered *ErrTampered
	for _, sql := range []string{
		"TRUNCATE domain_members; INSERT INTO domain_members SELECT * FROM saved",
		"DELETE FROM domain_members WHERE serial = 'b'",
		"TRUNCATE domain_members",
		"UPDATE domain_members SET fingerprint = 'x' WHERE serial = 'a'",
	} {
		exec(t, db, sql)
		if _, _, err := db.DomainGenerations(ctx); !errors.As(err, &tampered) {
			t.Errorf("%s: %v", sql, err)
		}
		exec(t, db, "TRUNCATE domain_members; INSERT INTO domain_members SELECT * FROM good")
	}
	if _, _, _, err := db.Domain(ctx); err != nil {
		t.Errorf("as it was: %v", err)
	}
	if proofs, err := db.Proofs(ctx); err != nil || len(proofs) != 0 {
		t.Errorf("%v, %v", proofs, err)
	}
}
