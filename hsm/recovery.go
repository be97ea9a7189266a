package hsm

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/miekg/pkcs11"
)

// remedy is what is done against a loss that a new session does not cure.
type remedy int

const (
	// remedyRenew: new sessions, and a login if it is lost.
	remedyRenew remedy = iota + 1
	// remedyRestart: C_Finalize and C_Initialize, for all tokens of the library.
	remedyRestart
)

func (r remedy) String() string {
	return [...]string{"", "login", "module"}[r]
}

const (
	// firstPause and longestPause bound the jittered waits between attempts:
	// the longest decides how soon a device that is back is noticed.
	firstPause   = 5 * time.Millisecond
	longestPause = 400 * time.Millisecond
	// calm is how long after a recovery the next one counts as its repetition,
	// and has to wait. Otherwise a device that answers some call with a loss,
	// whenever asked, would be restarted all the time.
	calm = 2 * time.Second
	// lightAttempts: as long as another token of the library serves, the lost
	// one is looked for without restarting the library, but for every so many
	// attempts: some libraries see tokens only as they start.
	lightAttempts = 20
)

// plea is a token's call for help.
type plea struct {
	epoch  uint64
	remedy remedy
	cause  error
}

// ask has the token recovered, unless that has happened since epoch. Calls
// wait from now on, but when the last recovery was a moment ago: then they are
// served, as far as the device serves them, until the next may begin.
func (t *Token) ask(epoch uint64, r remedy, cause error) {
	m := t.module
	m.asking.Lock()
	defer m.asking.Unlock()
	if t.closed.Load() || t.epoch.Load() != epoch || t.gate.now().State == StateStopped {
		return
	}
	if p, ok := m.pleas[t]; ok && p.epoch == epoch && p.remedy >= r {
		return
	}
	if m.pleas == nil {
		m.pleas = map[*Token]plea{}
	}
	m.pleas[t] = plea{epoch, r, cause}
	if !time.Now().Before(m.rests) {
		t.gate.shut(cause)
	}
	if !m.mending {
		m.mending = true
		go m.mend()
	}
}

// mend recovers tokens until none is down and none asks. There is one for a
// library, and only while there is something to do.
func (m *module) mend() {
	m.asking.Lock()
	rest := time.Until(m.rests)
	m.asking.Unlock()
	time.Sleep(rest)
	pause := firstPause
	for attempt := 0; ; attempt++ {
		m.mu.Lock()
		m.moved.Store(time.Now().UnixNano())
		down := m.attempt(m.takePleas(), attempt)
		m.moved.Store(0)
		m.mu.Unlock()
		if !down && m.finished() {
			return
		}
		time.Sleep(jittered(pause))
		pause = min(2*pause, longestPause)
	}
}

// getsOn notes that an attempt to recover, if one runs, is not stuck in the
// library. Those who look at keys call it, too, also as an attempt ends.
func (m *module) getsOn() {
	if moved := m.moved.Load(); moved != 0 {
		m.moved.CompareAndSwap(moved, time.Now().UnixNano())
	}
}

// stuck is for how long an attempt to recover has not got on.
func (m *module) stuck(now time.Time) time.Duration {
	moved := m.moved.Load()
	if moved == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, moved))
}

// takePleas leaves out what was heard already.
func (m *module) takePleas() map[*Token]plea {
	m.asking.Lock()
	defer m.asking.Unlock()
	pleas := m.pleas
	m.pleas = nil
	maps.DeleteFunc(pleas, func(t *Token, p plea) bool {
		return t.closed.Load() || t.epoch.Load() != p.epoch
	})
	for t, p := range pleas {
		t.gate.shut(p.cause)
	}
	return pleas
}

// finished ends the mender if nobody has asked meanwhile, and sets when the
// next may begin.
func (m *module) finished() bool {
	m.asking.Lock()
	defer m.asking.Unlock()
	if len(m.pleas) > 0 {
		return false
	}
	now := time.Now()
	if now.Sub(m.rests) > calm {
		m.strikes = 0
	}
	m.rests = now.Add(jittered(min(firstPause<<min(m.strikes, 10), longestPause)))
	m.strikes++
	m.mending = false
	return true
}

// attempt does what is asked for, and brings back what is down. It says
// whether something still is. The caller holds m.mu.
func (m *module) attempt(pleas map[*Token]plea, attempt int) (down bool) {
	restart := false
	for t, p := range pleas {
		t.stats.asked(p.remedy)
		t.log.Warn("recovering the HSM", "token", t.info.Label, "remedy", p.remedy.String(), "cause", p.cause)
		t.takeDown()
		restart = restart || p.remedy == remedyRestart
	}
	if !restart {
		restart = m.renew()
	}
	for t := range m.tokens {
		restart = restart || t.down && t.conn == nil && !t.stopped && (m.users == 0 || attempt%lightAttempts == lightAttempts-1)
	}
	if restart {
		m.finalise()
	}
	for t := range m.tokens {
		if !t.down || t.stopped {
			continue
		}
		if err := m.reconnect(t); err != nil {
			t.failed(err)
			down = down || !t.stopped
			continue
		}
		t.bringUp()
	}
	return down
}

