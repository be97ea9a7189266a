package hsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// spread is a domain's members. A call goes to one of them; if that fails for
// a reason that lies in the member, to another one: every call can be made
// twice, since none leaves anything behind that a second one would double.
type spread struct {
	cfg   DomainConfig
	log   *slog.Logger
	stats *frontMetrics
	seats []*seat

	stop    context.CancelFunc
	tenders sync.WaitGroup
	closed  atomic.Bool

	active atomic.Uint32 // generation that setActive named last; 0 = none
	proofs atomic.Pointer[Proofs]
	marked atomic.Bool // MarkActive was asked for
	absent absences

	mu      sync.Mutex    // guards these
	changed chan struct{} // closed and replaced when a member comes or goes
	dark    time.Time     // since when no member serves; zero = one does
}

// seat is a member's place in the domain, whatever becomes of the member.
type seat struct {
	name string
	cfg  MemberConfig
	d    *spread
	log  *slog.Logger
	seed uint64 // see score
	bit  uint64 // of this seat in the sets that do uses

	target atomic.Pointer[target] // nil = put aside
	opened atomic.Pointer[target] // the last that served; it may be aside or gone
	flying atomic.Int64           // calls on their way
	failed chan struct{}          // holds a token when a call has put it aside
	left   leftBehind

	forgetting sync.Mutex // held while the member is told to forget a key

	// The tender's: whether the PIN was taken once, and why it is not to be tried
	// again although the member serves.
	proven  bool
	refused error

	mu      sync.Mutex // guards these
	err     error      // why it is aside
	gone    time.Time  // since when; zero = it serves
	stopped bool       // for good
	info    Info
}

// attempts is how many members, or tries of one that came back, a call gets.
const attempts = 4

// do implements caller.
func (d *spread) do(ctx context.Context, c *call, r *reply) error {
	switch c.op {
	case callForget:
		for _, s := range d.seats {
			if t := s.opened.Load(); t != nil {
				go s.forget(t, append(EKT(nil), c.ekt...))
			}
		}
		return nil
	case callSetActive:
		return d.setActive(ctx, c)
	case callSetProofs:
		return d.setProofs(ctx, c)
	case callMarkActive:
		d.marked.Store(true) // first: who comes from now on is marked by its tender
		return d.all(ctx, c)
	case callSupports, callSupportsImport:
		return d.all(ctx, c)
	}
	return d.one(ctx, c, r)
}

// forget tells a member that is aside, too: it keeps what it has unwrapped. One
// that is gone has forgotten. One at a time: a host that forgets all that it has
// cached must not take the places of those who call.
func (s *seat) forget(t *target, ekt EKT) {
	s.forgetting.Lock()
	defer s.forgetting.Unlock()
	wait := minPause
	for errors.Is(t.do(background, &call{op: callForget, ekt: ekt}, new(reply)), ErrBusy) {
		wait = pause(background, wait)
	}
}

// all asks every member that serves, and answers the first error. One that
// turns out not to serve does not count, unless there is no other.
func (d *spread) all(ctx context.Context, c *call) error {
	var gone error
	for range attempts {
		if _, _, err := d.wait(ctx, c, gone); err != nil {
			return err
		}
		asked := false
		for _, s := range d.seats {
			t := s.target.Load()
			if t == nil {
				continue
			}
			switch err := s.call(ctx, t, c, new(reply)); {
			case err == nil:
				asked = true
			case errors.Is(err, ErrUnavailable) && ctx.Err() == nil:
				gone = err
			default:
				return err
			}
		}
		if asked {
			return nil
		}
	}
	return gone
}

// setActive tells every member which generation makes new keys, and those that
// come or come back later. One that does not hold it is put aside until it
// does: it would go on with another.
func (d *spread) setActive(ctx context.Context, c *call) error {
	if _, _, err := d.wait(ctx, c, nil); err != nil {
		return err
	}
	before := d.active.Swap(c.number)
	var faults []error
	var refused []func()
	done := false
	for _, s := range d.seats {
		t := s.target.Load()
		if t == nil {
			continue
		}
		if err := s.call(ctx, t, c, new(reply)); err != nil {
			faults = append(faults, err)
			refused = append(refused, func() { s.aside(t, err) })
			continue
		}
		done = true
	}
	if !done {
		d.active.CompareAndSwap(c.number, before)
		return errors.Join(faults...)
	}
	for _, aside := range refused {
		aside()
	}
	return nil
}

// one asks members until one answers.
func (d *spread) one(ctx context.Context, c *call, r *reply) error {
	var lack uint64 // the members that said so
	var last, absent error
	tried := d.lacking(c)
	for try := 1; ; try++ {
		s, t := d.pick(c, tried|lack)
		if s == nil {
			if try > 1 && !errors.Is(last, ErrUnavailable) && !errors.Is(last, ErrNoGeneration) {
				return last // the members that serve have all been asked
			}
			var err error
			if absent != nil {
				s, t, err = d.awaitHolder(ctx, c, lack, absent)
			} else {
				s, t, err = d.wait(ctx, c, last)
			}
			if err != nil {
				return err
			}
		}
		err := s.call(ctx, t, c, r)
		switch {
		case !d.another(ctx, c, r, err):
			return err
		case errors.Is(err, ErrNoGeneration):
			d.absent.note(s, c)
			lack, absent = lack|s.bit, err
			try-- // it is no fault
		case try >= attempts:
			return err
		}
		last = err
		tried |= s.bit
		d.stats.retries.WithLabelValues(s.name).Inc()
		*r = reply{}
	}
}

