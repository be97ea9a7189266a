package hsm

import (
	"container/list"
	"context"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"
)

// handleCache keeps unwrapped backing keys alive on the token, keyed by EKT.
// Concurrent demands for one key load it once; at most max objects live; an
// object that someone uses is never destroyed; all are forgotten when a new
// epoch begins, since they died with the old one.
type handleCache struct {
	max   int
	stats *metrics
	// epoch is the token's current one.
	epoch func() uint64
	// load unwraps ekt, after destroying victim if that is not nil. It runs
	// to its end whatever becomes of the callers who wait for it.
	load func(ekt EKT, victim *handle) (pkcs11.ObjectHandle, uint64, error)
	// destroy ends an object that no one holds any more. It must not block.
	destroy func(*handle)

	mu      sync.Mutex
	entries map[string]*handle
	recent  *list.List    // *handle, most recently used first
	current uint64        // epoch of entries
	room    chan struct{} // closed when a handle falls idle; nil = no one waits
}

// handle is one unwrapped key.
type handle struct {
	cache *handleCache
	name  string

	// ready is closed when object, epoch and err are set for good.
	ready  chan struct{}
	object pkcs11.ObjectHandle
	epoch  uint64
	err    error

	// cache.mu guards these.
	place *list.Element // nil when no longer in the cache
	users int
}

func newHandleCache(max int) *handleCache {
	return &handleCache{max: max, entries: map[string]*handle{}, recent: list.New()}
}

// acquire returns a live handle for ekt, which the caller must release.
func (c *handleCache) acquire(ctx context.Context, ekt EKT) (*handle, error) {
	for {
		c.mu.Lock()
		c.forget(c.epoch())
		if h, ok := c.entries[string(ekt)]; ok {
			h.users++
			c.recent.MoveToFront(h.place)
			c.mu.Unlock()
			c.stats.hits.Inc()
			return h.wait(ctx)
		}
		victim, full := c.makeRoom()
		if full {
			room := c.waitForRoom()
			c.mu.Unlock()
			select {
			case <-room:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("%w: all %d key handles are in use: %w", ErrBusy, c.max, ctx.Err())
			}
		}
		h := c.insert(ekt)
		c.mu.Unlock()
		c.stats.misses.Inc()
		// A copy: a caller who goes may use the bytes of ekt for something else.
		go h.fill(EKT(h.name), victim)
		return h.wait(ctx)
	}
}

// ready is acquire for those who cannot wait: nil unless the handle is there.
func (c *handleCache) ready(ekt EKT) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(c.epoch())
	h, ok := c.entries[string(ekt)]
	if !ok {
		return nil
	}
	select {
	case <-h.ready:
	default:
		return nil
	}
	if h.err != nil {
		return nil
	}
	h.users++
	c.recent.MoveToFront(h.place)
	c.stats.hits.Inc()
	return h
}

// begin has a new epoch begin, whether or not anyone asks for a key.
func (c *handleCache) begin(epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(epoch)
}

// forget drops every entry of another epoch: their objects are gone already.
// One that is still being loaded stays; should it turn out stale, its load drops
// it. The caller holds mu.
func (c *handleCache) forget(epoch uint64) {
	if c.current == epoch {
		return
	}
	c.current = epoch
	for _, h := range c.entries {
		select {
		case <-h.ready:
			if h.epoch != epoch {
				c.remove(h)
			}
		default:
		}
	}
	c.signal()
}

// makeRoom evicts the idle entry that was used least recently if the cache is
// full. The load that follows destroys the victim first.
func (c *handleCache) makeRoom() (victim *handle, full bool) {
	if len(c.entries) < c.max {
		return nil, false
	}
	for e := c.recent.Back(); e != nil; e = e.Prev() {
		if h := e.Value.(*handle); h.users == 0 {
			c.remove(h)
			c.stats.drops.Inc()
			return h, false
		}
	}
	return nil, true
}

// waitForRoom returns a channel that is closed when a handle falls idle.
func (c *handleCache) waitForRoom() <-chan struct{} {
	if c.room == nil {
		c.room = make(chan struct{})
	}
	return c.room
}

func (c *handleCache) signal() {
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
}

// insert adds an entry with two users: the caller and the load.
func (c *handleCache) insert(ekt EKT) *handle {
	h := &handle{cache: c, name: string(ekt), ready: make(chan struct{}), users: 2}
	c.entries[h.name] = h
	h.place = c.recent.PushFront(h)
	c.stats.handles.Inc()
	return h
}

func (c *handleCache) remove(h *handle) {
	delete(c.entries, h.name)
	c.recent.Remove(h.place)
	h.place = nil
	c.stats.handles.Dec()
}

func (h *handle) fill(ekt EKT, victim *handle) {
	h.object, h.epoch, h.err = h.cache.load(ekt, victim)
	close(h.ready)
	if h.err != nil || h.epoch != h.cache.epoch() {
		h.drop() // a failure is told to those who waited, never kept
	}
	h.release()
}

// wait returns h once it is loaded; on error it has released h.
func (h *handle) wait(ctx context.Context) (*handle, error) {
	select {
	case <-h.ready:
	default:
		select {
		case <-h.ready:
		case <-ctx.Done():
			h.release()
			return nil, ctx.Err()
		}
	}
	if h.err != nil {
		h.release()
		return nil, h.err
	}
	return h, nil
}

// discard takes the handle of ekt out of the cache, if there is one, and has
// its object destroyed as soon as no one uses it.
func (c *handleCache) discard(ekt EKT) {
	c.mu.Lock()
	h := c.entries[string(ekt)]
	c.mu.Unlock()
	if h != nil {
		h.drop()
	}
}

// drop takes h out of the cache, so that the next demand loads it anew. Its
// object is destroyed when the last user lets go, which may be now.
func (h *handle) drop() {
	c := h.cache
	c.mu.Lock()
	held := h.place != nil
	if held {
		c.remove(h)
	}
	orphan := held && h.users == 0 && h.err == nil
	c.mu.Unlock()
	if orphan {
		c.destroy(h)
	}
}

func (h *handle) release() {
	c := h.cache
	c.mu.Lock()
	h.users--
	idle := h.users == 0
	orphan := idle && h.place == nil && h.err == nil
	if idle {
		c.signal()
	}
	c.mu.Unlock()
	if orphan {
		c.destroy(h)
	}
}
