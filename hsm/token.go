package hsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// Token is a logged-in token. It is safe for concurrent use.
type Token struct {
	cfg    Config
	log    *slog.Logger
	module *module
	info   Info
	stats  *metrics

	// keeper owns the session that every cached object belongs to, so that the
	// sessions of the others can be thrown away. All are set by Open.
	keeper, lane *lane

	// asymmetric serves private keys, and maker makes and imports keys, so
	// that neither holds up symmetric calls nor the other.
	asymmetric, maker *lane
	// sealing serves the MAC key: every call waits for the MAC of its audit
	// batch, which must not wait behind the calls of the next one.
	sealing *lane

	sessions      []*session // of all lanes
	keeperSession *session

	// using is read-locked by every call of the library, from the check of its
	// handle's epoch to its end. Only recovery write-locks it, and holds it
	// until the token is back; so readers try, and wait at the gate.
	using sync.RWMutex
	slot  uint              // guarded by using
	conn  *crypto11.Context // guarded by using; nil = not connected

	// epoch is the generation of everything that dies with the keeper's
	// session or login: object handles carry it and are refused in another
	// (invariant I4). It changes with using write-locked.
	epoch    atomic.Uint64
	gate     gate
	orphans  orphans
	revivers revivers

	// module.mu guards these.
	down      bool // recovery holds using
	downSince time.Time
	stopped   bool // the PIN is not to be tried again

	// iv is how IVs are made; see ivs. The keeper's worker sets it.
	iv atomic.Pointer[ivWay]

	// wraps is what mechanisms the device wraps by; see ways.
	wraps atomic.Pointer[wrapWays]

	// wantsLength: C_UnwrapKey wants CKA_VALUE_LEN; see unwrapLength.
	wantsLength atomic.Bool

	closed  atomic.Bool
	closing sync.Once
}

// Open finds the token that cfg names, logs in and opens its sessions. Its
// errors wrap ErrModule, ErrTokenNotFound, ErrTokenAmbiguous,
// ErrTokenUninitialised, ErrPINIncorrect or ErrPINLocked and name the next
// step. A wrong PIN is tried exactly once.
func Open(ctx context.Context, cfg Config) (*Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m, err := load(cfg.Module)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	chosen, conn, err := m.dial(cfg)
	if err != nil {
		return nil, err
	}
	t := &Token{cfg: cfg, log: cfg.Logger, module: m, slot: chosen.id, conn: conn, info: m.describe(chosen)}
	t.makeLanes()
	t.stats = newMetrics(cfg.Metrics, t)
	for _, l := range t.lanes() {
		l.stats = t.stats
		l.start()
	}
	if err := t.reopen(); err != nil {
		t.closeLanes()
		t.closeSessions()
		t.stats.unregister()
		t.disconnect()
		return nil, err
	}
	t.gate.set(StateReady, "")
	m.tokens[t] = struct{}{}
	return t, nil
}

// describe needs an initialised library.
func (m *module) describe(s slot) Info {
	info := Info{
		Label:        s.token.Label,
		Serial:       s.token.SerialNumber,
		Manufacturer: s.token.ManufacturerID,
		Model:        s.token.Model,
		Firmware:     version(s.token.FirmwareVersion),
	}
	if library, err := m.p11.GetInfo(); err == nil {
		info.Library = library.LibraryDescription
		info.LibraryVersion = version(library.LibraryVersion)
		info.CryptokiVersion = version(library.CryptokiVersion)
	}
	return info
}