// renew opens new sessions for tokens that are down but connected. It says
// whether that did not help.
func (m *module) renew() (worse bool) {
	for t := range m.tokens {
		if !t.down || t.conn == nil || t.stopped {
			continue
		}
		t.closeSessions()
		if err := t.reopen(); err != nil {
			t.failed(err)
			worse = worse || !t.stopped
			continue
		}
		t.bringUp()
	}
	return worse
}

// finalise ends every connection and with the last one the initialisation:
// no handle or session of it is used again.
func (m *module) finalise() {
	m.restarted = true
	for t := range m.tokens {
		if !t.stopped {
			t.gate.shut(errDown) // all at once, so that their calls end together
		}
	}
	for t := range m.tokens {
		t.takeDown()
		t.disconnect()
	}
}

// reconnect logs in to the token, if it is the same one, and opens its
// sessions.
func (m *module) reconnect(t *Token) error {
	cfg := t.cfg
	cfg.TokenSerial = t.info.Serial
	chosen, conn, err := m.dial(cfg)
	if err != nil {
		return err
	}
	t.conn, t.slot = conn, chosen.id
	if err := t.reopen(); err != nil {
		t.closeSessions()
		t.disconnect()
		return err
	}
	return nil
}

// takeDown waits for the calls that are in the library, and lets no more in.
func (t *Token) takeDown() {
	if t.down {
		return
	}
	start := time.Now()
	recovers := t.module.moved.Swap(0) != 0 // the calls that it waits for have limits of their own
	t.using.Lock()
	if recovers {
		t.module.moved.Store(time.Now().UnixNano())
	}
	t.down, t.downSince = true, start
}

// bringUp lets calls in again.
func (t *Token) bringUp() {
	took := time.Since(t.downSince)
	t.down = false
	t.using.Unlock()
	t.gate.set(StateReady, "")
	t.stats.recovered(took)
	t.log.Info("the HSM is back", "token", t.info.Label, "epoch", t.epoch.Load(), "took", took)
}

// failed notes why an attempt did not help. Where the PIN is the reason there
// is no other.
func (t *Token) failed(err error) {
	if code, ok := codeOf(err); ok {
		t.stats.failed(code)
	}
	if errors.Is(err, ErrPINIncorrect) || errors.Is(err, ErrPINLocked) {
		t.stopped = true
		t.closeSessions()
		t.gate.set(StateStopped, err.Error())
		t.log.Error("the HSM is not tried any more", "token", t.info.Label, "error", err)
		return
	}
	t.gate.shut(err)
	t.log.Warn("the HSM is not back yet", "token", t.info.Label, "error", err)
}

// disconnect ends the connection, if there is one; the last of a library
// finalises it.
func (t *Token) disconnect() {
	if t.conn == nil {
		return
	}
	for _, s := range t.sessions {
		s.forget() // they end with the initialisation, or did before
	}
	t.orphans.forget(t)
	conn := t.conn
	t.conn = nil
	t.module.users--
	if err := conn.Close(); err != nil {
		t.log.Warn("closing the connection to the HSM", "token", t.info.Label, "error", err)
	}
}

func (t *Token) closeSessions() {
	for _, s := range t.sessions {
		s.close()
	}
	t.orphans.close(t)
}

// reopen opens all sessions, logs in if need be, and begins a new epoch. What
// the members of domains need must be there. The caller holds the write lock,
// or is Open.
func (t *Token) reopen() error {
	for _, s := range t.sessions {
		if err := s.open(); err != nil {
			return err
		}
		t.module.getsOn()
	}
	if err := t.keeperSession.login(); err != nil {
		return err
	}
	t.module.getsOn()
	// It may have come back in another mode, or with other firmware.
	t.wraps.Store(nil)
	t.wantsLength.Store(false)
	t.epoch.Add(1)
	t.stats.epoch.Set(float64(t.epoch.Load()))
	for _, revive := range t.revivers.list() {
		if err := revive(t.keeperSession); err != nil {
			return fmt.Errorf("looking for the domain's keys: %w", err)
		}
		t.module.getsOn()
	}
	return nil
}

// login logs in unless all of the token's sessions are.
func (s *session) login() error {
	state, err := s.state()
	if err != nil || state == pkcs11.CKS_RW_USER_FUNCTIONS {
		return err
	}
	info, err := s.t.module.p11.GetTokenInfo(s.t.slot)
	if err != nil {
		return deviceError("looking at the token", err)
	}
	info.Label = s.t.info.Label
	if err := loginAllowed(slot{s.t.slot, info}, s.t.cfg.PIN); err != nil {
		return err
	}
	err = s.t.module.p11.Login(s.handle, pkcs11.CKU_USER, s.t.cfg.PIN.reveal())
	code, ok := codeOf(err)
	if ok && code == pkcs11.CKR_USER_ALREADY_LOGGED_IN {
		return nil
	}
	err = deviceError(fmt.Sprintf("logging in to %q again", s.t.info.Label), err)
	if ok && classify(code) == classPIN {
		return fmt.Errorf("%w: %w; it is not tried again: restart with the right PIN", ErrPINIncorrect, err)
	}
	return err
}
