package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// folder is one that Postgres passes through as another user, if we are root.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "trent-pgcluster-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestStart goes through what an unkind machine does to a cluster: a path too
// long for a socket, a crash, and a lock file whose number now belongs to
// another process.
func TestStart(t *testing.T) {
	dir := filepath.Join(folder(t), strings.Repeat("long", 30))
	c := start(t, dir)
	if len(c.socket) > longestSocket-len("/.s.PGSQL."+port) {
		t.Errorf("socket folder %s is too long", c.socket)
	}
	query(t, c, "CREATE TABLE kept (n int)")
	if err := c.kill(); err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(c.data(), "postmaster.pid")
	if err := os.WriteFile(lock, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	c = start(t, dir)
	query(t, c, "INSERT INTO kept VALUES (1)")

	// A server that outlived its owner gives way.
	next := start(t, dir)
	select {
	case <-c.Exited():
	default:
		t.Error("the orphan still runs")
	}
	query(t, next, "INSERT INTO kept VALUES (2)")
	if err := next.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	query(t, next, "INSERT INTO kept VALUES (3)")
	if err := next.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(next.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket folder is still there: %v", err)
	}
}

// What a machine has set for its own Postgres does not reach this one, and a
// folder may have any name.
func TestForeignSettings(t *testing.T) {
	for name, value := range map[string]string{
		"PGSERVICE": "theirs", "PGSERVICEFILE": "/nonexistent", "PGTARGETSESSIONATTRS": "standby",
		"PGOPTIONS": "-c synchronous_commit=off", "PGHOST": "nowhere.invalid", "PGSSLMODE": "verify-full",
	} {
		t.Setenv(name, value)
	}
	c := start(t, filepath.Join(folder(t), "a b+c%20'd"))
	// Fails unless the setting is the server's own.
	query(t, c, "SELECT 1 / (current_setting('synchronous_commit') = 'on')::int")
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
}

// The log is opened in a folder that the server's user can write to.
func TestLogIsNoLink(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	for name, link := range map[string]func(log string) error{
		"symbolic":  func(log string) error { return os.Symlink(elsewhere, log) },
		"hard":      func(log string) error { return os.Link(elsewhere, log) },
		"pipe":      func(log string) error { return syscall.Mkfifo(log, 0o600) },
		"directory": func(log string) error { return os.Mkdir(log, 0o700) },
	} {
		if err := os.WriteFile(elsewhere, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		c := &Cluster{dir: t.TempDir()}
		if err := link(c.log()); err != nil {
			t.Fatal(err)
		}
		if log, err := c.openLog(); err == nil {
			t.Errorf("%s: opened", name)
			_ = log.Close()
		}
	}
	c := &Cluster{dir: t.TempDir()}
	for range 2 {
		log, err := c.openLog()
		if err != nil {
			t.Fatal(err)
		}
		_ = log.Close()
	}
}

func start(t *testing.T, dir string) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Config{Dir: dir, Unsynced: true})
	if errors.Is(err, ErrNotInstalled) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	return c
}

func query(t *testing.T, c *Cluster, sql string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, c.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
}
