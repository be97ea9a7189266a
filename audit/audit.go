// Package audit writes one CloudTrail-shaped record per call, durably, before
// the call is answered. Records are chained per host by hash and each batch
// carries a MAC made in the HSM. One goroutine owns the chain: it takes all
// that waits, commits it as one batch, and wakes the callers (group commit).
package audit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/store"
)

var (
	// ErrBusy says that the queue is full: the database does not keep up.
	ErrBusy = errors.New("audit queue is full")
	// ErrClosed says that the writer has been closed.
	ErrClosed = errors.New("audit writer is closed")
	// ErrChain says that the log of this host in the database is not what
	// this process has written: nothing more is written until a restart.
	ErrChain = errors.New("audit log was changed by someone else")
)

// Config says whose log is written.
type Config struct {
	// DB must have its sealer set.
	DB *store.DB
	// Sealer makes the MAC of each batch. nil = the one that seals DB's rows.
	Sealer store.Sealer
	// Host names this host's chain. No two live processes may share it.
	Host string
	// Queue is how many records may wait. 0 = 4096.
	Queue int
	// Logger receives lost connections and a broken chain. nil = slog.Default().
	Logger *slog.Logger
	// Metrics is where the trent_audit_ metrics are registered. nil = nowhere.
	Metrics prometheus.Registerer
}

// Writer appends to the log of one host.
type Writer struct {
	db      *store.DB
	log     *slog.Logger
	queue   int
	metrics metrics
	wake    chan struct{} // holds one token when there is something to do
	done    chan struct{} // closed when run has ended
	stop    context.CancelFunc

	mu      sync.Mutex
	waiting []*entry // guarded by mu; in order of arrival
	closed  bool     // guarded by mu
	broken  error    // guarded by mu; why nothing can be written any more

	failure  error     // guarded by mu; of the newest batch of calls, nil if it was written
	failedAt time.Time // guarded by mu; when failure was set

	chain chain // owned by run
}

// entry is one record on its way.
type entry struct {
	ctx    context.Context // of a change: not begun once it has ended
	line   []byte
	more   [][]byte      // further records of a change
	change *store.Change // nil for a call that changes nothing
	result chan result   // holds one
}

type result struct {
	seq int64
	err error
}

// entries are used again, with their buffers.
var entries = sync.Pool{New: func() any {
	return &entry{line: make([]byte, 0, 2048), result: make(chan result, 1)}
}}

// Open takes the lock of this host's log and reads its head. ErrHostTaken (of
// store) if another live process writes it.
func Open(ctx context.Context, c Config) (*Writer, error) {
	w := &Writer{
		db: c.DB, log: c.Logger, queue: c.Queue,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if w.log == nil {
		w.log = slog.Default()
	}
	if w.queue == 0 {
		w.queue = 4096
	}
	var err error
	if w.chain, err = openChain(ctx, c); err != nil {
		return nil, err
	}
	w.measure(c.Metrics)
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop = stop
	go w.run(base)
	return w, nil
}

// Record writes r and returns after its commit, with the database's change
// sequence as it stood after Record was called. If ctx ends first, r may still
// be written. It gives r an event id if it has none.
func (w *Writer) Record(ctx context.Context, r *Record) (changeSeq int64, err error) {
	return w.write(ctx, r, nil, nil)
}

// Commit writes r, the further records and c in one transaction, and returns
// the change's sequence number. Besides Record's errors it answers those of
// store.DB's Commit, with nothing written. If ctx ends first, all of it may
// still be written.
func (w *Writer) Commit(ctx context.Context, r *Record, c *store.Change, further ...*Record) (changeSeq int64, err error) {
	return w.write(ctx, r, c, further)
}

func (w *Writer) write(ctx context.Context, r *Record, c *store.Change, further []*Record) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if r.EventID == "" {
		r.EventID = uuid.NewString()
	}
	e := entries.Get().(*entry)
	e.ctx, e.change, e.line, e.more = ctx, c, r.Append(e.line[:0]), nil
	for _, r := range further {
		if r.EventID == "" {
			r.EventID = uuid.NewString()
		}
		e.more = append(e.more, r.Append(nil))
	}
	if err := w.enqueue(e); err != nil {
		return 0, err
	}
	select {
	case got := <-e.result:
		e.ctx, e.change = nil, nil
		entries.Put(e)
		return got.seq, got.err
	case <-ctx.Done():
		return 0, ctx.Err() // e belongs to run now
	}
}

func (w *Writer) enqueue(e *entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.broken != nil:
		return w.broken
	case w.closed:
		return ErrClosed
	case len(w.waiting) >= w.queue:
		w.metrics.failed.Inc()
		return ErrBusy
	}
	w.waiting = append(w.waiting, e)
	w.nudge()
	return nil
}

func (w *Writer) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Err says why nothing can be written until a restart; nil if all is well.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken
}

// failingFor is how long a batch that failed speaks against this host, unless
// another is written: one that gets no calls any more would write none.
const failingFor = 5 * time.Second

// Failing says why the newest batch of records could not be written just now,
// or nil: the disk of Postgres is full, or Postgres is away.
func (w *Writer) Failing() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.failedAt) > failingFor {
		return nil
	}
	return w.failure
}

// Close refuses new records, writes those that wait, and gives up the host's
// lock. If ctx ends first, what is left gets an error.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.nudge()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		w.stop()
		<-w.done
		return ctx.Err()
	}
}
