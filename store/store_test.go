package store

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/internal/testenv"
)

// fixedSealer is a real HMAC-SHA-256 with a key in memory. What is tested here
// is what store puts under the MAC and what it does with the answer; the HSM's
// own MACs are tested in hsm.
type fixedSealer struct {
	generation uint32
	ill        error // answered by every call, if set
	calls      atomic.Int64
}

func (s *fixedSealer) mac(generation uint32, message []byte) []byte {
	h := hmac.New(sha256.New, []byte{'k', 'e', 'y', byte(generation)})
	h.Write(message)
	return h.Sum(nil)
}

func (s *fixedSealer) Sum(_ context.Context, message []byte) (uint32, []byte, error) {
	s.calls.Add(1)
	return s.generation, s.mac(s.generation, message), s.ill
}

func (s *fixedSealer) Verify(_ context.Context, generation uint32, message, mac []byte) (bool, error) {
	s.calls.Add(1)
	if s.ill != nil {
		return false, s.ill
	}
	return generation > 0 && generation <= s.generation && hmac.Equal(mac, s.mac(generation, message)), nil
}

var testDeployment = [16]byte{0xd, 0xe, 0xb}

// open returns a migrated database of its own, with a sealer.
func open(t testing.TB) (*DB, *fixedSealer) {
	t.Helper()
	db := connect(t, testenv.Postgres(t))
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := &fixedSealer{generation: 1}
	db.SetSealer(testDeployment, s)
	return db, s
}

