package testenv

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/trent-kms/trent/internal/pgcluster"
)

// ownGroup keeps Ctrl-C on a terminal from reaching the reaper.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// server is the process's one cluster.
var server struct {
	sync.Mutex
	cluster   *pgcluster.Cluster
	databases int
}

// Postgres returns the URL of an empty database that no other test uses, on a
// server that the tests of this process share. Its role is a superuser.
func Postgres(t testing.TB) string {
	t.Helper()
	server.Lock()
	defer server.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if server.cluster == nil {
		dir, err := scratch()
		need(t, err)
		server.cluster, err = pgcluster.Start(ctx, pgcluster.Config{Dir: dir, Unsynced: true})
		need(t, err)
	}
	server.databases++
	name := fmt.Sprintf("test_%d", server.databases)
	need(t, execute(ctx, server.cluster.URL("postgres"), "CREATE DATABASE "+name))
	return server.cluster.URL(name)
}

// RestartPostgres stops the shared server, which cuts every connection, and
// runs it again: not for tests that run in parallel.
func RestartPostgres(t testing.TB) {
	t.Helper()
	server.Lock()
	defer server.Unlock()
	if server.cluster == nil {
		t.Fatal("RestartPostgres before Postgres")
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	need(t, server.cluster.Restart(ctx))
}

// OwnPostgres runs a server for this test alone, to be stopped and started at
// will. It is stopped when the test ends.
func OwnPostgres(t testing.TB) *pgcluster.Cluster {
	t.Helper()
	dir, err := scratch()
	need(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cluster, err := pgcluster.Start(ctx, pgcluster.Config{Dir: dir, Unsynced: true})
	need(t, err)
	t.Cleanup(func() { _ = cluster.Stop() })
	return cluster
}

func execute(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connecting to test server: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // one statement, already answered
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("executing %q: %w", sql, err)
	}
	return nil
}
