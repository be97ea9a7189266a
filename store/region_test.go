package store

import (
	"errors"
	"slices"
	"testing"
)

const (
	home = "eu-central-1" // of sampleKey
	away = "us-east-1"
)

// replicate writes a multi-Region key with one rotation behind it, in its home
// Region and, related to it, in another.
func replicate(t *testing.T, db *DB, name string) {
	t.Helper()
	k, first := sampleKey(name)
	k.RotationPeriodInDays, k.NextRotation, k.BackingKeySet, k.DeletionDate = 0, nil, nil, nil
	k.MaterialMissing, k.MaterialExpires, k.ReplicaRegions = false, nil, nil
	first.RotationType, first.Rotated, first.Pending, first.Expires, first.Description = "", nil, false, nil, ""
	must(t, db, func(c *Change) error {
		return errors.Join(c.InsertKey(t.Context(), k), c.InsertBackingKey(t.Context(), first))
	})
	k, set := withSet(t, db, k)
	if err := rotate(t, db, k, set); err != nil {
		t.Fatal(err)
	}
	k, set = withSet(t, db, k)
	material, err := db.BackingKeys(t.Context(), k, set)
	if err != nil {
		t.Fatal(err)
	}
	k.ReplicaRegions = []string{away}
	replica := k
	replica.Region, replica.Version = away, 0
	must(t, db, func(c *Change) error {
		return errors.Join(c.InsertReplica(t.Context(), replica, material), c.UpdateKeys(t.Context(), k))
	})
}

func in(t *testing.T, db *DB, region, name string) RelatedKey {
	t.Helper()
	k, _ := sampleKey(name)
	k, set, err := db.KeyWithSet(t.Context(), k.Account, region, name)
	if err != nil {
		t.Fatal(err)
	}
	return RelatedKey{k, set}
}

func TestReplica(t *testing.T) {
	db, _ := open(t)
	replicate(t, db, "k")
	primary, replica := in(t, db, home, "k"), in(t, db, away, "k")
	if !primary.Primary() || primary.Replica() || replica.Primary() || !replica.Replica() || !slices.Equal(replica.Regions(), []string{home, away}) {
		t.Errorf("roles of %+v and %+v", primary.Key, replica.Key)
	}
	for _, k := range []RelatedKey{primary, replica} {
		all, err := db.BackingKeys(t.Context(), k.Key, k.BackingKeys)
		if err != nil || len(all) != 2 || all[1].ID != primary.CurrentBackingKey || all[1].Number != 1 || all[0].Region != k.Region {
			t.Errorf("material in %s: %+v, %v", k.Region, all, err)
		}
		related, err := db.RelatedKeys(t.Context(), k.Key)
		if err != nil || len(related) != 1 || related[0].Region == k.Region || len(related[0].BackingKeys) != 2 {
			t.Errorf("related to %s: %+v, %v", k.Region, related, err)
		}
	}
	if n := count(t, db, "encryption_budgets"); n != 2 {
		t.Errorf("%d budgets of two backing keys in two Regions", n)
	}
	// One budget for both Regions, which goes with the last of them.
	id := primary.CurrentBackingKey
	for from := range int64(2) {
		if got, _, err := db.ReserveEncryptions(t.Context(), id, 1, 10); err != nil || got != from {
			t.Errorf("reserved from %d, %v", got, err)
		}
	}
	must(t, db, func(c *Change) error { return c.DeleteKey(t.Context(), replica.Key) })
	if got, _, err := db.ReserveEncryptions(t.Context(), id, 1, 10); err != nil || got != 2 {
		t.Errorf("after a Region has gone: from %d, %v", got, err)
	}
	must(t, db, func(c *Change) error { return c.DeleteKey(t.Context(), primary.Key) })
	if n := count(t, db, "backing_keys") + count(t, db, "encryption_budgets"); n != 0 {
		t.Errorf("%d rows of deleted keys", n)
	}
	if _, _, err := db.ReserveEncryptions(t.Context(), id, 1, 10); !errors.Is(err, ErrNotFound) {
		t.Errorf("budget of a deleted key: %v", err)
	}
}

// A budget that somebody has removed is not begun anew by a replica.
func TestReplicaBringsNoBudget(t *testing.T) {
	db, _ := open(t)
	k, b := made(t, db, "k")
	exec(t, db, "DELETE FROM encryption_budgets")
	k, set := withSet(t, db, k)
	material, err := db.BackingKeys(t.Context(), k, set)
	if err != nil {
		t.Fatal(err)
	}
	k.Region, k.Version = away, 0
	must(t, db, func(c *Change) error { return c.InsertReplica(t.Context(), k, material) })
	var tampered *ErrTampered
	if _, _, err := db.ReserveEncryptions(t.Context(), b.ID, 1, 10); !errors.As(err, &tampered) {
		t.Errorf("%v", err)
	}
}

