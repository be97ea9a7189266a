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
	// late says that a batch in doubt, of this process or of the one before,
	// may yet be committed on top of head, although a look did not find it.
	late bool
	// written says that this process has written a batch.
	written bool
	lines   []byte // buffer for the records of a batch
}

// head is the newest record: its sequence number and the chain's hash.
type head struct {
	seq  int64
	hash [sha256.Size]byte
}

// openWait is how long the start waits for the process before to be gone.
const openWait = 5 * time.Second

// resumeWait is how long Postgres may take to notice that the connection that
// held our own lock is lost.
const resumeWait = time.Second

func openChain(ctx context.Context, cfg Config) (chain, error) {
	if cfg.Host == "" {
		return chain{}, errors.New("opening audit log: no host name")
	}
	c := chain{db: cfg.DB, sealer: cfg.Sealer, host: cfg.Host, boot: uuid.New(), late: true}
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
	var doubt error // an attempt whose outcome is not known
	for range attempts {
		b, next := c.build(batch)
		if err := c.db.SealAudit(ctx, c.sealer, b); err != nil {
			return 0, c.unresolved(doubt, err)
		}
		seq, err = c.send(ctx, batch, b)
		if err == nil {
			c.moved(next)
			return seq, nil
		}
		if errors.Is(err, store.ErrInDoubt) {
			doubt = err
		}
		if doubt == nil && !c.again(err) {
			return 0, err // refused: nothing was written
		}
		c.doubt = true
		before := c.head
		if resumed := c.resume(ctx); resumed != nil {
			return 0, c.unresolved(doubt, fmt.Errorf("%w; then: %w", err, resumed))
		}
		if c.head == next { // it was committed after all
			return c.sequence(ctx)
		}
		if c.head != before { // by another batch: this one never will be
			doubt = nil
		}
	}
	return 0, c.unresolved(doubt, err)
}

// again reports whether a refused batch may be sent again as it is. As long as
// an earlier one may be committed late, a lock that it holds is no conflict.
func (c *chain) again(err error) bool {
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrAuditHead) ||
		c.late && errors.Is(err, store.ErrLocked)
}

// unresolved is the answer to the callers of a batch that failed. Once an
// attempt is in doubt, what the next ones met (a lock, a row that exists) may
// be its own doing: only doubt can be answered, since kms takes a conflict for
// the promise that nothing was written.
func (c *chain) unresolved(doubt, err error) error {
	if doubt == nil {
		return err
	}
	c.late = true
	if errors.Is(err, ErrChain) {
		return fmt.Errorf("%w; then: %w", doubt, err)
	}
	return fmt.Errorf("%w; then: %v", doubt, err) //nolint:errorlint // see above
}

// moved notes that a batch of this process has been committed.
func (c *chain) moved(to head) { c.head, c.late, c.written = to, false, true }

// sequence is what the lost answer to a batch would have said.
func (c *chain) sequence(ctx context.Context) (int64, error) {
	seq, err := c.db.ChangeSequence(ctx)
	if err != nil { // the callers must not take it for "nothing was written"
		return 0, fmt.Errorf("%w: %w", store.ErrInDoubt, err)
	}
	return seq, nil
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
// batch further, by this process or, before it has written any, by the one
// before, which may have been killed while Postgres was committing. Anything
// else means that the log was written or cut by someone else, or that the
// database lost what it had confirmed.
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
		lock, err := c.db.LockHost(ctx, c.host, resumeWait)
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
	case (b.BootID == c.boot || !c.written) && b.FirstSeq == c.head.seq+1 && bytes.Equal(b.PrevHash, c.head.hash[:]):
		c.head, c.late, c.written = found, false, c.written || b.BootID == c.boot
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
