package hsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// Token is a logged-in token. It is safe for concurrent use.
type Token struct {
	cfg    Config
	log    *slog.Logger
	module *module
	slot   uint
	info   Info
	conn   *crypto11.Context
	stats  *metrics

	// keeper owns the session that every session object belongs to, so that
	// the sessions of the others can be thrown away. All are set by Open.
	keeper, lane *lane

	// asymmetric serves private keys, and maker makes and imports keys, so
	// that neither holds up symmetric calls nor the other.
	asymmetric, maker *lane
	// sealing serves the MAC key: every call waits for the MAC of its audit
	// batch, which must not wait behind the calls of the next one.
	sealing *lane

	// epoch is the generation of everything that dies with the keeper's
	// session or login: object handles carry it and are refused in another
	// (invariant I4). Only the keeper's worker changes it, holding using.
	epoch atomic.Uint64

	// using is read-locked from the check of a handle's epoch to the end of the
	// calls that use the handle.
	using sync.RWMutex

	// iv is how IVs are made; see ivs. The keeper's worker sets it.
	iv atomic.Pointer[ivWay]

	// wantsLength: C_UnwrapKey wants CKA_VALUE_LEN; see unwrapLength.
	wantsLength atomic.Bool

	// pinRefused is set when a login behind our back failed for its PIN: it
	// is never tried again.
	pinRefused atomic.Bool

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
	t, err := connect(cfg.withDefaults())
	if err != nil {
		return nil, err
	}
	if err := t.openLanes(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func connect(cfg Config) (*Token, error) {
	modules.mu.Lock()
	defer modules.mu.Unlock()
	m, err := load(cfg.Module)
	if err != nil {
		return nil, err
	}
	var chosen slot
	var unique bool
	find := func() error {
		slots, err := m.slots()
		if err != nil {
			return err
		}
		if chosen, err = choose(slots, cfg); err != nil {
			return err
		}
		unique = serialUnique(slots, chosen)
		return nil
	}
	if err := m.look(find); err != nil {
		return nil, err
	}
	if err := loginAllowed(chosen, cfg.PIN); err != nil {
		return nil, err
	}
	conn, err := m.connect(chosen, cfg, unique)
	if err != nil {
		return nil, err
	}
	t := &Token{cfg: cfg, log: cfg.Logger, module: m, conn: conn}
	// Slot numbers may have moved with the new initialisation.
	if err := find(); err != nil {
		m.users--
		return nil, errors.Join(err, conn.Close())
	}
	t.slot = chosen.id
	t.info = m.describe(chosen)
	t.stats = newMetrics(cfg.Metrics)
	t.epoch.Store(m.epoch << 32)
	return t, nil
}

func serialUnique(slots []slot, chosen slot) bool {
	n := 0
	for _, s := range slots {
		if s.token.SerialNumber == chosen.token.SerialNumber {
			n++
		}
	}
	return n == 1 && chosen.token.SerialNumber != ""
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

func (t *Token) openLanes() error {
	keeper, err := t.openSession()
	if err != nil {
		return err
	}
	keeper.keeper = true
	t.keeper = startLane(t.cfg.Queue, quick, t.stats, keeper)
	if t.lane, err = t.openLane(quick, t.cfg.Sessions); err != nil {
		return err
	}
	if t.sealing, err = t.openLane(slow, 1); err != nil {
		return err
	}
	if t.asymmetric, err = t.openLane(slow, t.cfg.AsymmetricSessions); err != nil {
		return err
	}
	t.maker, err = t.openLane(slow, t.cfg.AsymmetricSessions)
	return err
}

func (t *Token) openLane(batch, size int) (*lane, error) {
	var sessions []*session
	for range size {
		s, err := t.openSession()
		if err != nil {
			for _, opened := range sessions {
				opened.close()
			}
			return nil, err
		}
		sessions = append(sessions, s)
	}
	return startLane(t.cfg.Queue, batch, t.stats, sessions...), nil
}

// Close ends all operations, then the sessions and with them every session
// object, and logs out.
func (t *Token) Close() error {
	var err error
	t.closing.Do(func() {
		for _, l := range []*lane{t.sealing, t.maker, t.asymmetric, t.lane, t.keeper} {
			if l != nil {
				l.close()
			}
		}
		t.stats.unregister()
		if closeErr := t.module.release(t.conn); closeErr != nil {
			err = fmt.Errorf("closing token %q: %w", t.info.Label, closeErr)
		}
	})
	return err
}

// Info describes the token.
func (t *Token) Info() Info { return t.info }

// Ping asks the token for random bytes through the same sessions and queue
// that serve keys, and checks that the login still holds.
func (t *Token) Ping(ctx context.Context) error {
	if err := t.checkLogin(ctx); err != nil {
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

// onKeeperRetrying is onKeeper, begun again once if an epoch ended meanwhile.
func (t *Token) onKeeperRetrying(ctx context.Context, f func(*session) error) error {
	err := t.onKeeper(ctx, f)
	if errors.Is(err, errStale) {
		err = t.onKeeper(ctx, f)
	}
	return settled(err)
}

// settled turns what only this package understands into ErrUnavailable.
func settled(err error) error {
	if errors.Is(err, errStale) {
		return fmt.Errorf("%w: its login was lost twice during one call", ErrUnavailable)
	}
	return err
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

// checkLogin makes the keeper look at its session and renew what is lost.
func (t *Token) checkLogin(ctx context.Context) error {
	return t.onKeeper(ctx, func(s *session) error { return s.ensure() })
}
