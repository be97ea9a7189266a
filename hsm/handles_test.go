package hsm

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// liveObjects counts the domain's session objects on the token.
func liveObjects(t *testing.T, d *Member) int {
	t.Helper()
	n := 0
	onKeeper(t, d, func(s *session, _ *domainKeys) error {
		objects, err := s.find([]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES)})
		n = len(objects)
		return err
	})
	return n
}

func TestHandleCacheUnderPressure(t *testing.T) {
	const size, keys, callers, rounds = 3, 12, 16, 60
	d := newDomain(t, func(c *Config) { c.HandleCache, c.Sessions = size, 2 })
	base := liveObjects(t, d)
	var ekts []EKT
	for range keys {
		ekts = append(ekts, newAES(t, d))
	}
	var group sync.WaitGroup
	for c := range callers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(c), 1)) //nolint:gosec // not a secret
			for range rounds {
				ekt := ekts[random.IntN(keys)]
				iv, sealed, err := d.Encrypt(t.Context(), ekt, testAAD, []byte("plain"))
				if err != nil {
					t.Error(err)
					return
				}
				if plain, err := d.Decrypt(t.Context(), ekt, iv, testAAD, sealed); err != nil || string(plain) != "plain" {
					t.Errorf("%q, %v", plain, err)
					return
				}
			}
		})
	}
	group.Wait()
	if n := liveObjects(t, d) - base; n < 1 || n > size {
		t.Errorf("%d objects live, at most %d allowed", n, size)
	}
}

func TestHandleIsLoadedOnce(t *testing.T) {
	d := newDomain(t, nil)
	ekt := newAES(t, d)
	base := liveObjects(t, d)
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			if _, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := liveObjects(t, d) - base; n != 1 {
		t.Errorf("%d objects live for one key", n)
	}
}

func TestHandleInUseIsNeverDestroyed(t *testing.T) {
	d := newDomain(t, func(c *Config) { c.HandleCache = 1 })
	held, wanted := newAES(t, d), newAES(t, d)
	h, err := d.cache.acquire(t.Context(), held)
	if err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.cache.acquire(brief, wanted); !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("acquiring beyond the bound: %v", err)
	}
	done := make(chan error)
	go func() {
		_, _, err := d.Encrypt(t.Context(), wanted, nil, []byte("x"))
		done <- err
	}()
	onKeeper(t, d, func(s *session, _ *domainKeys) error {
		_, err := s.attribute(h.object, pkcs11.CKA_CLASS)
		return err
	})
	h.release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// hold blocks the lane's workers until the returned function is called.
func hold(t *testing.T, d *Member) (release func()) {
	t.Helper()
	gate, entered := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	for range d.t.cfg.Sessions {
		group.Go(func() {
			r := newRequest(opFunc, d.t.epoch.Load())
			r.fn = func(*session) error { entered <- struct{}{}; <-gate; return nil }
			_, _ = d.t.lane.do(context.Background(), r)
		})
		<-entered
	}
	return func() { close(gate); group.Wait() }
}

func TestFullQueueAndAbandonedCallers(t *testing.T) {
	d := newDomain(t, func(c *Config) { c.Queue = 2 })
	ekt := newAES(t, d)
	if _, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
	release := hold(t, d)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			if _, _, err := d.Encrypt(ctx, ekt, nil, []byte("x")); !errors.Is(err, context.Canceled) {
				t.Errorf("a caller who left: %v", err)
			}
		})
	}
	eventually(t, "a full queue", func() bool { return len(d.t.lane.queue) == 2 })
	leave()
	group.Wait()
	if _, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x")); !errors.Is(err, ErrBusy) {
		t.Errorf("full queue: %v", err)
	}
	release()
	// What was abandoned is taken from the queue a moment later.
	eventually(t, "the end of the jam", func() bool {
		_, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x"))
		if err != nil && !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
		return err == nil
	})
	h := must(d.cache.acquire(t.Context(), ekt))(t)
	defer h.release()
	eventually(t, "the end of the abandoned requests' hold on the handle", func() bool {
		d.cache.mu.Lock()
		defer d.cache.mu.Unlock()
		return h.users == 1
	})
}
