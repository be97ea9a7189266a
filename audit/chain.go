package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/store"
)

// attempts is how often a batch is tried, and how often the head is looked for,
// before the callers get the error: a lost connection is made up for, a
// database that is down is reported at once.
const attempts = 3

// chain is the end of a host's log. It is not safe for concurrent use.
type chain struct {
	db     *store.DB
	sealer store.Sealer
	host   string
	boot   [16]byte
	lock   *store.HostLock
	head   head
	// doubt says that a batch may or may not have been committed on top of
	// head: look before the next.
	doubt bool
	lines []byte // buffer for the records of a batch
}

// head is the newest record: its sequence number and the chain's hash.
type head struct {
	seq  int64
	hash [sha256.Size]byte
}

// openWait is how long the start waits for the process before to be gone.
const openWait = 5 * time.Second

func openChain(ctx context.Context, cfg Config) (chain, error) {
	if cfg.Host == "" {
		return chain{}, errors.New("opening audit log: no host name")
	}
	c := chain{db: cfg.DB, sealer: cfg.Sealer, host: cfg.Host, boot: uuid.New()}
	var err error
	if c.lock, err = c.db.LockHost(ctx, c.host, openWait); err != nil {
		return chain{}, fmt.Errorf("opening audit log: %w", err)
	}
	b, err := c.last(ctx)
	if err != nil {
		c.release()
		return chain{}, fmt.Errorf("opening audit log: %w", err)
	}
	c.head = headOf(b)
	return c, nil
}

// last is the newest batch in the database, its MAC verified; an empty batch
// before the first.
func (c *chain) last(ctx context.Context) (store.AuditBatch, error) {
	b, err := c.db.LastAuditBatch(ctx, c.host)
	if errors.Is(err, store.ErrNotFound) {
		return store.AuditBatch{LastHash: make([]byte, sha256.Size)}, nil
	}
	if err != nil {
		return b, err
	}
	return b, c.db.VerifyAudit(ctx, &b)
}

func headOf(b store.AuditBatch) head {
	h := head{seq: b.LastSeq}
	copy(h.hash[:], b.LastHash)
	return h
}

// append commits a batch on top of the head. When the connection is lost it
// finds out what became of the batch, and tries again.
func (c *chain) append(ctx context.Context, batch []*entry) (seq int64, err error) {
	if c.doubt {
		if err := c.resume(ctx); err != nil {
			return 0, err
		}
	}
	for range attempts {
		b, next := c.build(batch)
		if err := c.db.SealAudit(ctx, c.sealer, b); err != nil {
			return 0, err
		}
		seq, err = c.send(ctx, batch, b)
		if err == nil {
			c.head = next
			return seq, nil
		}
		if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrAuditTaken) {
			return 0, err // refused: nothing was written
		}
		c.doubt = true
		if resumed := c.resume(ctx); resumed != nil {
			return 0, fmt.Errorf("%w; then: %w", err, resumed)
		}
		if c.head == next { // it was committed after all
			return c.db.ChangeSequence(ctx)
		}
	}
	return 0, err
}

// build lays out a batch on top of the head.
func (c *chain) build(batch []*entry) (*store.AuditBatch, head) {
	next := c.head
	c.lines = c.lines[:0]
	add := func(line []byte) {
		next.hash = store.ChainHash(next.hash, line)
		next.seq++
		c.lines = append(append(c.lines, line...), '\n')
	}
	for _, e := range batch {
		add(e.line)
		for _, line := range e.more {
			add(line)
		}
	}
	return &store.AuditBatch{
		Host: c.host, BootID: c.boot,
		FirstSeq: c.head.seq + 1, LastSeq: next.seq,
		PrevHash: bytes.Clone(c.head.hash[:]), LastHash: bytes.Clone(next.hash[:]),
		Records: c.lines,
	}, next
}

func (c *chain) send(ctx context.Context, batch []*entry, b *store.AuditBatch) (int64, error) {
	if change := batch[0].change; change != nil {
		return c.db.Commit(ctx, change, b)
	}
	failpoint.Hit("audit.before_commit")
	seq, err := c.db.AppendAudit(ctx, b)
	if err == nil {
		failpoint.Hit("audit.after_commit")
	}
	return seq, err
}

// resume finds the head again after a lost connection: where it was, or one
// batch further, by this process. Anything else means that the log was written
// or cut by someone else, or that the database lost what it had confirmed.
func (c *chain) resume(ctx context.Context) (err error) {
	for range attempts {
		err = c.resumeOnce(ctx)
		if !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

func (c *chain) resumeOnce(ctx context.Context) error {
	c.db.Renew()
	if c.lock.Held(ctx) != nil {
		c.release()
		lock, err := c.db.LockHost(ctx, c.host, 0)
		if err != nil {
			return err
		}
		c.lock = lock
	}
	b, err := c.last(ctx)
	var tampered *store.ErrTampered
	if errors.As(err, &tampered) {
		return fmt.Errorf("%w: %w", ErrChain, err)
	}
	if err != nil {
		return err
	}
	found := headOf(b)
	switch {
	case found == c.head:
	case b.BootID == c.boot && b.FirstSeq == c.head.seq+1 && bytes.Equal(b.PrevHash, c.head.hash[:]):
		c.head = found
	default:
		return fmt.Errorf("%w: the newest record of host %q is number %d, this process wrote %d; "+
			"look for another process with this host name, or a database restored or failed over with loss",
			ErrChain, c.host, found.seq, c.head.seq)
	}
	c.doubt = false
	return nil
}

func (c *chain) release() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.lock.Release(ctx)
}
