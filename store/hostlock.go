package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
	conn, err := db.lock(ctx, hostLockClass, host, wait)
	if err != nil {
		return nil, fmt.Errorf("locking the audit log of %q: %w", host, err)
	}
	if conn == nil {
		return nil, fmt.Errorf("%w (%q): stop that one, or give this one a host name of its own", ErrHostTaken, host)
	}
	return &HostLock{conn}, nil
}

// lock takes an advisory lock on a connection of its own, which is nil if
// another process holds the lock all the while.
func (db *DB) lock(ctx context.Context, class int32, name string, wait time.Duration) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, db.pool.Config().ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("connecting to Postgres: %w", fault(err))
	}
	var taken bool
	for deadline := time.Now().Add(wait); ; time.Sleep(hostLockPoll) {
		err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1, hashtext($2))", class, name).Scan(&taken)
		if err == nil && taken {
			return conn, nil
		}
		if err != nil || time.Now().After(deadline) {
			break
		}
	}
	_ = conn.Close(ctx)
	return nil, fault(err)
}

// The first halves of the keys of locks that one process has for as long as it
// sets up or changes what is on tokens.
const (
	initLockClass   = 0x74726969 // "trii"
	domainLockClass = 0x74726964 // "trid"
)

// How long another process is waited for: a set-up that was killed a moment
// ago; an officer's other command, which talks to every token.
const (
	initLockWait   = time.Second
	domainLockWait = 15 * time.Second
)

// LockInit lets one process at a time set the database up, or answers
// ErrInitRunning. release gives the lock up.
func (db *DB) LockInit(ctx context.Context) (release func(), err error) {
	conn, err := db.lockAlone(ctx, initLockClass, "init", initLockWait, ErrInitRunning)
	return func() { unlock(ctx, conn) }, err
}

// WithDomainLock runs f, which makes or destroys objects on tokens by what the
// generations' rows say, in one process at a time, or answers ErrDomainBusy:
// tokens know no transactions, and two that make the same keys leave them
// double. The context that f gets ends when the lock is lost with its
// connection, since another process may have it then: ErrDomainUnlocked.
func (db *DB) WithDomainLock(ctx context.Context, f func(ctx context.Context) error) error {
	conn, err := db.lockAlone(ctx, domainLockClass, "domain", domainLockWait, ErrDomainBusy)
	if err != nil {
		return err
	}
	defer unlock(ctx, conn)
	held, end := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end(nil)
	watching.Go(func() {
		_, err := conn.WaitForNotification(held) // of which nobody sends one
		end(fmt.Errorf("%w: %w", ErrDomainUnlocked, fault(err)))
	})
	err = f(held)
	if lost := context.Cause(held); err != nil && errors.Is(lost, ErrDomainUnlocked) {
		return fmt.Errorf("%w: %w", lost, err)
	}
	return err
}

func (db *DB) lockAlone(ctx context.Context, class int32, name string, wait time.Duration, taken error) (*pgx.Conn, error) {
	conn, err := db.lock(ctx, class, name, wait)
	if err != nil {
		return nil, fmt.Errorf("locking the %s: %w", name, err)
	}
	if conn == nil {
		return nil, taken
	}
	return conn, nil
}

func unlock(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
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
