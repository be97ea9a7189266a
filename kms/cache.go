package kms

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

const (
	// cacheEntries is how many rows of each kind are held. A key's entry is
	// about 2 KB.
	cacheEntries = 10_000

	// cacheAge is when a row is read again although nothing was noted to have
	// changed: the change log is a hint of the database, not sealed. Rows of keys
	// stay for longer, unused: with a key's entry goes the knowledge of which
	// unwrapped copies are to be destroyed when it is deleted. Those of backing keys
	// are good for as long as their key's row names their version.
	cacheAge = time.Minute
)

// cache holds verified rows, so that a warm call reads nothing from the
// database. What it holds is never trusted for longer than one call: the
// audit commit that every call waits for returns the database's change
// sequence, and a call whose head has moved is authorised again on fresh rows
// before it is answered (design: I5). Sequences are of the table
// change_sequence.
type cache struct {
	db     *store.DB
	domain *hsm.Domain

	// head is the change sequence that the entries reflect.
	head atomic.Int64

	// mu makes "insert only if head has not moved since the row was read"
	// and "drop what changed, then move head" exclude each other.
	mu sync.RWMutex

	keys       *otter.Cache[keyRef, *key]
	aliases    *otter.Cache[keyRef, store.Alias]
	backing    *otter.Cache[backingRef, store.BackingKey]
	accessKeys *otter.Cache[string, *credential]

	flight  singleflight.Group
	reloads prometheus.Counter

	// regenerate is called by follow when the generations of the domain keys
	// may have changed, until it succeeds.
	regenerate func(context.Context) error
	outdated   atomic.Bool

	// newAccessKeys is called by follow when it begins and when access keys may
	// have changed, until it succeeds.
	newAccessKeys func(context.Context) error
	unnoticed     atomic.Bool
}

// key is a verified key row with its current backing key, and the set of all
// that it has.
type key struct {
	store.Key
	arn         string
	backing     store.BackingKey
	backingKeys store.BackingKeySet // read-only
	read        time.Time           // for the cache
	outdated    bool                // likewise: not to be used
}

type backingRef struct {
	account, region string
	id              [16]byte
}

func newCache(db *store.DB, domain *hsm.Domain, metrics prometheus.Registerer) (*cache, error) {
	c := &cache{
		db:         db,
		domain:     domain,
		aliases:    newRows[keyRef, store.Alias](),
		backing:    otter.Must(&otter.Options[backingRef, store.BackingKey]{MaximumSize: cacheEntries}),
		accessKeys: newRows[string, *credential](),
		reloads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trent_kms_cache_invalidations_total",
			Help: "Times the change sequence had moved and cached rows were dropped.",
		}),
	}
	c.keys = otter.Must(&otter.Options[keyRef, *key]{MaximumSize: cacheEntries, OnDeletion: func(e otter.DeletionEvent[keyRef, *key]) {
		if e.Cause == otter.CauseOverflow {
			c.forget(e.Key, e.Value)
		}
	}})
	if metrics != nil {
		if err := metrics.Register(c.reloads); err != nil {
			return nil, fmt.Errorf("registering cache metrics: %w", err)
		}
	}
	return c, nil
}

func newRows[K comparable, V any]() *otter.Cache[K, V] {
	return otter.Must(&otter.Options[K, V]{
		MaximumSize:      cacheEntries,
		ExpiryCalculator: otter.ExpiryWriting[K, V](cacheAge),
	})
}

// advance makes the cache reflect at least the change sequence seq: it drops
// the entries that have changed since head.
func (c *cache) advance(ctx context.Context, seq int64) error {
	if c.head.Load() >= seq {
		return nil
	}
	if err := c.catchUp(ctx); err != nil {
		return err
	}
	if c.head.Load() < seq {
		// The flight that was joined had begun before seq was committed.
		return c.catchUp(ctx)
	}
	return nil
}

