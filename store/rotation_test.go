package store

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// made writes a key as CreateKey does.
func made(t *testing.T, db *DB, name string) (Key, BackingKey) {
	t.Helper()
	k, b := sampleKey(name)
	k.RotationPeriodInDays, k.NextRotation, k.OnDemandRotations, k.BackingKeySet, k.DeletionDate = 0, nil, 0, nil, nil
	k.MaterialMissing, k.MaterialExpires, k.PrimaryRegion, k.ReplicaRegions = false, nil, "", nil
	k.GrantCount, k.GrantPages = 0, nil
	b.RotationType, b.Rotated, b.Pending, b.Expires, b.Description = "", nil, false, nil, ""
	must(t, db, func(c *Change) error {
		return errors.Join(c.InsertKey(t.Context(), k), c.InsertBackingKey(t.Context(), b))
	})
	return k, b
}

// rotate gives k a new backing key, and fails if k has changed.
func rotate(t *testing.T, db *DB, k Key, set BackingKeySet) error {
	t.Helper()
	now := time.Now()
	next := BackingKey{ID: id(), EKT: []byte("wrapped"), MaterialID: "m", Created: now, RotationType: "ON_DEMAND", Rotated: &now}
	_, err := try(t, db, func(c *Change) error { return c.RotateKey(t.Context(), k, set, next) })
	return err
}

func withSet(t *testing.T, db *DB, k Key) (Key, BackingKeySet) {
	t.Helper()
	k, set, err := db.KeyWithSet(t.Context(), k.Account, k.Region, k.ID)
	if err != nil {
		t.Fatal(err)
	}
	return k, set
}

func TestRotateKey(t *testing.T) {
	db, _ := open(t)
	k, first := made(t, db, "k")
	k, set := withSet(t, db, k)
	if len(set) != 1 || set[first.ID] != 1 {
		t.Fatalf("set of a new key: %v", set)
	}
	for range 3 {
		k, set = withSet(t, db, k)
		if err := rotate(t, db, k, set); err != nil {
			t.Fatal(err)
		}
	}
	// Who comes second with the same row loses, and writes nothing.
	if err := rotate(t, db, k, set); !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) {
		t.Errorf("second rotation of one row: %v", err)
	}
	k, set = withSet(t, db, k)
	if len(set) != 4 || len(k.BackingKeySet) != 32 {
		t.Fatalf("set %v, digest %x", set, k.BackingKeySet)
	}
	all, err := db.BackingKeys(t.Context(), k, set)
	if err != nil || len(all) != 4 || all[0].ID != first.ID || all[3].ID != k.CurrentBackingKey {
		t.Fatalf("%v, %v", all, err)
	}
	for i, b := range all {
		if int(b.Number) != i || (b.Rotated == nil) != (i == 0) {
			t.Errorf("backing key %d is %+v", i, b)
		}
		if from, _, err := db.ReserveEncryptions(t.Context(), b.ID, 1, 10); err != nil || from != 0 {
			t.Errorf("budget of backing key %d: %d, %v", i, from, err)
		}
	}
	must(t, db, func(c *Change) error { return c.DeleteKey(t.Context(), k) })
	if n := count(t, db, "backing_keys") + count(t, db, "encryption_budgets"); n != 0 {
		t.Errorf("%d rows of a deleted key", n)
	}
}

// TestBackingKeySet alters the set of a key's backing keys in every way that
// an intruder with old rows at hand can.
func TestBackingKeySet(t *testing.T) {
	for name, sql := range map[string]string{
		"an old one left out": `DELETE FROM backing_keys WHERE key_id = 'k' AND number = 0`,
		"another key's put in": `INSERT INTO backing_keys SELECT account, region, 'k', gen_random_uuid(), version, ekt, material_id,
			provenance, public_key, created, mac_generation, mac, 9, rotation_type, rotated, pending, expires, description FROM backing_keys WHERE key_id = 'other'`,
		"moved to another key":    `UPDATE backing_keys SET key_id = 'other', number = 9 WHERE key_id = 'k' AND number = 1`,
		"another version of one":  `UPDATE backing_keys SET version = 2 WHERE key_id = 'k' AND number = 0`,
		"the current one removed": `DELETE FROM backing_keys WHERE key_id = 'k' AND number = 2`,
	} {
		t.Run(name, func(t *testing.T) {
			db, _ := open(t)
			made(t, db, "other")
			k, _ := made(t, db, "k")
			for range 2 {
				k, set := withSet(t, db, k)
				if err := rotate(t, db, k, set); err != nil {
					t.Fatal(err)
				}
			}
			k, set := withSet(t, db, k)
			unguard(t, db)
			exec(t, db, sql)
			var tampered *ErrTampered
			if _, _, err := db.KeyWithSet(t.Context(), k.Account, k.Region, k.ID); !errors.As(err, &tampered) {
				t.Errorf("loading the key: %v", err)
			}
			if _, err := db.BackingKeys(t.Context(), k, set); !errors.As(err, &tampered) {
				t.Errorf("listing its backing keys: %v", err)
			}
		})
	}
}

