// Package audit writes one CloudTrail-shaped record per call, durably, before
// the call is answered. Records are chained per host by hash and each batch
// carries a MAC made in the HSM. One goroutine owns the chain: it takes all
// that waits, commits it as one batch, and wakes the callers (group commit).
package audit

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/store"
)

// ErrBusy says that the queue is full: the database does not keep up.
var ErrBusy = errors.New("audit queue is full")

// ErrClosed says that the writer has been closed.
var ErrClosed = errors.New("audit writer is closed")

type Config struct {
	DB      *store.DB
	Sealer  store.Sealer
	Host    string
	Queue   int // most records waiting; 0 = 4096
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

type Writer struct{}

func Open(ctx context.Context, c Config) (*Writer, error) { panic("being written") }

// Record returns after the commit, with the database's change sequence.
func (w *Writer) Record(ctx context.Context, r *Record) (changeSeq int64, err error) {
	panic("being written")
}

// Commit writes record and change in one transaction.
func (w *Writer) Commit(ctx context.Context, r *Record, c *store.Change) (changeSeq int64, err error) {
	panic("being written")
}

// Close drains the queue.
func (w *Writer) Close(ctx context.Context) error { panic("being written") }