// catchUp drops what has changed since head, once for all that ask for it at
// the same time.
func (c *cache) catchUp(ctx context.Context) error {
	done := c.flight.DoChan("advance", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return nil, c.dropChanged(ctx)
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *cache) dropChanged(ctx context.Context) error {
	changes, head, complete, err := c.db.ChangesSince(ctx, c.head.Load())
	if err != nil {
		return fmt.Errorf("reading what changed: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reloads.Inc()
	if complete {
		for _, change := range changes {
			c.drop(change)
		}
	} else {
		for ref := range c.keys.Keys() {
			c.dropKey(ref)
		}
		c.aliases.InvalidateAll()
		c.backing.InvalidateAll()
		c.accessKeys.InvalidateAll()
		c.outdated.Store(true)
		c.unnoticed.Store(true)
	}
	c.head.Store(head) // lower than before when the database was restored
	return nil
}

// drop forgets what a change named. A changed principal drops every access
// key: there are few, and the entries carry their principal.
func (c *cache) drop(change store.Changed) {
	switch change.Kind {
	case store.KindKey:
		c.dropKey(keyRef{account: change.Account, region: change.Region, id: change.ID})
	case store.KindGrants:
		c.outdate(keyRef{account: change.Account, region: change.Region, id: change.ID})
	case store.KindAlias:
		c.aliases.Invalidate(keyRef{account: change.Account, region: change.Region, alias: change.ID})
	case store.KindAccessKey:
		c.accessKeys.Invalidate(change.ID)
		c.unnoticed.Store(true)
	case store.KindGeneration:
		c.outdated.Store(true)
	default:
		c.accessKeys.InvalidateAll()
		c.unnoticed.Store(true)
	}
}

// outdate has a key's row loaded again, but keeps the unwrapped copies of its
// backing keys: only its grants have changed. The entry stays, so that dropKey
// still knows the copies.
func (c *cache) outdate(ref keyRef) {
	if k, held := c.keys.GetIfPresent(ref); held {
		old := *k
		old.outdated = true
		c.keys.Set(ref, &old)
	}
}

// dropKey forgets a key with its backing keys, and has the HSM destroy their
// unwrapped copies: the key may have been deleted.
func (c *cache) dropKey(ref keyRef) {
	if k, held := c.keys.Invalidate(ref); held {
		c.forget(ref, k)
	}
}

func (c *cache) forget(ref keyRef, k *key) {
	c.domain.Forget(k.backing.EKT)
	for id := range k.backingKeys {
		if b, held := c.backing.Invalidate(backingRef{ref.account, ref.region, id}); held {
			c.domain.Forget(b.EKT)
		}
	}
}

// insert runs put unless the head has moved since before a row was read: then
// the row may already be out of date, and the next call reads it again.
func (c *cache) insert(before int64, put func()) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.head.Load() == before {
		put()
	}
}

// key returns the verified key row that ref names by key id.
func (c *cache) key(ctx context.Context, s *Service, ref keyRef) (*key, error) {
	if k, ok := c.keys.GetIfPresent(ref); ok && !k.outdated && time.Since(k.read) < cacheAge {
		return k, nil
	}
	before := c.head.Load()
	k, err := c.load(ctx, s, ref)
	if err != nil {
		return nil, err
	}
	c.insert(before, func() { c.keys.Set(ref, k) })
	return k, nil
}

// load is key past the cache.
func (c *cache) load(ctx context.Context, s *Service, ref keyRef) (*key, error) {
	read := time.Now()
	row, set, err := c.db.KeyWithSet(ctx, ref.account, ref.region, ref.id)
	if err != nil {
		return nil, err
	}
	k := &key{Key: row, arn: s.keyARN(ref.account, ref.region, ref.id), backingKeys: set, read: read}
	if len(set) == 0 {
		return k, nil // no material has been imported yet
	}
	if k.backing, err = c.member(ctx, k, row.CurrentBackingKey); err != nil {
		return nil, err
	}
	return k, nil
}

// errNotMember says that a key has no backing key of an id.
var errNotMember = errors.New("not a backing key of this key")

// member returns the verified backing key of k that id names, in the version
// that k's row binds, or errNotMember. For an id that is not k's it does not
// ask the database.
func (c *cache) member(ctx context.Context, k *key, id [16]byte) (store.BackingKey, error) {
	version, found := k.backingKeys[id]
	if !found {
		return store.BackingKey{}, errNotMember
	}
	ref := backingRef{k.Account, k.Region, id}
	b, err := c.backingKey(ctx, ref)
	// Held since before its key's row was dropped, or since before a failover that
	// lost a change.
	if err == nil && b.Version != version {
		c.backing.Invalidate(ref)
		b, err = c.backingKey(ctx, ref)
	}
	if err != nil {
		return store.BackingKey{}, fmt.Errorf("loading backing key %x of %s: %w", id, k.arn, orphan(err))
	}
	if b.KeyID == k.ID && b.Version > version {
		// Material was deleted or imported after k was loaded.
		return store.BackingKey{}, fmt.Errorf("backing key %x of %s: %w", id, k.arn, store.ErrConflict)
	}
	if b.KeyID != k.ID || b.Version != version {
		return store.BackingKey{}, fmt.Errorf("backing key %x is version %d of key %s; key %s has version %d of it", id, b.Version, b.KeyID, k.ID, version)
	}
	return b, nil
}

// orphan keeps "our own row is missing" apart from "the caller named nothing".
func orphan(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return errors.New("the row is missing from the database")
	}
	return err
}

// backingKey returns a verified backing key. Entries go with their key's. Use
// member, which knows whose it must be, and in which version.
func (c *cache) backingKey(ctx context.Context, ref backingRef) (store.BackingKey, error) {
	if b, ok := c.backing.GetIfPresent(ref); ok {
		return b, nil
	}
	before := c.head.Load()
	b, err := c.db.BackingKey(ctx, ref.account, ref.region, ref.id)
	if err != nil {
		return store.BackingKey{}, err
	}
	c.insert(before, func() { c.backing.Set(ref, b) })
	return b, nil
}

// alias returns the verified alias row that ref names.
func (c *cache) alias(ctx context.Context, ref keyRef) (store.Alias, error) {
	if a, ok := c.aliases.GetIfPresent(ref); ok {
		return a, nil
	}
	before := c.head.Load()
	a, err := c.db.Alias(ctx, ref.account, ref.region, ref.alias)
	if err != nil {
		return store.Alias{}, err
	}
	c.insert(before, func() { c.aliases.Set(ref, a) })
	return a, nil
}

// follow keeps the cache near the head when no call does, so that what is
// refused without an audit commit (a failed authentication) is not refused on
// old rows for longer than interval.
func (c *cache) follow(ctx context.Context, interval time.Duration, report func(error)) {
	c.unnoticed.Store(true)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		seq, err := c.db.ChangeSequence(ctx)
		if err == nil && seq != c.head.Load() {
			err = c.catchUp(ctx)
		}
		err = errors.Join(err, once(ctx, &c.outdated, c.regenerate), once(ctx, &c.unnoticed, c.newAccessKeys))
		if err != nil && ctx.Err() == nil {
			report(err)
		}
	}
}

// once does what is due, which stays due until it succeeds.
func once(ctx context.Context, due *atomic.Bool, do func(context.Context) error) error {
	if !due.Swap(false) {
		return nil
	}
	err := do(ctx)
	if err != nil {
		due.Store(true)
	}
	return err
}
