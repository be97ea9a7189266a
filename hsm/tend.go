package hsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// target is a member that was opened.
type target struct {
	caller
	info   Info
	remote *remote // nil in this process
	token  *Token  // nil in another process
	end    func()
	told   atomic.Pointer[Proofs] // the proofs that it has surely; nil = none
}

// health is the token's own; it waits for nothing.
func (t *target) health() Health {
	if t.token != nil {
		return t.token.Health()
	}
	if h := t.remote.health.Load(); h != nil {
		return *h
	}
	return Health{State: StateReady}
}

// errOnce: nothing is known of the PIN but that it was tried.
var errOnce = errors.New("the worker ended while it logged in for the first time, so whether the PIN is right is not known, " +
	"and it is not tried again: look at the library's own log, then restart")

// final says that the member must not be opened again: a further try could
// lock the token.
func final(err error) bool {
	code, ok := codeOf(err)
	return errors.Is(err, ErrPINIncorrect) || errors.Is(err, ErrPINLocked) || errors.Is(err, errOnce) ||
		ok && classify(code) == classPIN
}

// The pause between two tries to open or ask a member grows to maxPause.
const (
	minPause = 20 * time.Millisecond
	maxPause = 250 * time.Millisecond // a member that is back serves within a second, the start of its worker included
)

// pause waits, and returns how long to wait next. Jitter keeps hosts apart.
func pause(ctx context.Context, d time.Duration) time.Duration {
	select {
	case <-time.After(d + rand.N(d/4+1)): //nolint:gosec // G404: jitter is no secret
	case <-ctx.Done():
	}
	return min(2*d, maxPause)
}

// tend keeps the member open until ctx ends, or for as long as its PIN is
// taken. first is told how the first try went.
func (s *seat) tend(ctx context.Context, first chan<- error) {
	told, wait := false, minPause
	for ctx.Err() == nil {
		t, err := s.open(ctx)
		if err == nil {
			if err = s.ask(ctx, t); err != nil {
				t.end()
			}
		}
		// Before OpenDomain is told, whose callers look.
		if err == nil {
			s.serve(t)
			s.mark(ctx, t)
		} else {
			s.shut(err)
		}
		if !told {
			first <- err
			told = true
		}
		if err != nil {
			if final(err) {
				return
			}
			wait = pause(ctx, wait)
			continue
		}
		began := time.Now()
		t, err = s.watch(ctx, t)
		err = errors.Join(err, s.refused)
		s.target.CompareAndSwap(t, nil)
		if ctx.Err() == nil {
			s.shut(err)
		}
		t.end()
		if final(err) {
			return
		}
		if wait = minPause; time.Since(began) < time.Second {
			wait = pause(ctx, wait) // one that ends as soon as it serves must not be a busy loop
		}
	}
}

// shut notes why the member does not serve.
func (s *seat) shut(err error) {
	s.mu.Lock()
	known := s.err != nil && err != nil && s.err.Error() == err.Error()
	s.err, s.stopped = err, final(err)
	if s.gone.IsZero() {
		s.gone = time.Now()
	}
	stopped := s.stopped
	s.mu.Unlock()
	s.d.reckon()
	switch {
	case stopped:
		s.log.Error("a member of the HSM domain is out of service until a restart", "error", err)
	case err != nil && !known:
		s.log.Error("a member of the HSM domain does not serve; it is tried again", "error", err)
	}
}

// serve puts the member into service.
func (s *seat) serve(t *target) {
	s.mu.Lock()
	s.info, s.err, s.gone = t.info, nil, time.Time{}
	s.mu.Unlock()
	s.opened.Store(t)
	s.target.Store(t)
	s.d.reckon()
	s.log.Info("a member of the HSM domain serves", "token", t.info.Label, "serial", t.info.Serial)
}

// mark does on a member that came after MarkActive what that did on the others.
// t serves already, so that one of the two sees the other.
func (s *seat) mark(ctx context.Context, t *target) {
	if !s.d.marked.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.d.cfg.Limits.Call)
	defer cancel()
	if err := t.do(ctx, &call{op: callMarkActive}, new(reply)); err != nil {
		s.log.Warn("the token keeps no mark that this deployment is active (some devices have no data objects): "+
			"trent init on it could not tell if somebody set the database back", "error", err)
	}
}

// heartbeat is how often a member is asked whether it lives.
const heartbeat = time.Second

// watch keeps t in service, or a successor, which it returns with the reason
// when it must be ended.
func (s *seat) watch(ctx context.Context, t *target) (*target, error) {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return t, errClosed
		case <-t.lost():
			return t, t.remote.err
		case <-s.failed:
			if s.target.Load() != nil {
				continue // it was a predecessor
			}
			if err := s.recover(ctx, t); err != nil {
				return t, err
			}
		case <-beat.C:
			if err := s.ask(ctx, t); err != nil && errors.Is(err, ErrUnavailable) {
				s.aside(t, err)
			}
		case <-t.retires():
			if s.refused == nil {
				t = s.succeed(ctx, t)
			}
		}
	}
}

func (t *target) lost() <-chan struct{} {
	if t.remote == nil {
		return nil
	}
	return t.remote.lost
}

func (t *target) retires() <-chan struct{} {
	if t.remote == nil {
		return nil
	}
	return t.remote.retire
}

