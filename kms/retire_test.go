package kms

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// TestRetireWhileAHostLags: what a host that does not follow wraps under a
// generation after it was found unused keeps it from being destroyed.
func TestRetireWhileAHostLags(t *testing.T) {
	f := newFleet(t)
	lag := func() {}
	m := f.officer(t, "a", func() { lag() })
	one := f.domainAdmin(t, m)
	if _, err := one.Create(t.Context(), hsm.Locked); err != nil {
		t.Fatal(err)
	}
	s := f.host(t, "lagging")
	createKey(t, f, s)
	under := func(generation int) {
		t.Helper()
		sql := "UPDATE backing_keys SET ekt = overlay(ekt placing decode($1, 'hex') from 2 for 4)"
		if _, err := m.DB.Pool().Exec(t.Context(), sql, []string{1: "00000001", 2: "00000002"}[generation]); err != nil {
			t.Fatal(err)
		}
	}
	lag = func() { under(2) }
	if err := m.Retire(t.Context(), 2, time.Hour); !errors.Is(err, ErrNotYet) {
		t.Errorf("retired what a key was wrapped under meanwhile: %v", err)
	}
	held := func() int {
		t.Helper()
		all, err := m.Members[0].Domain.Generations(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if held() != 2 {
		t.Fatal("the generation was destroyed under a key")
	}
	lag = func() {}
	under(1)
	if err := m.Retire(t.Context(), 2, time.Hour); err != nil || held() != 1 {
		t.Errorf("%d generations are left: %v", held(), err)
	}
}

// TestRetireReadsRows: who writes to the database cannot have a generation
// destroyed by hiding what is wrapped under it.
func TestRetireReadsRows(t *testing.T) {
	f := newFleet(t)
	m := f.officer(t, "a", func() {})
	one := f.domainAdmin(t, m)
	s := f.host(t, "host")
	id := createKey(t, f, s)
	_, err := one.Create(t.Context(), hsm.Locked)
	for _, order := range []func(context.Context, int64) error{one.ConfirmBackup, one.Activate} {
		if err == nil {
			err = order(t.Context(), 2)
		}
	}
	if err == nil {
		err = s.FollowGenerations(t.Context())
	}
	if err == nil {
		_, err = do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id})
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(sql string) {
		t.Helper()
		if _, err := m.DB.Pool().Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	run("CREATE TABLE kept_backing_keys AS TABLE backing_keys; CREATE TABLE kept_access_keys AS TABLE access_keys")
	hideSecret := "UPDATE access_keys SET secret = overlay(secret placing decode('00000002', 'hex') from 2 for 4);"
	for name, hide := range map[string]string{
		"altered": hideSecret + "UPDATE backing_keys SET ekt = overlay(ekt placing decode('00000002', 'hex') from 2 for 4)",
		"removed": "DELETE FROM access_keys; DELETE FROM backing_keys WHERE number = 0",
	} {
		run(hide)
		var tampered *store.ErrTampered
		if err := m.Retire(t.Context(), 1, 0); !errors.As(err, &tampered) || !strings.Contains(err.Error(), "backing_keys") {
			t.Errorf("%s: retired what is in use: %v", name, err)
		}
		run("DELETE FROM backing_keys; INSERT INTO backing_keys TABLE kept_backing_keys; DELETE FROM access_keys; INSERT INTO access_keys TABLE kept_access_keys")
	}
	if err := m.Retire(t.Context(), 1, 0); !errors.Is(err, ErrNotYet) {
		t.Errorf("retired what is in use: %v", err)
	}
	if all, err := m.Members[0].Domain.Generations(t.Context()); err != nil || len(all) != 2 || !all[0].Whole {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestSettled: keys that were wrapped under a generation while it was about to go
// are moved as well, which is waited for.
func TestSettled(t *testing.T) {
	active := GenerationStatus{Number: 2, State: store.GenerationActive, Profile: string(hsm.Trusted)}
	for _, state := range []string{store.GenerationSuperseded, store.GenerationRetiring} {
		old := GenerationStatus{Number: 1, State: state, Profile: string(hsm.Trusted)}
		if !Settled([]GenerationStatus{old, active}) {
			t.Errorf("not settled with nothing under a generation that is %s", state)
		}
		old.WrappedKeys = 1
		if Settled([]GenerationStatus{old, active}) {
			t.Errorf("settled with a key under a generation that is %s", state)
		}
	}
}

// TestLockLost: an order that loses the lock which keeps others from the tokens
// does nothing more on them.
func TestLockLost(t *testing.T) {
	f := newFleet(t)
	m := f.officer(t, "a", func() {})
	one := f.domainAdmin(t, m)
	if _, err := one.Create(t.Context(), hsm.Locked); err != nil {
		t.Fatal(err)
	}
	commit := m.Commit
	m.Commit = func(ctx context.Context, r *audit.Record, c *store.Change) error {
		_, err := m.DB.Pool().Exec(t.Context(), `
			SELECT pg_terminate_backend(pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
			WHERE locktype = 'advisory' AND classid = 1953655140 AND datname = current_database()`)
		if err != nil {
			t.Error(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(30 * time.Second):
			t.Error("it goes on without its lock")
		}
		return commit(ctx, r, c)
	}
	if err := m.Retire(t.Context(), 2, time.Hour); err == nil || !strings.Contains(err.Error(), "so this one has stopped") {
		t.Errorf("retired without the lock: %v", err)
	}
	if all, err := m.Members[0].Domain.Generations(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("%d generations are left: %v", len(all), err)
	}
	m.Commit = commit
	if err := m.Retire(t.Context(), 2, time.Hour); err != nil {
		t.Error(err)
	}
}
