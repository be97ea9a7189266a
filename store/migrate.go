package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrateLock keeps two processes from migrating at once.
const migrateLock = 0x7472656e74 // "trent"

const newerNext = "install the release that migrated it, or a later one; nothing was changed"

// schema is how far a database has been migrated, and how far this binary can.
type schema struct {
	ours, ourTarget    int64
	river, riverTarget int64
}

func (s schema) check() error {
	if s.ours > s.ourTarget || s.river > s.riverTarget {
		return fmt.Errorf("%w (it has %d/%d, this binary knows %d/%d): %s",
			ErrNewerSchema, s.ours, s.river, s.ourTarget, s.riverTarget, newerNext)
	}
	return nil
}

// Migrate brings the database to this binary's schema: Trent's own tables and
// the job library's, under one lock. It may be repeated. A database that a
// newer release has migrated is refused with ErrNewerSchema, untouched.
func (db *DB) Migrate(ctx context.Context) error {
	pool, err := db.migrationPool(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	release, err := lockMigrations(ctx, pool)
	if err != nil {
		return err
	}
	defer release()
	current, err := db.schema(ctx, pool)
	if err == nil {
		err = current.check()
	}
	if err != nil {
		return err
	}
	return db.migrate(ctx, pool)
}

func (db *DB) migrate(ctx context.Context, pool *pgxpool.Pool) error {
	ours, closed, err := provider(pool)
	if err != nil {
		return err
	}
	defer closed()
	results, err := ours.Up(ctx)
	if err != nil {
		return fmt.Errorf("migrating the database: %w", fault(err))
	}
	for _, r := range results {
		db.log.Info("migrated the database", "migration", r.Source.Path, "took", r.Duration)
	}
	jobs, err := db.riverMigrator(pool)
	if err != nil {
		return err
	}
	if _, err = jobs.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("migrating the job tables: %w", fault(err))
	}
	return nil
}

// CheckSchema refuses a database that is not exactly at this binary's schema:
// ErrOlderSchema or ErrNewerSchema.
func (db *DB) CheckSchema(ctx context.Context) error {
	current, err := db.schema(ctx, db.pool)
	if err != nil {
		return err
	}
	if err := current.check(); err != nil {
		return err
	}
	if current.ours < current.ourTarget || current.river < current.riverTarget {
		return fmt.Errorf("%w (it has %d/%d, this binary needs %d/%d): run `trent init`",
			ErrOlderSchema, current.ours, current.river, current.ourTarget, current.riverTarget)
	}
	return nil
}

// migrationPool is a pool without the time limits of daily work.
func (db *DB) migrationPool(ctx context.Context) (*pgxpool.Pool, error) {
	cfg := db.pool.Config()
	cfg.ConnConfig.RuntimeParams["lock_timeout"] = "60s"
	cfg.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "0"
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to migrate: %w", err)
	}
	return pool, nil
}

// lockMigrations polls: a session that waits inside pg_advisory_lock holds a
// snapshot, on which CREATE INDEX CONCURRENTLY of the holder would wait.
func lockMigrations(ctx context.Context, pool *pgxpool.Pool) (release func(), err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to migrate: %w", fault(err))
	}
	for {
		var taken bool
		err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", migrateLock).Scan(&taken)
		if err != nil {
			conn.Release()
			return nil, fmt.Errorf("locking migrations: %w", fault(err))
		}
		if taken {
			return func() {
				_ = conn.Conn().Close(context.WithoutCancel(ctx)) // ends the session and its lock
				conn.Release()
			}, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			conn.Release()
			return nil, fmt.Errorf("waiting for another process to migrate: %w", ctx.Err())
		}
	}
}

func provider(pool *pgxpool.Pool) (_ *goose.Provider, closed func(), err error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, nil, fmt.Errorf("opening embedded migrations: %w", err)
	}
	sqlDB := stdlib.OpenDBFromPool(pool)
	p, err := goose.NewProvider(goose.DialectPostgres, sqlDB, files,
		goose.WithTableName("schema_migrations"), goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("reading embedded migrations: %w", err), sqlDB.Close())
	}
	return p, func() { _ = p.Close() }, nil
}

// schema looks without writing: a database that is refused stays untouched.
func (db *DB) schema(ctx context.Context, pool *pgxpool.Pool) (schema, error) {
	var s schema
	var err error
	if s.ours, err = newest(ctx, pool, "schema_migrations", "SELECT coalesce(max(version_id), 0) FROM schema_migrations WHERE is_applied"); err != nil {
		return s, err
	}
	if s.river, err = newest(ctx, pool, "river_migration", "SELECT coalesce(max(version), 0) FROM river_migration"); err != nil {
		return s, err
	}
	ours, closed, err := provider(pool)
	if err != nil {
		return s, err
	}
	defer closed()
	for _, source := range ours.ListSources() {
		s.ourTarget = max(s.ourTarget, source.Version)
	}
	jobs, err := db.riverMigrator(pool)
	if err != nil {
		return s, err
	}
	for _, m := range jobs.AllVersions() {
		s.riverTarget = max(s.riverTarget, int64(m.Version))
	}
	return s, nil
}

func newest(ctx context.Context, pool *pgxpool.Pool, table, query string) (version int64, err error) {
	var exists bool
	err = pool.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL", table).Scan(&exists)
	if err == nil && exists {
		err = pool.QueryRow(ctx, query).Scan(&version)
	}
	if err != nil {
		return 0, fmt.Errorf("reading the schema's version: %w", fault(err))
	}
	return version, nil
}

func (db *DB) riverMigrator(pool *pgxpool.Pool) (*rivermigrate.Migrator[pgx.Tx], error) {
	m, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, fmt.Errorf("reading the job library's migrations: %w", err)
	}
	return m, nil
}
