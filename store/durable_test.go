package store

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/testenv"
)

// TestSynchronousCommit demands that commits wait for the disk whatever the
// database is set to, and that the URL has the last word.
func TestSynchronousCommit(t *testing.T) {
	good := testenv.Postgres(t)
	db := connect(t, good)
	exec(t, db, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$`)
	u, err := url.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("synchronous_commit", "remote_apply")
	u.RawQuery = q.Encode()
	for _, c := range []struct{ url, want string }{{good, "on"}, {u.String(), "remote_apply"}} {
		var got string
		if err := connect(t, c.url).pool.QueryRow(t.Context(), "SHOW synchronous_commit").Scan(&got); err != nil || got != c.want {
			t.Errorf("synchronous_commit=%s, want %s: %v", got, c.want, err)
		}
	}
}

// TestDurabilityLostWhileRunning has the settings change behind our back: the
// next look, a minute later, refuses them until they are set right.
func TestDurabilityLostWhileRunning(t *testing.T) {
	db := connect(t, testenv.Postgres(t))
	// Stands for a reload of the server with fsync=off, which the test's
	// server, whose command line sets it, ignores. All runs on one connection.
	exec(t, db, "SET synchronous_commit = off")
	if err := db.Ping(t.Context()); err != nil {
		t.Errorf("within the minute: %v", err)
	}
	minuteAgo := time.Now().Add(-durableFor).Unix()
	db.durable.Store(minuteAgo)
	for range 2 { // it stays refused
		var setting *ErrSetting
		if err := db.Ping(t.Context()); !errors.As(err, &setting) {
			t.Errorf("after a minute: %v", err)
		}
	}
	exec(t, db, "SET synchronous_commit = on")
	if err := db.Ping(t.Context()); err != nil || db.durable.Load() == minuteAgo {
		t.Errorf("set right: %v", err)
	}
}
