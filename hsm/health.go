package hsm

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// State is what a token can be expected to do.
type State string

const (
	// StateReady: calls are served.
	StateReady State = "ready"
	// StateRecovering: calls wait, for up to Config.RecoveryWait.
	StateRecovering State = "recovering"
	// StateHung: a call into the vendor's library does not come back. Nothing in
	// this process can end it; where the library runs in a worker process, that
	// is replaced.
	StateHung State = "hung"
	// StateStopped: the token refused the PIN, or the next wrong one would lock
	// it. It is not tried again before the process is started anew.
	StateStopped State = "stopped: PIN"
	// StateClosed: by Close.
	StateClosed State = "closed"
)

var states = []State{StateReady, StateRecovering, StateHung, StateStopped, StateClosed}

// Health is a token's state.
type Health struct {
	State State `json:"state"`
	// Reason says for operators why the state is not StateReady, and the next
	// step if there is one for them.
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// Epoch counts logins: no object handle outlives its epoch.
	Epoch uint64 `json:"epoch"`
}

// Health says what can be expected of the token now. It never waits for the
// device.
func (t *Token) Health() Health {
	h := t.gate.now()
	if since, hung := t.hanging(); hung && h.State != StateStopped && h.State != StateClosed {
		h.State, h.Since = StateHung, since
		h.Reason = fmt.Sprintf("a call into %s has not come back for %s; restart this process, or run the module in a worker process, which is replaced by itself",
			t.module.path, time.Since(since).Round(time.Second))
	}
	h.Epoch = t.epoch.Load()
	return h
}

// hanging looks for a session whose call takes too long.
func (t *Token) hanging() (since time.Time, hung bool) {
	for _, s := range t.sessions {
		start := s.since.Load()
		if start == 0 {
			continue
		}
		if began := time.Unix(0, start); time.Since(began) > t.cfg.HungAfter && (!hung || began.Before(since)) {
			since, hung = began, true
		}
	}
	return since, hung
}

// gate is where calls wait while the token is recovered. The zero gate is
// open.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // closed when the gate opens; nil = it is open
	health Health
	tell   func(Health) // is told of every change, under mu; nil = no one
}

// follow has tell told how things are, and of every change. It must not block.
func (g *gate) follow(tell func(Health)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tell = tell
	tell(g.health)
}

// become is called with mu held.
func (g *gate) become(h Health) {
	g.health = h
	if g.tell != nil {
		g.tell(h)
	}
}

func (g *gate) now() Health {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.health
}

// shut has calls wait, unless they are to fail at once. why is shown to
// operators.
func (g *gate) shut(why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.health.State != StateReady {
		if g.health.State == StateRecovering {
			g.health.Reason = why.Error()
		}
		return
	}
	g.opened = make(chan struct{})
	g.become(Health{State: StateRecovering, Reason: why.Error(), Since: time.Now()})
}

// set ends the waiting: with StateReady calls go on, with others they fail.
func (g *gate) set(state State, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.health.State == StateClosed {
		return
	}
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
	g.become(Health{State: state, Reason: why, Since: time.Now()})
}

// wait returns when calls may go on, or an error that says why they may not.
func (g *gate) wait(ctx context.Context, until time.Time) error {
	g.mu.Lock()
	opened, h := g.opened, g.health
	g.mu.Unlock()
	if opened == nil {
		return h.err()
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-opened:
		return g.now().err()
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("%w: it is being recovered since %s (%s)", ErrUnavailable, h.Since.Format(time.RFC3339), h.Reason)
	}
}

// err is nil where calls are worth trying.
func (h Health) err() error {
	switch h.State {
	case StateClosed:
		return errClosed
	case StateStopped:
		// Whoever keeps the token open must know that the PIN is the reason.
		return fmt.Errorf("%w: %w: %s", ErrUnavailable, ErrPINIncorrect, h.Reason)
	}
	return nil
}
