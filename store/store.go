// Package store keeps keys, principals, aliases and the audit log in Postgres.
// Postgres is untrusted: every row that grants power or names key material is
// sealed with a MAC made in the HSM over its whole meaning and checked on
// load. A mutation and its audit record share one transaction.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Config says which database to use.
type Config struct {
	// URL is a Postgres connection URL or key=value string. Its password is
	// never logged.
	URL string
	// MaxConns bounds the pool. 0 = 16; at least 4 are used.
	MaxConns int32
	// Logger receives tampering and migrations. nil = slog.Default().
	Logger *slog.Logger
	// Metrics is where the trent_store_ metrics are registered. nil = nowhere.
	Metrics prometheus.Registerer
}

// DB is a pool of connections, and the MAC key that seals its rows.
type DB struct {
	pool     *pgxpool.Pool
	log      *slog.Logger
	sealing  atomic.Pointer[sealing] // nil until SetSealer
	tampered *prometheus.CounterVec
	durable  atomic.Int64 // when checkDurable last found nothing, in Unix seconds
}

// Open connects, and refuses a server that does not keep what it confirms.
// The schema is not looked at: see Migrate and CheckSchema.
func Open(ctx context.Context, c Config) (*DB, error) {
	cfg, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL (expected postgres://user@host/database): %w", err)
	}
	cfg.MaxConns = 16
	if c.MaxConns > 0 {
		cfg.MaxConns = max(c.MaxConns, 4)
	}
	bound(cfg.ConnConfig)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("making the connection pool: %w", err)
	}
	db := &DB{pool: pool, log: c.Logger}
	if db.log == nil {
		db.log = slog.Default()
	}
	if err := db.checkDurable(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	db.measure(c.Metrics)
	return db, nil
}

// bound keeps one hung process from holding up all others, whose rows a change
// locks until it is committed; and from committing, once it goes on, what it
// was allowed before others were told of a revocation.
func bound(c *pgx.ConnConfig) {
	c.ConnectTimeout = min(c.ConnectTimeout, 10*time.Second)
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 10 * time.Second
	}
	for setting, value := range map[string]string{
		"application_name": "trent",
		"lock_timeout":     "500ms",
		// Whatever the server or the role is set to, now or later; the URL may
		// ask for another. remote_apply would lose no less than this.
		"synchronous_commit":                  "on",
		"idle_in_transaction_session_timeout": "1s",
		// Stricter ones refuse audit records that hosts write at the same time.
		"default_transaction_isolation": "read committed",
		// A host that vanished from the network loses its locks in a minute.
		"tcp_keepalives_idle":     "30",
		"tcp_keepalives_interval": "10",
		"tcp_keepalives_count":    "3",
	} {
		if _, set := c.RuntimeParams[setting]; !set {
			c.RuntimeParams[setting] = value
		}
	}
}

// demands lists the settings without which Postgres confirms what it may lose
// or garble. SHOW reports them as they hold for our role.
var demands = []struct {
	setting string
	refused string
	next    string
}{
	{"fsync", "off", "a power cut would lose audited operations; set fsync=on in postgresql.conf and restart Postgres"},
	{"full_page_writes", "off", "a power cut could tear pages; set full_page_writes=on in postgresql.conf and reload Postgres"},
	{"synchronous_commit", "off", "commits would be confirmed before they are on disk; take synchronous_commit out of the database URL"},
	{"server_encoding", "SQL_ASCII", "texts could not be kept faithfully; create the database with ENCODING 'UTF8' TEMPLATE template0"},
}

// checkDurable refuses, with an *ErrSetting, a server that would lose what it
// has confirmed.
func (db *DB) checkDurable(ctx context.Context) error {
	for _, d := range demands {
		var value string
		err := db.pool.QueryRow(ctx, "SELECT current_setting($1)", d.setting).Scan(&value)
		if err != nil {
			err = fault(err)
			if errors.Is(err, ErrUnavailable) {
				err = fmt.Errorf("is it running, and is the database URL right? %w", err)
			}
			return fmt.Errorf("asking Postgres for %s: %w", d.setting, err)
		}
		if value == d.refused {
			return &ErrSetting{Setting: d.setting, Value: value, Next: d.next}
		}
	}
	db.durable.Store(time.Now().Unix())
	return nil
}

// durableFor is how long Ping believes what checkDurable has found: settings
// can change while the server runs.
const durableFor = time.Minute

func (db *DB) measure(r prometheus.Registerer) {
	factory := promauto.With(r)
	db.tampered = factory.NewCounterVec(prometheus.CounterOpts{
		Name: "trent_store_tampered_rows_total",
		Help: "Rows refused because their MAC did not hold.",
	}, []string{"table"})
	for name, read := range map[string]func(*pgxpool.Stat) int32{
		"total": (*pgxpool.Stat).TotalConns,
		"used":  (*pgxpool.Stat).AcquiredConns,
		"most":  (*pgxpool.Stat).MaxConns,
	} {
		factory.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "trent_store_connections",
			Help:        "Connections to Postgres: open, in use, and the most allowed.",
			ConstLabels: prometheus.Labels{"count": name},
		}, func() float64 { return float64(read(db.pool.Stat())) })
	}
}

// Close ends all connections.
func (db *DB) Close() { db.pool.Close() }

// Pool gives the job library its connections.
func (db *DB) Pool() *pgxpool.Pool { return db.pool }

// Renew has all connections replaced: after one was lost, the others in the
// pool are likely dead as well.
func (db *DB) Renew() { db.pool.Reset() }

// Now is the time by Postgres's clock.
func (db *DB) Now(ctx context.Context) (now time.Time, err error) {
	if err := db.pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now); err != nil {
		return now, fmt.Errorf("asking Postgres for the time: %w", fault(err))
	}
	return now, nil
}

// Ping does one round trip, and once a minute checkDurable.
func (db *DB) Ping(ctx context.Context) error {
	if err := db.pool.Ping(ctx); err != nil {
		return fmt.Errorf("reaching Postgres: %w", fault(err))
	}
	if time.Since(time.Unix(db.durable.Load(), 0)) < durableFor {
		return nil
	}
	return db.checkDurable(ctx)
}
