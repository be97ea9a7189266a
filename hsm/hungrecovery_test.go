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

// TestTimedHungRecovery: a worker whose library hangs while its token is recovered
// is replaced as soon as one that hangs in a call.
func TestTimedHungRecovery(t *testing.T) {
	plainBuild(t)
	cfg, _ := newDomainConfig(t, 1)
	cfg.Patience = 20 * time.Second
	first := &cfg.Members[0]
	shim := faultshim.ForOthers(t, first.Module)
	first.Module = shim.Module
	first.Environment = append(first.Environment, shim.Env...)
	cfg.Limits = Limits{Call: 500 * time.Millisecond, Make: 10 * time.Second, Open: 10 * time.Second}
	d := openDomain(t, cfg) // its calls wait two seconds for a recovery
	for _, function := range []string{"C_Initialize", "C_OpenSession", "C_Login", "C_FindObjectsInit", "C_UnwrapKey"} {
		quickest(t, cfg.Limits.Call+soon, func() time.Duration {
			before, hangs := shim.Injected()[function], counted(d.front.stats.hangs, "m0")
			shim.Set(function, faultshim.Fault{Action: faultshim.Hang, Times: 1})
			shim.Set("C_GenerateRandom", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_DEVICE_ERROR, Times: 1})
			defer shim.Clear()
			called := make(chan error)
			go func() { called <- d.Ping(context.Background()) }()
			eventually(t, "a call of "+function, func() bool { return shim.Injected()[function] > before })
			start := time.Now()
			err := <-called
			for errors.Is(err, ErrUnavailable) && time.Since(start) < 20*time.Second {
				err = d.Ping(t.Context())
			}
			took := time.Since(start)
			if err != nil {
				t.Errorf("%s hung: %v", function, err)
			}
			t.Logf("%s hung: served after %s", function, took.Round(time.Millisecond))
			if n := counted(d.front.stats.hangs, "m0") - hangs; n == 0 {
				t.Errorf("%s: no worker is said to have hung", function)
			}
			return took
		})
	}
}

// TestRecoveryIsOverForWhoGetsOn: a look at the keys that gets on just as a
// recovery ends does not make it look as if it went on, for which the worker
// would be ended.
func TestRecoveryIsOverForWhoGetsOn(t *testing.T) {
	m, done := new(module), make(chan struct{})
	var looks sync.WaitGroup
	looks.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				m.getsOn()
			}
		}
	})
	defer looks.Wait()
	defer close(done)
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		m.moved.Store(time.Now().UnixNano()) // as mend does
		m.getsOn()
		m.moved.Store(0)
		for range 50 {
			if m.moved.Load() != 0 {
				t.Fatal("a recovery that has ended goes on")
			}
		}
	}
}