func TestShareAndDropMaterial(t *testing.T) {
	db, _ := open(t)
	replicate(t, db, "k")
	primary, replica := in(t, db, home, "k"), in(t, db, away, "k")
	next := BackingKey{ID: id(), EKT: []byte("wrapped"), MaterialID: "m", Created: primary.Created, Pending: true}
	bare := next
	bare.EKT = nil
	must(t, db, func(c *Change) error {
		return errors.Join(c.ChangeMaterial(t.Context(), primary.Key, primary.BackingKeys, next), c.ShareMaterial(t.Context(), replica, bare))
	})
	primary, replica = in(t, db, home, "k"), in(t, db, away, "k")
	all, err := db.BackingKeys(t.Context(), replica.Key, replica.BackingKeys)
	if err != nil || len(all) != 3 || all[2].ID != next.ID || len(all[2].EKT) != 0 || all[2].Number != 2 || all[2].Region != away {
		t.Fatalf("shared material: %+v, %v", all, err)
	}
	next, err = db.BackingKey(t.Context(), primary.Account, home, next.ID)
	if err != nil || string(next.EKT) != "wrapped" {
		t.Fatalf("%+v, %v", next, err)
	}
	must(t, db, func(c *Change) error {
		return errors.Join(c.DropMaterial(t.Context(), primary.Key, primary.BackingKeys, next), c.DropMaterial(t.Context(), replica.Key, replica.BackingKeys, all[2]))
	})
	if n := count(t, db, "backing_keys") + count(t, db, "encryption_budgets"); n != 4+2 {
		t.Errorf("%d rows", n)
	}
	in(t, db, home, "k")
	in(t, db, away, "k")
}

// TestRelatedKeysTampered alters who is related to whom, and in which role, in
// every way that an intruder with old rows at hand can.
func TestRelatedKeysTampered(t *testing.T) {
	for name, sql := range map[string]string{
		"role":                     `UPDATE keys SET primary_region = 'eu-central-1' WHERE id = 'k' AND region = 'us-east-1'`,
		"both roles":               `UPDATE keys SET primary_region = 'eu-central-1', replica_regions = '{us-east-1}' WHERE id = 'k'`,
		"replicas":                 `UPDATE keys SET replica_regions = '{}' WHERE id = 'k'`,
		"replica removed":          `DELETE FROM keys WHERE id = 'k' AND region = 'us-east-1'`,
		"row moved to a Region":    `UPDATE keys SET region = 'eu-west-1' WHERE id = 'k' AND region = 'us-east-1'`,
		"row of before":            `DELETE FROM keys WHERE id = 'k' AND region = 'us-east-1'; INSERT INTO keys SELECT * FROM saved WHERE region = 'us-east-1'`,
		"row of before, other way": `DELETE FROM keys WHERE id = 'k' AND region = 'eu-central-1'; INSERT INTO keys SELECT * FROM saved WHERE region = 'eu-central-1'`,
		"material of one Region":   `DELETE FROM backing_keys WHERE key_id = 'k' AND region = 'us-east-1' AND number = 0`,
		"material moved":           `DELETE FROM backing_keys WHERE region = 'us-east-1' AND number = 0; UPDATE backing_keys SET region = 'us-east-1' WHERE number = 0`,
	} {
		t.Run(name, func(t *testing.T) {
			db, _ := open(t)
			replicate(t, db, "k")
			exec(t, db, "CREATE TABLE saved AS SELECT * FROM keys")
			primary, replica := in(t, db, home, "k"), in(t, db, away, "k")
			for _, k := range []*RelatedKey{&primary, &replica} {
				k.PrimaryRegion, k.ReplicaRegions = away, []string{home}
			}
			must(t, db, func(c *Change) error { return c.UpdateKeys(t.Context(), primary.Key, replica.Key) })
			unguard(t, db)
			exec(t, db, sql)
			var tampered *ErrTampered
			refused := false
			for _, region := range []string{home, away} {
				k, _, err := db.KeyWithSet(t.Context(), primary.Account, region, "k")
				if err == nil {
					_, err = db.RelatedKeys(t.Context(), k)
				}
				refused = refused || errors.As(err, &tampered)
				if err == nil {
					t.Errorf("from %s it was taken", region)
				}
			}
			if !refused {
				t.Error("it was not found to be tampering")
			}
		})
	}
}

// Rows that have changed since one of them was loaded are a conflict.
func TestRelatedKeysChanged(t *testing.T) {
	db, _ := open(t)
	replicate(t, db, "k")
	primary, replica := in(t, db, home, "k"), in(t, db, away, "k")
	swapped, other := primary.Key, replica.Key
	swapped.PrimaryRegion, swapped.ReplicaRegions, other.PrimaryRegion, other.ReplicaRegions = away, []string{home}, away, []string{home}
	must(t, db, func(c *Change) error { return c.UpdateKeys(t.Context(), other, swapped) })
	if _, err := db.RelatedKeys(t.Context(), primary.Key); !errors.Is(err, ErrConflict) {
		t.Errorf("%v", err)
	}
	if _, err := try(t, db, func(c *Change) error { return c.UpdateKeys(t.Context(), primary.Key, replica.Key) }); !errors.Is(err, ErrConflict) {
		t.Errorf("a change decided on old rows: %v", err)
	}
}