func connect(t testing.TB, url string) *DB {
	t.Helper()
	db, err := Open(t.Context(), Config{
		URL: url, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

func id() (id [16]byte) {
	_, _ = rand.Read(id[:])
	return id
}

// sampleKey is a key with every field set, and its backing key.
func sampleKey(name string) (Key, BackingKey) {
	now := time.Now()
	hbk := BackingKey{
		Account: "111122223333", Region: "eu-central-1", KeyID: name, ID: id(),
		EKT: []byte("wrapped"), MaterialID: "ab12", Provenance: []byte(`{"local":true}`),
		PublicKey: []byte("public"), Created: now, RotationType: "AUTOMATIC", Rotated: &now,
		Pending: true, Expires: &now, Description: "d",
	}
	return Key{
		Account: hbk.Account, Region: hbk.Region, ID: name,
		State: "Enabled", Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS",
		Description: "größer \"x\"", Policy: `{"Version": "2012-10-17"}`,
		Tags:        []Tag{{"b", "2"}, {"a", "<1>"}},
		MultiRegion: true, Created: now, DeletionDate: &now, PendingWindowInDays: 7,
		CurrentBackingKey: hbk.ID, RotationPeriodInDays: 365, NextRotation: &now, OnDemandRotations: 1,
		BackingKeySet: []byte("digest"), MaterialMissing: true, MaterialExpires: &now,
		PrimaryRegion: hbk.Region, ReplicaRegions: []string{"us-east-1", "eu-west-1"},
		GrantCount: 1, GrantPages: []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x01"),
	}, hbk
}

// must commits what add puts into a change.
func must(t testing.TB, db *DB, add func(*Change) error) int64 {
	t.Helper()
	seq, err := try(t, db, add)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func try(t testing.TB, db *DB, add func(*Change) error) (int64, error) {
	t.Helper()
	c := db.NewChange()
	if err := add(c); err != nil {
		t.Fatal(err)
	}
	return db.Commit(t.Context(), c, nil)
}

func insertKey(t testing.TB, db *DB, name string) (Key, BackingKey) {
	t.Helper()
	k, hbk := sampleKey(name)
	must(t, db, func(c *Change) error {
		return errors.Join(c.InsertKey(t.Context(), k), c.InsertBackingKey(t.Context(), hbk))
	})
	k, err := db.Key(t.Context(), k.Account, k.Region, k.ID)
	if err != nil {
		t.Fatal(err)
	}
	return k, hbk
}

func exec(t testing.TB, db *DB, sql string, args ...any) {
	t.Helper()
	if _, err := db.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func count(t testing.TB, db *DB, from string) (n int) {
	t.Helper()
	if err := db.pool.QueryRow(t.Context(), "SELECT count(*) FROM "+from).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKeyRoundTrip(t *testing.T) {
	db, _ := open(t)
	want, hbk := sampleKey("k1")
	loaded, _ := insertKey(t, db, "k1")
	want.Version, want.CurrentBackingKey = 1, loaded.CurrentBackingKey
	want.Created, want.DeletionDate, want.NextRotation, want.MaterialExpires = loaded.Created, loaded.DeletionDate, loaded.NextRotation, loaded.MaterialExpires
	slices.Reverse(want.Tags)
	slices.Reverse(want.ReplicaRegions)
	if diff := cmp.Diff(want, loaded); diff != "" {
		t.Errorf("key changed on its way: %s", diff)
	}
	hbk, err := db.BackingKey(t.Context(), want.Account, want.Region, loaded.CurrentBackingKey)
	if err != nil || string(hbk.EKT) != "wrapped" || string(hbk.Provenance) != `{"local":true}` {
		t.Errorf("backing key %+v, %v", hbk, err)
	}
	loaded.Tags, loaded.DeletionDate, loaded.State = nil, nil, "Disabled"
	must(t, db, func(c *Change) error { return c.UpdateKey(t.Context(), loaded) })
	again, err := db.Key(t.Context(), want.Account, want.Region, "k1")
	loaded.Version = 2
	if diff := cmp.Diff(loaded, again); diff != "" || err != nil {
		t.Errorf("updated key: %v %s", err, diff)
	}
	if _, err := db.Key(t.Context(), want.Account, "us-east-1", "k1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("key of another region: %v", err)
	}
}

func TestPrincipalsAndAccessKeys(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	p := Principal{ID: "AIDA1", Account: "111122223333", Name: "root", ARN: "arn:x", Admin: true, Created: time.Now()}
	k := AccessKey{ID: "AKIA1", Account: p.Account, PrincipalID: p.ID, Secret: []byte("ekt"), Status: AccessKeyActive, Created: time.Now()}
	must(t, db, func(c *Change) error {
		return errors.Join(c.InsertAccessKey(ctx, k), c.InsertPrincipal(ctx, p))
	})
	all, err := db.Principals(ctx, p.Account)
	if err != nil || len(all) != 1 || !all[0].Admin {
		t.Fatalf("principals %+v, %v", all, err)
	}
	if p, err = db.Principal(ctx, p.Account, p.ID); err != nil {
		t.Fatal(err)
	}
	p.Admin = false
	must(t, db, func(c *Change) error { return c.UpdatePrincipal(ctx, p) })
	keys, err := db.AccessKeys(ctx, p.Account, p.ID)
	if err != nil || len(keys) != 1 {
		t.Fatalf("access keys %+v, %v", keys, err)
	}
	keys[0].Status = AccessKeyInactive
	must(t, db, func(c *Change) error { return c.UpdateAccessKey(ctx, keys[0]) })
	k, err = db.AccessKey(ctx, "AKIA1")
	if err != nil || k.Status != AccessKeyInactive || k.Version != 2 {
		t.Fatalf("access key %+v, %v", k, err)
	}
	must(t, db, func(c *Change) error { return c.DeleteAccessKey(ctx, k) })
	if _, err = db.AccessKey(ctx, "AKIA1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted access key: %v", err)
	}
}

func TestUnstorableText(t *testing.T) {
	db, _ := open(t)
	for _, text := range []string{"nul\x00", "\xff"} {
		k, _ := sampleKey("k")
		k.Description = text
		if err := db.NewChange().InsertKey(t.Context(), k); !errors.Is(err, ErrUnstorable) {
			t.Errorf("description %q: %v", text, err)
		}
		k, _ = sampleKey("k")
		k.Tags = []Tag{{"a", text}}
		if err := db.NewChange().InsertKey(t.Context(), k); !errors.Is(err, ErrUnstorable) {
			t.Errorf("tag %q: %v", text, err)
		}
	}
}

func TestDeployment(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	if _, err := db.Deployment(ctx); !errors.Is(err, ErrNotFound) {
		t.Fatalf("empty database: %v", err)
	}
	d := Deployment{ID: testDeployment, Account: "111122223333", Partition: "aws", Created: time.Now()}
	if err := db.InsertDeployment(ctx, d); err != nil {
		t.Fatal(err)
	}
	if err := db.InsertDeployment(ctx, d); !errors.Is(err, ErrExists) {
		t.Fatalf("second deployment: %v", err)
	}
	d, err := db.Deployment(ctx)
	if err != nil || d.State != StateInitialising {
		t.Fatalf("deployment %+v, %v", d, err)
	}
	exec(t, db, "UPDATE deployment SET state = 'active'") // nobody may activate it but Trent
	var tampered *ErrTampered
	if _, err := db.Deployment(ctx); !errors.As(err, &tampered) {
		t.Fatalf("unsealed active deployment: %v", err)
	}
	d.State = StateActive
	must(t, db, func(c *Change) error { return c.UpdateDeployment(ctx, d) })
	if d, err = db.Deployment(ctx); err != nil || d.State != StateActive || d.Version != 2 {
		t.Fatalf("deployment %+v, %v", d, err)
	}
}
