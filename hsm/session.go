package hsm

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// session is one PKCS#11 session. Its worker uses it with Token.using
// read-locked; recovery replaces its handle with the write lock.
type session struct {
	t      *Token
	handle pkcs11.SessionHandle
	// keeper: every cached object belongs to this session. It is replaced only
	// by recovery, which ends their epoch.
	keeper bool
	// strikes counts losses that a new session or a fresh handle did not cure.
	strikes int
	// doomed are objects that the device did not destroy when told to.
	doomed []pkcs11.ObjectHandle
	// since is when the call began that the worker makes, in Unix nanoseconds;
	// 0 = none.
	since atomic.Int64

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
	s.t.orphans.reused(s.t, handle)
	return nil
}

// close ends the session. One that the device does not close is kept in mind.
func (s *session) close() {
	clear(s.random)
	s.random = nil
	if s.handle == 0 {
		return
	}
	if !s.t.closeHandle(s.handle) {
		s.t.orphans.add(s.handle)
		s.t.stats.sessions.Inc() // it is still open
	}
	s.forget()
}

// forget drops the handle, since a device may give its number to another
// session. Calls on the invalid handle 0 answer CKR_SESSION_HANDLE_INVALID,
// which leads to replace.
func (s *session) forget() {
	if s.handle == 0 {
		return
	}
	s.handle, s.doomed = 0, nil
	s.t.stats.sessions.Dec()
}

// closeHandle says whether the session is gone.
func (t *Token) closeHandle(handle pkcs11.SessionHandle) bool {
	code, refused := codeOf(t.module.p11.CloseSession(handle))
	return !refused || code == pkcs11.CKR_SESSION_HANDLE_INVALID || code == pkcs11.CKR_SESSION_CLOSED
}

// orphans are sessions that could not be closed. They, and what objects they
// have, would stay until the library is finalised.
type orphans struct {
	mu   sync.Mutex
	list []pkcs11.SessionHandle
	any  atomic.Bool // whether list has some
}

func (o *orphans) add(handle pkcs11.SessionHandle) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, handle)
	o.any.Store(true)
}

// reused takes a session off the list whose number the device has given to
// another: it was closed, whatever the device said, and must not be again.
func (o *orphans) reused(t *Token, handle pkcs11.SessionHandle) {
	if o.any.Load() {
		o.drop(t, func(orphan pkcs11.SessionHandle) bool { return orphan == handle })
	}
}

// forget: they have ended with the initialisation.
func (o *orphans) forget(t *Token) {
	o.drop(t, func(pkcs11.SessionHandle) bool { return true })
}

// close tries again.
func (o *orphans) close(t *Token) { o.drop(t, t.closeHandle) }

func (o *orphans) drop(t *Token, gone func(pkcs11.SessionHandle) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := len(o.list)
	o.list = slices.DeleteFunc(o.list, gone)
	o.any.Store(len(o.list) > 0)
	t.stats.sessions.Sub(float64(before - len(o.list)))
}

// replace throws the session away for a new one. Never the keeper's own, which
// would take every cached object with it.
func (s *session) replace() error {
	s.close()
	return s.open()
}

func (s *session) state() (uint, error) {
	info, err := s.t.module.p11.GetSessionInfo(s.handle)
	return info.State, deviceError("looking at the session", err)
}

// check says whether the session lives and is logged in.
func (s *session) check() error {
	state, err := s.state()
	if err == nil && state != pkcs11.CKS_RW_USER_FUNCTIONS {
		err = &DeviceError{Doing: "looking at the session", Code: pkcs11.CKR_USER_NOT_LOGGED_IN}
	}
	return err
}