// ask pings, and tells the member what it may have missed: the proofs, and the
// generation that is active. It waits as long as a call may for its turn, or a
// slow device would not be used for what is still to be done on it.
func (s *seat) ask(ctx context.Context, t *target) error {
	limit := queued * s.d.cfg.Limits.Call
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	if s.refused != nil { // first: a ping may renew the login
		err = t.do(ctx, &call{op: callRefusePIN}, new(reply))
	}
	if err == nil {
		err = t.do(ctx, &call{op: callPing}, new(reply))
	}
	if proofs := s.d.proofs.Load(); err == nil && t.told.Load() != proofs {
		err = s.prove(ctx, t, proofs)
	}
	if active := s.d.active.Load(); err == nil && active != 0 {
		err = t.do(ctx, &call{op: callSetActive, number: active}, new(reply))
		if errors.Is(err, ErrNoGeneration) {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("%w: it did not answer a ping within %s", ErrUnavailable, limit)
	}
	return err
}

// replaceAfter is how long a worker gets to bring its token back by itself.
const replaceAfter = 3 * time.Second

// recover asks a member that was put aside until it answers. One in a worker
// is replaced if that takes long: a fresh process heals more.
func (s *seat) recover(ctx context.Context, t *target) error {
	began, wait := time.Now(), minPause
	for {
		err := s.ask(ctx, t)
		switch {
		case err == nil:
			s.serve(t)
			s.mark(ctx, t)
			return nil
		case final(err), t.remote != nil && (t.remote.gone() || time.Since(began) > replaceAfter):
			return err
		case ctx.Err() != nil:
			return errClosed
		}
		wait = pause(ctx, wait)
	}
}

// succeed replaces a worker by one that is open already, so that no call waits.
// If that fails the old one goes on, and asks again, unless the PIN was refused,
// which may have been changed since the old one logged in.
func (s *seat) succeed(ctx context.Context, old *target) *target {
	t, err := s.open(ctx)
	if err == nil {
		if err = s.ask(ctx, t); err != nil {
			t.end()
		}
	}
	if final(err) {
		s.refused = err
		s.log.Error("the successor to a worker whose time has come cannot log in, and none is tried again; the old one goes on: restart with the right PIN before it ends", "error", err)
		_ = s.ask(ctx, old) // or with the next heartbeat
		return old
	}
	if err != nil {
		s.log.Warn("opening a successor to a worker whose time has come; the old one goes on", "error", err)
		return old
	}
	s.d.stats.retired.WithLabelValues(s.name).Inc()
	s.serve(t)
	s.d.tenders.Go(func() {
		for old.remote.inFlight() > 0 && !old.remote.gone() {
			time.Sleep(pulse)
		}
		old.end()
	})
	return t
}

// open opens the member where it is to run.
func (s *seat) open(ctx context.Context) (*target, error) {
	if s.d.cfg.Isolation == IsolationWorker {
		return s.openWorker(ctx)
	}
	cfg := s.cfg.Config
	cfg.Logger, cfg.Metrics = s.log, nil
	if s.d.cfg.Metrics != nil {
		cfg.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"member": s.name}, s.d.cfg.Metrics)
	}
	token, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	m, err := token.openMember(ctx, s.d.cfg.ID, *s.d.proofs.Load(), s.d.cfg.Enrolling)
	if err != nil {
		return nil, errors.Join(err, token.Close())
	}
	return &target{caller: m, token: token, info: token.Info(), end: func() {
		if err := token.Close(); err != nil {
			s.log.Error("closing the token", "error", err)
		}
	}}, nil
}

// callsPerWorker is how many may be on their way, with all its lanes' queues.
func (cfg Config) callsPerWorker() int { return 4 * cfg.withDefaults().Queue }

func (s *seat) openWorker(ctx context.Context) (*target, error) {
	if err := s.left.full(); err != nil {
		return nil, err
	}
	process, err := startWorker(s.cfg.Environment, s.log)
	if err != nil {
		return nil, err
	}
	s.d.stats.starts.WithLabelValues(s.name).Inc()
	w := newRemote(process, s.d.cfg.Limits, s.cfg.callsPerWorker(), s.d.stats.hangs.WithLabelValues(s.name))
	t := &target{caller: w, remote: w, end: func() {
		if process.end() {
			s.left.add(process)
		}
		<-w.lost
	}}
	if err := s.unlock(ctx, t); err != nil {
		t.end()
		return nil, err
	}
	s.proven = true
	return t, nil
}

// unlock has the worker open its token.
func (s *seat) unlock(ctx context.Context, t *target) error {
	settings := workerSettings{
		Domain: s.d.cfg.ID, Token: s.cfg.Config, Limits: s.d.cfg.Limits,
		Proofs: *s.d.proofs.Load(), Enrolling: s.d.cfg.Enrolling,
		Unwraps: s.d.cfg.RetireUnwraps, Level: lowest(s.log),
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return fmt.Errorf("encoding settings: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.d.cfg.Limits.Open)
	defer cancel()
	pin := []byte(s.cfg.PIN.reveal())
	defer clear(pin)
	var r reply
	err = t.do(ctx, &call{op: callOpen, in: text, extra: pin}, &r)
	if err == nil {
		return r.read(&t.info)
	}
	if ctx.Err() != nil {
		t.remote.lose(errKilled)
	}
	if t.remote.gone() && t.remote.loggedIn.Load() && !s.proven {
		return fmt.Errorf("%w: %w", errOnce, err)
	}
	return err
}

// lowest is the level from which on a logger says anything.
func lowest(log *slog.Logger) slog.Level {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(background, level) {
			return level
		}
	}
	return slog.LevelError
}
