package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// absences is which members lately lacked which generation: calls go to the
// others first. Members of a locked domain hold what was made since they came.
type absences struct {
	any   atomic.Bool
	known sync.Map // of absence to time.Time
}

type absence struct {
	bit        uint64
	generation uint32
}

// absenceLasts is how long a member is not asked again: it may get the
// generation.
const absenceLasts = time.Second

func (c *call) generation() uint32 {
	if c.op == callVerify {
		return c.number
	}
	return c.ekt.Generation()
}

func (a *absences) note(s *seat, c *call) {
	if g := c.generation(); g != 0 {
		a.known.Store(absence{s.bit, g}, time.Now())
		a.any.Store(true)
	}
}

// lacking returns the members that lately lacked what c needs.
func (d *spread) lacking(c *call) (bits uint64) {
	if !d.absent.any.Load() {
		return 0
	}
	g := c.generation()
	for _, s := range d.seats {
		if since, found := d.absent.known.Load(absence{s.bit, g}); found {
			if at, ok := since.(time.Time); ok && time.Since(at) < absenceLasts {
				bits |= s.bit
			} else {
				d.absent.known.Delete(absence{s.bit, g})
			}
		}
	}
	return bits
}

// awaitHolder returns a member that has not said that it lacks the generation,
// as soon as one serves. It gives up at once if there is none, or if those that
// there are have been away for Patience.
func (d *spread) awaitHolder(ctx context.Context, c *call, lack uint64, absent error) (*seat, *target, error) {
	for {
		d.mu.Lock()
		changed := d.changed
		d.mu.Unlock()
		if s, t := d.pick(c, lack); s != nil {
			return s, t, nil
		}
		left, away := d.away(lack)
		if away == nil {
			return nil, nil, absent
		}
		gone := fmt.Errorf("%w: %v; those that may hold it do not serve: %w", ErrUnavailable, absent, away) //nolint:errorlint // ErrNoGeneration would say that the EKT is bad
		if left <= 0 {
			return nil, nil, gone
		}
		if err := await(ctx, changed, left); err != nil {
			return nil, nil, errors.Join(err, gone)
		}
	}
}

// away says why the other members do not serve, and how long one of them is
// worth waiting for; nil if there are none.
func (d *spread) away(but uint64) (left time.Duration, why error) {
	for _, s := range d.seats {
		if s.bit&but != 0 {
			continue
		}
		s.mu.Lock()
		reason, stopped, gone := s.err, s.stopped, s.gone
		s.mu.Unlock()
		if reason == nil {
			reason = errors.New("it is being opened")
		}
		why = errors.Join(why, fmt.Errorf("member %s: %w", s.name, reason))
		if !stopped {
			left = max(left, d.cfg.Patience-time.Since(gone))
		}
	}
	return left, why
}