// run does what r asks on this session and leaves the result in r. It is the
// only way into the library for what uses handles: while the token is
// recovered, and for handles of another epoch, it is closed.
func (s *session) run(r *request) {
	if !s.t.using.TryRLock() { // nobody but recovery ever holds it
		r.err = errDown
		return
	}
	defer s.t.using.RUnlock()
	if r.epoch != s.t.epoch.Load() {
		r.err = errStale
		return
	}
	start := time.Now()
	s.since.Store(start.UnixNano())
	s.perform(r)
	r.took = time.Since(start)
	s.since.Store(0)
	if r.err != nil {
		s.failed(r)
		return
	}
	s.strikes = 0
	if len(s.doomed) > 0 || s.t.orphans.any.Load() {
		s.cleanUp()
	}
}

func (s *session) perform(r *request) {
	if r.op == opFunc {
		r.err = r.fn(s)
		return
	}
	code := s.call(r)
	if code == pkcs11.CKR_OK && r.wrongLength() {
		code = ckrWrongLength
	}
	if code != pkcs11.CKR_OK {
		r.err = &DeviceError{Doing: r.op.String(), Code: code}
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

// failed does for session and token what the code of a refused call calls
// for. A lane's session that saw an error is thrown away, and with it whatever
// the call left behind.
func (s *session) failed(r *request) {
	code, ok := codeOf(r.err)
	if !ok {
		if len(s.doomed) > 0 {
			s.cleanUp()
		}
		return
	}
	s.t.stats.failed(code)
	c := classify(code)
	if c == classDevice || c == classToken {
		s.t.ask(r.epoch, remedyRestart, r.err)
		return
	}
	if s.keeper {
		s.cleanUp()
	} else if c != classForged || r.op == opAgree {
		if err := s.replace(); err != nil {
			s.unopened(r, err)
			return
		}
	}
	if c == classSession || c == classLogin || c == classHandle {
		s.strike(r)
	}
}

// unopened: the session stays closed, and the next call tries to open it.
func (s *session) unopened(r *request, err error) {
	s.t.log.Error("replacing a session", "token", s.t.info.Label, "error", err)
	code, _ := codeOf(err)
	s.t.stats.failed(code)
	switch classify(code) {
	case classDevice, classToken:
		s.t.ask(r.epoch, remedyRestart, err)
	default:
		s.strike(r)
	}
}

// strike has the token recovered if the login or the keeper's session is
// lost, or if losses repeat although they are not.
func (s *session) strike(r *request) {
	s.strikes++
	err := s.check()
	code, _ := codeOf(err)
	switch {
	case err != nil && (classify(code) == classDevice || classify(code) == classToken), s.strikes >= 6:
		s.strikes = 0
		s.t.ask(r.epoch, remedyRestart, r.err)
	case err != nil && (s.keeper || classify(code) == classLogin), s.strikes >= 3:
		s.t.ask(r.epoch, remedyRenew, r.err)
	}
}

// manyDoomed is how many objects may wait to be destroyed before the session
// that has them is ended for it.
const manyDoomed = 64

// destroy ends a session object, or keeps in mind that it must.
func (s *session) destroy(object pkcs11.ObjectHandle) {
	if !s.destroyed(object) {
		s.doomed = append(s.doomed, object)
	}
}

func (s *session) destroyed(object pkcs11.ObjectHandle) bool {
	err := s.t.module.p11.DestroyObject(s.handle, object)
	code, refused := codeOf(err)
	if !refused || code == pkcs11.CKR_OBJECT_HANDLE_INVALID {
		return true // or gone already
	}
	s.t.stats.failed(code)
	s.t.log.Warn("destroying a session object", "token", s.t.info.Label, "error", deviceError("destroying", err))
	return false
}

// cleanUp destroys and closes what could not be before.
func (s *session) cleanUp() {
	if s.t.orphans.any.Load() {
		s.t.orphans.close(s.t)
	}
	s.doomed = slices.DeleteFunc(s.doomed, s.destroyed)
	switch {
	case len(s.doomed) == 0:
	case !s.keeper:
		if err := s.replace(); err != nil {
			s.t.log.Error("replacing a session", "token", s.t.info.Label, "error", err)
		}
	case len(s.doomed) > manyDoomed:
		s.t.ask(s.t.epoch.Load(), remedyRenew, fmt.Errorf("%d objects cannot be destroyed", len(s.doomed)))
	}
}