// another says whether another member may do better.
func (d *spread) another(ctx context.Context, c *call, r *reply, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	switch {
	case err == nil:
		// A member may lack the generation of the MAC key.
		return c.op == callVerify && r.number == 0 && len(d.seats) > 1
	case errors.Is(err, ErrInvalidEKT), errors.Is(err, ErrNoGeneration):
		return len(d.seats) > 1 // it may lack the generation of the domain key
	case errors.Is(err, ErrInvalidCiphertext), errors.Is(err, ErrArgument), errors.Is(err, ErrSignature), errors.Is(err, ErrMaterial):
		return false
	}
	var unsupported *UnsupportedError
	return !errors.As(err, &unsupported)
}

// call makes one try. A member that cannot serve is put aside.
func (s *seat) call(ctx context.Context, t *target, c *call, r *reply) error {
	s.flying.Add(1)
	err := t.do(ctx, c, r)
	s.flying.Add(-1)
	if err != nil && errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
		s.aside(t, err)
	}
	return err
}

// aside takes the member out of service, unless it was replaced meanwhile.
func (s *seat) aside(t *target, err error) {
	if !s.target.CompareAndSwap(t, nil) {
		return
	}
	s.mu.Lock()
	s.err, s.gone = err, time.Now()
	s.mu.Unlock()
	s.d.reckon()
	s.log.Warn("a member of the HSM domain is put aside", "error", err)
	select {
	case s.failed <- struct{}{}:
	default: // the tender is still to see the last one, and will see this
	}
}

// reckon notes since when no member serves, after one came or went, and wakes
// those who wait for one.
func (d *spread) reckon() {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case slices.ContainsFunc(d.seats, func(s *seat) bool { return s.target.Load() != nil }):
		d.dark = time.Time{}
	case d.dark.IsZero():
		d.dark = time.Now()
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// wait returns a member as soon as one serves. It gives up when none has done
// so for Patience, or ever will.
func (d *spread) wait(ctx context.Context, c *call, last error) (*seat, *target, error) {
	for {
		d.mu.Lock()
		changed, dark := d.changed, d.dark
		d.mu.Unlock()
		if s, t := d.pick(c, 0); s != nil {
			return s, t, nil
		}
		left := d.cfg.Patience
		if !dark.IsZero() {
			left -= time.Since(dark)
		}
		if left <= 0 || d.closed.Load() || d.stopped() {
			return nil, nil, d.unavailable(last)
		}
		if err := await(ctx, changed, left); err != nil {
			return nil, nil, errors.Join(err, d.unavailable(last))
		}
	}
}

// await returns when changed is closed, or at the latest after a time. The error
// is ctx's.
func await(ctx context.Context, changed <-chan struct{}, atMost time.Duration) error {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (d *spread) stopped() bool {
	for _, s := range d.seats {
		s.mu.Lock()
		stopped := s.stopped
		s.mu.Unlock()
		if !stopped {
			return false
		}
	}
	return true
}

// unavailable says of every member why it does not serve.
func (d *spread) unavailable(last error) error {
	var reasons []error
	for _, s := range d.seats {
		s.mu.Lock()
		if s.err != nil {
			reasons = append(reasons, fmt.Errorf("member %s: %w", s.name, s.err))
		}
		s.mu.Unlock()
	}
	if len(reasons) == 0 && last != nil {
		reasons = append(reasons, last)
	}
	return errors.Join(append([]error{fmt.Errorf("%w: no member of the domain serves", ErrUnavailable)}, reasons...)...)
}

// slack is by how many calls a key's own member may be busier than twice the
// idlest one before its calls go elsewhere.
const slack = 4

// pick chooses a member that has not been tried. Calls with one key go to one
// member while that is not much busier than others, so that the members' handle
// caches add up (rendezvous hashing with bounded load).
func (d *spread) pick(c *call, tried uint64) (best *seat, on *target) {
	if len(d.seats) == 1 {
		s := d.seats[0]
		if t := s.target.Load(); t != nil && tried == 0 {
			return s, t
		}
		return nil, nil
	}
	idlest := int64(-1)
	for _, s := range d.seats {
		if n := s.flying.Load(); s.bit&tried == 0 && s.target.Load() != nil && (idlest < 0 || n < idlest) {
			idlest = n
		}
	}
	hash := c.hash()
	var top uint64
	for _, s := range d.seats {
		t := s.target.Load()
		if t == nil || s.bit&tried != 0 || s.flying.Load() > 2*idlest+slack {
			continue
		}
		if score := mix(hash ^ s.seed); best == nil || score > top {
			best, on, top = s, t, score
		}
	}
	if best == nil && idlest >= 0 { // they have become busier meanwhile
		for _, s := range d.seats {
			if t := s.target.Load(); t != nil && s.bit&tried == 0 {
				return s, t
			}
		}
	}
	return best, on
}

// turns makes calls without a key go round.
var turns atomic.Uint64

// hash is the same for all calls with one key: the end of an EKT is wrapped
// key, as good as random.
func (c *call) hash() uint64 {
	if len(c.ekt) < 8 {
		return turns.Add(1)
	}
	return binary.BigEndian.Uint64(c.ekt[len(c.ekt)-8:])
}

// mix is the finaliser of SplitMix64.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