// An earlier row of the key, put back, brings its own set with it, which is
// not that of the backing keys that there are.
func TestEarlierKeyRow(t *testing.T) {
	db, _ := open(t)
	k, _ := made(t, db, "k")
	k, set := withSet(t, db, k)
	if err := rotate(t, db, k, set); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "CREATE TABLE saved AS SELECT * FROM keys")
	k, set = withSet(t, db, k)
	if err := rotate(t, db, k, set); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "DELETE FROM keys WHERE id = 'k'; INSERT INTO keys SELECT * FROM saved")
	var tampered *ErrTampered
	if _, _, err := db.KeyWithSet(t.Context(), k.Account, k.Region, k.ID); !errors.As(err, &tampered) {
		t.Errorf("%v", err)
	}
}

// TestLaterColumns pins that rows which were sealed before a column was added
// still verify, and that its value is bound as soon as it has one.
func TestLaterColumns(t *testing.T) {
	k, _ := sampleKey("k")
	k.RotationPeriodInDays, k.NextRotation, k.OnDemandRotations, k.BackingKeySet = 0, nil, 0, nil
	k.MaterialMissing, k.MaterialExpires, k.PrimaryRegion, k.ReplicaRegions = false, nil, "", nil
	k.GrantCount, k.GrantPages = 0, nil
	names := func() (names []string) {
		for _, c := range sealed(&k) {
			names = append(names, c.name)
		}
		return names
	}
	want := strings.Fields(`account region id version state spec usage origin description policy tags
		multi_region created deletion_date pending_window_in_days current_backing_key`)
	if !slices.Equal(names(), want) {
		t.Errorf("the MAC of a key without later columns covers %v", names())
	}
	before, err := digest(testDeployment, 1, &k)
	if err != nil {
		t.Fatal(err)
	}
	k.OnDemandRotations = 1
	if after, err := digest(testDeployment, 1, &k); err != nil || bytes.Equal(before, after) || !slices.Contains(names(), "on_demand_rotations") {
		t.Errorf("a later column is not bound: %v", err)
	}
}

func TestKeysDueForRotation(t *testing.T) {
	db, _ := open(t)
	now := time.Now()
	at := func(name, state string, due time.Time) {
		k, _ := sampleKey(name)
		k.State, k.NextRotation = state, &due
		must(t, db, func(c *Change) error { return c.InsertKey(t.Context(), k) })
	}
	at("a", "Enabled", now.Add(-time.Hour))
	at("b", "Disabled", now.Add(-time.Hour))
	at("c", "PendingDeletion", now.Add(-time.Hour))
	at("d", "Enabled", now.Add(time.Hour))
	at("e", "Enabled", now)
	var seen string
	var after KeyRef
	for {
		due, err := db.KeysDueForRotation(t.Context(), now, after, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(due) == 0 {
			break
		}
		after = due[0]
		seen += after.ID
	}
	if seen != "ae" {
		t.Errorf("due: %s", seen)
	}
}

func TestLastUsage(t *testing.T) {
	db, _ := open(t)
	k, _ := made(t, db, "k")
	ref := KeyRef{k.Account, k.Region, k.ID}
	if u, since, err := db.LastUsage(t.Context(), ref); err != nil || !u.Used.IsZero() || time.Since(since) > time.Hour {
		t.Errorf("unused: %+v since %v, %v", u, since, err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	gone := KeyUsage{Key: KeyRef{k.Account, k.Region, "gone"}, Operation: "Sign", Used: now}
	newer := KeyUsage{Key: ref, Operation: "Encrypt", Used: now, EventID: "e", RequestID: "r"}
	older := KeyUsage{Key: ref, Operation: "Decrypt", Used: now.Add(-time.Second)}
	for _, batch := range [][]KeyUsage{nil, {older}, {newer, gone}, {older}} {
		if err := db.NoteUsage(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	if u, _, err := db.LastUsage(t.Context(), ref); err != nil || !u.Used.Equal(now) || u.Operation != "Encrypt" || u.EventID != "e" || u.RequestID != "r" {
		t.Errorf("%+v, %v", u, err)
	}
	k, _ = withSet(t, db, k)
	must(t, db, func(c *Change) error { return c.DeleteKey(t.Context(), k) })
	if n := count(t, db, "key_last_usage"); n != 0 {
		t.Errorf("%d uses of deleted keys", n)
	}
}
