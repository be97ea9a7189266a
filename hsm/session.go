package hsm

import (
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// session is one PKCS#11 session, owned by one worker goroutine.
type session struct {
	t      *Token
	handle pkcs11.SessionHandle
	keeper bool

	random []byte // of the device, for IVs to come
	lastIV []byte // of what it sealed
}

func (t *Token) openSession() (*session, error) {
	s := &session{t: t}
	if err := s.open(); err != nil {
		return nil, err
	}
	return s, nil
}

// open asks for a read-write session since some devices know no other kind.
func (s *session) open() error {
	handle, err := s.t.module.p11.OpenSession(s.t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return deviceError(fmt.Sprintf("opening session on %q", s.t.info.Label), err)
	}
	s.handle = handle
	s.t.stats.sessions.Inc()
	return nil
}

// close forgets the handle as well, since a device may give its number to
// another session. Calls on the invalid handle 0 answer
// CKR_SESSION_HANDLE_INVALID, which leads back to replace.
func (s *session) close() {
	clear(s.random)
	s.random = nil
	if s.handle == 0 {
		return
	}
	_ = s.t.module.p11.CloseSession(s.handle)
	s.handle = 0
	s.t.stats.sessions.Dec()
}

// replace throws the session away for a new one. Never the keeper's own, which
// would take every session object with it: see ensure.
func (s *session) replace() error {
	s.close()
	return s.open()
}

// ensure checks that the keeper's session lives and is logged in; if not it
// renews both, which begins a new epoch.
func (s *session) ensure() error {
	info, err := s.t.module.p11.GetSessionInfo(s.handle)
	if err == nil && info.State == pkcs11.CKS_RW_USER_FUNCTIONS {
		return nil
	}
	s.t.log.Warn("renewing the login to the HSM", "token", s.t.info.Label, "cause", deviceError("looking at the session", err))
	s.endEpoch()
	if err := s.open(); err != nil {
		return err
	}
	info, err = s.t.module.p11.GetSessionInfo(s.handle)
	if err != nil {
		return deviceError("looking at the session", err)
	}
	if info.State == pkcs11.CKS_RW_USER_FUNCTIONS {
		return nil
	}
	return s.login()
}

// endEpoch waits for the calls that passed the check of their epoch, and
// refuses all others before the session objects go: from then on the device
// may give their handles to other objects.
func (s *session) endEpoch() {
	s.t.using.Lock()
	defer s.t.using.Unlock()
	s.t.epoch.Add(1)
	s.close()
}

// login tries the PIN at most once more in the token's life after it was
// refused.
func (s *session) login() error {
	if s.t.pinRefused.Load() {
		return fmt.Errorf("%w since it was opened; it is not tried again: restart with the right PIN", ErrPINIncorrect)
	}
	err := s.t.module.p11.Login(s.handle, pkcs11.CKU_USER, s.t.cfg.PIN.reveal())
	code, ok := codeOf(err)
	switch {
	case err == nil, ok && code == pkcs11.CKR_USER_ALREADY_LOGGED_IN:
		return nil
	case ok && classify(code) == classPIN:
		s.t.pinRefused.Store(true)
	}
	return deviceError(fmt.Sprintf("logging in to %q again", s.t.info.Label), err)
}

// run does what r asks on this session and leaves the result in r.
func (s *session) run(r *request) {
	if r.op == opFunc {
		s.runFunc(r)
		return
	}
	start := time.Now()
	code, ok := s.attempt(r)
	if !ok {
		r.err = errStale
		return
	}
	r.took = time.Since(start)
	if code != pkcs11.CKR_OK {
		s.failed(r, code)
	}
}

// attempt makes the call that r asks for, unless its handle is of another
// epoch: then ok is false.
func (s *session) attempt(r *request) (code uint, ok bool) {
	s.t.using.RLock()
	defer s.t.using.RUnlock()
	if r.epoch != s.t.epoch.Load() {
		return 0, false
	}
	return s.call(r), true
}

// runFunc runs a closure. If the session turned out to be lost, it is renewed
// and the caller told to begin again.
func (s *session) runFunc(r *request) {
	epoch := s.t.epoch.Load()
	r.err = s.enter(r.fn)
	code, ok := codeOf(r.err)
	if !ok {
		return
	}
	s.t.stats.failed(code)
	switch classify(code) {
	case classSession, classLogin, classHandle, classDevice:
		if !s.keeper {
			s.renew(r)
		} else if s.ensure() == nil && s.t.epoch.Load() != epoch {
			r.err = errStale
		}
	}
}

// enter runs f, and keeps the epoch from ending meanwhile: a lane's f must not
// wait for the keeper. The keeper's own may end it.
func (s *session) enter(f func(*session) error) error {
	if !s.keeper {
		s.t.using.RLock()
		defer s.t.using.RUnlock()
	}
	return f(s)
}

// renew gives up a lane's session after a closure. What the closure made died
// with it, so that the caller can begin again.
func (s *session) renew(r *request) {
	if s.recovered() == nil {
		r.err = errStale
	}
}

func (s *session) call(r *request) (code uint) {
	n := s.t.module.native
	switch r.op {
	case opEncrypt:
		code = s.seal(r)
	case opDecrypt:
		r.length, code = n.gcm(true, s.handle, r.key, r.iv, r.aad, r.in, r.out)
	case opHMAC:
		r.length, code = n.sign(pkcs11.CKM_SHA256_HMAC, s.handle, r.key, r.in, r.out)
	case opVerify:
		code = n.verify(pkcs11.CKM_SHA256_HMAC, s.handle, r.key, r.in, r.mac)
	case opRandom:
		r.length, code = len(r.out), n.random(s.handle, r.out)
	case opSign, opMAC:
		r.length, code = n.use(false, r.mechanism, r.parameters, s.handle, r.key, r.in, r.out)
	case opDecryptRSA:
		r.length, code = n.use(true, r.mechanism, r.parameters, s.handle, r.key, r.in, r.out)
	case opAgree:
		r.length, code = n.agree(s.handle, r.key, r.parameters, r.in, r.out)
	}
	return code
}

// failed sorts a refused call: lost sessions are replaced and the call made
// once more; after an unclear code the session is not trusted again.
func (s *session) failed(r *request, code uint) {
	r.err = &DeviceError{Doing: r.op.String(), Code: code}
	s.t.stats.failed(code)
	switch classify(code) {
	case classForged, classHandle:
		return
	case classSession, classLogin:
		if s.recovered() != nil {
			return
		}
		switch code, ok := s.attempt(r); {
		case !ok:
			r.err = errStale
		case code != pkcs11.CKR_OK:
			r.err = &DeviceError{Doing: r.op.String(), Code: code}
		default:
			r.err = nil
		}
	default:
		if err := s.replace(); err != nil {
			s.t.log.Error("replacing a session", "error", err)
		}
	}
}

// recovered replaces a lane's lost session and has the keeper look whether
// the login and the session objects went with it.
func (s *session) recovered() error {
	err := s.replace()
	if err == nil {
		err = s.t.checkLogin(background)
	}
	if err != nil {
		s.t.log.Error("recovering a lost session", "token", s.t.info.Label, "error", err)
	}
	return err
}