func version(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// makeLanes makes lanes whose sessions are still to be opened.
func (t *Token) makeLanes() {
	t.keeper = t.makeLane("keeper", quick, 1)
	t.keeperSession = t.sessions[0]
	t.keeperSession.keeper = true
	t.lane = t.makeLane("symmetric", quick, t.cfg.Sessions)
	t.lane.post = t.cfg.post
	t.sealing = t.makeLane("sealing", slow, 1)
	t.asymmetric = t.makeLane("asymmetric", slow, t.cfg.AsymmetricSessions)
	t.maker = t.makeLane("maker", slow, t.cfg.AsymmetricSessions)
}

func (t *Token) makeLane(name string, batch, size int) *lane {
	l := newLane(name, t.cfg.Queue, batch)
	for range size {
		s := &session{t: t}
		t.sessions = append(t.sessions, s)
		l.sessions = append(l.sessions, s)
	}
	return l
}

// lanes are in the order in which they are closed: the others need the keeper.
func (t *Token) lanes() []*lane {
	return []*lane{t.sealing, t.maker, t.asymmetric, t.lane, t.keeper}
}

func (t *Token) closeLanes() {
	for _, l := range t.lanes() {
		l.close()
	}
}

// Close ends all operations, then the sessions and with them every session
// object, and logs out. It does not wait for ever for a library that hangs.
func (t *Token) Close() error {
	var err error
	t.closing.Do(func() {
		t.closed.Store(true)
		t.gate.set(StateClosed, "")
		done := make(chan error, 1)
		go func() { done <- t.shutDown() }()
		select {
		case err = <-done:
		case <-time.After(t.cfg.HungAfter):
			err = fmt.Errorf("a call into %s does not come back: its sessions end with this process", t.module.path)
		}
		if err != nil {
			err = fmt.Errorf("closing token %q: %w", t.info.Label, err)
		}
	})
	return err
}

func (t *Token) shutDown() error {
	t.closeLanes()
	t.module.mu.Lock()
	defer t.module.mu.Unlock()
	delete(t.module.tokens, t)
	if t.down {
		t.down = false
		t.using.Unlock()
	}
	t.stats.unregister()
	if t.conn == nil {
		return nil
	}
	t.closeSessions()
	t.module.users--
	return t.conn.Close()
}

// Info describes the token.
func (t *Token) Info() Info { return t.info }

// Ping asks the token for random bytes through the same sessions and queue
// that serve keys, and checks that the login still holds. It does not wait
// behind a call that hangs.
func (t *Token) Ping(ctx context.Context) error {
	if h := t.Health(); h.State == StateHung {
		return fmt.Errorf("%w: %s", ErrUnavailable, h.Reason)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.cfg.HungAfter, errHung)
	defer cancel()
	err := t.ping(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errHung) {
		return errHung
	}
	return err
}

var errHung = fmt.Errorf("%w: a call does not come back", ErrUnavailable)

func (t *Token) ping(ctx context.Context) error {
	if err := t.onKeeperRetrying(ctx, (*session).check); err != nil {
		return err
	}
	return t.random(ctx, make([]byte, 16))
}

// onKeeper runs f on the keeper's session. If ctx ends first f still runs to
// its end and what it returns is dropped, so f must not touch the caller's
// buffers and must clean up after itself.
func (t *Token) onKeeper(ctx context.Context, f func(*session) error) error {
	r := newRequest(opFunc, t.epoch.Load())
	r.fn = f
	_, err := t.keeper.do(ctx, r)
	return err
}

// onKeeperRetrying is onKeeper, begun again if the token was lost meanwhile.
func (t *Token) onKeeperRetrying(ctx context.Context, f func(*session) error) error {
	return t.keeper.runFresh(ctx, t, f)
}

// onKeeperWaiting is onKeeper for the handle cache, whose own bound keeps the
// number of waiters small, and whose work outlives any caller.
func (t *Token) onKeeperWaiting(f func(*session) error) error {
	r := newRequest(opFunc, t.epoch.Load())
	r.fn = f
	defer r.end()
	if err := t.keeper.sendWaiting(r); err != nil {
		return err
	}
	<-r.done
	return r.err
}

// withConnection lends crypto11's connection, which makes token objects. Its
// sessions are not renewed by itself: where they are lost, the module is
// restarted. f is not run again.
func (t *Token) withConnection(f func(*crypto11.Context) error) error {
	if !t.using.TryRLock() {
		if err := t.gate.wait(background, time.Now().Add(t.cfg.RecoveryWait)); err != nil {
			return err
		}
		if !t.using.TryRLock() {
			return settled(errDown)
		}
	}
	defer t.using.RUnlock()
	err := f(t.conn)
	if code, ok := codeOf(err); ok {
		switch classify(code) {
		case classDevice, classToken, classSession, classLogin:
			t.ask(t.epoch.Load(), remedyRestart, deviceError("making a token object", err))
		}
	}
	return err
}

// revivers are what must succeed on the keeper's session before a token counts
// as recovered.
type revivers struct {
	mu   sync.Mutex
	each []func(*session) error
}

func (r *revivers) add(revive func(*session) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.each = append(r.each, revive)
}

func (r *revivers) list() []func(*session) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.each[:len(r.each):len(r.each)]
}
