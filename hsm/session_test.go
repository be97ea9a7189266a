package hsm

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// loseKeeper takes the keeper's session away behind its back.
func loseKeeper(t *testing.T, token *Token) {
	t.Helper()
	if err := token.onKeeper(t.Context(), func(s *session) error {
		return deviceError("losing the session", s.t.module.p11.CloseSession(s.handle))
	}); err != nil {
		t.Fatal(err)
	}
}

// An epoch does not end under a call that has checked it.
func TestEpochOutlivesItsCalls(t *testing.T) {
	d := newDomain(t, nil)
	before := d.t.epoch.Load()
	inside, leave := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		if err := d.onMaker(context.Background(), func(s *session, keys *domainKeys) error {
			close(inside)
			<-leave
			if now := s.t.epoch.Load(); now != keys.epoch {
				t.Errorf("epoch %d ended under a call", keys.epoch)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	<-inside
	loseKeeper(t, d.t)
	group.Go(func() {
		if err := d.t.Ping(context.Background()); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(50 * time.Millisecond) // long enough for a renewal that does not wait
	close(leave)
	group.Wait()
	if d.t.epoch.Load() == before {
		t.Error("no new epoch")
	}
}

// The session objects are gone even if no new session is to be had.
func TestEpochEndsWithItsObjects(t *testing.T) {
	shim, d := newFaultyDomain(t, func(c *Config) { c.RecoveryWait = 100 * time.Millisecond })
	ekt := newAES(t, d)
	h, err := d.cache.acquire(t.Context(), ekt)
	if err != nil {
		t.Fatal(err)
	}
	defer h.release()
	shim.Set("C_OpenSession", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_SLOT_ID_INVALID})
	loseKeeper(t, d.t)
	if err := d.t.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without sessions: %v", err)
	}
	use := func() error {
		r := sealRequest(h.epoch, ivOurs, nil, []byte("x"))
		r.key = h.object
		_, err := d.t.lane.do(t.Context(), r)
		return err
	}
	if err := use(); !errors.Is(err, errDown) {
		t.Errorf("using a handle while the token is down: %v", err)
	}
	shim.Clear()
	wantHealthy(t, d)
	if err := use(); !errors.Is(err, errStale) {
		t.Errorf("using a handle of the old epoch: %v", err)
	}
	if _, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x")); err != nil {
		t.Errorf("after the slot came back: %v", err)
	}
}
