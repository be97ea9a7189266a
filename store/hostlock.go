package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// HostLock is held by the one process that writes audit records as a host. It
// lives as long as a connection of its own; the primary key of audit_batches
// is what really keeps two writers from forking the chain.
type HostLock struct{ conn *pgx.Conn }

// hostLockClass is the first half of the advisory lock's key.
const hostLockClass = 0x7472656e // "tren"

// hostLockPoll is how often a lock that is held is tried again.
const hostLockPoll = 100 * time.Millisecond

// LockHost takes the lock, or answers ErrHostTaken after wait: Postgres may
// notice only after a moment that the process that held it was killed.
func (db *DB) LockHost(ctx context.Context, host string, wait time.Duration) (*HostLock, error) {
	conn, err := pgx.ConnectConfig(ctx, db.pool.Config().ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("connecting to Postgres: %w", fault(err))
	}
	var taken bool
	for deadline := time.Now().Add(wait); ; time.Sleep(hostLockPoll) {
		err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1, hashtext($2))", hostLockClass, host).Scan(&taken)
		if err == nil && taken {
			return &HostLock{conn}, nil
		}
		if err != nil || time.Now().After(deadline) {
			break
		}
	}
	_ = conn.Close(ctx)
	if err != nil {
		return nil, fmt.Errorf("locking the audit log of %q: %w", host, fault(err))
	}
	return nil, fmt.Errorf("%w (%q): stop that one, or give this one a host name of its own", ErrHostTaken, host)
}

// Held reports whether the lock's connection still lives.
func (l *HostLock) Held(ctx context.Context) error {
	if l == nil || l.conn.IsClosed() {
		return errors.New("the host lock is not held")
	}
	return l.conn.Ping(ctx)
}

// Release gives the lock up.
func (l *HostLock) Release(ctx context.Context) {
	if l != nil {
		_ = l.conn.Close(ctx)
	}
}
