package hsm

import (
	"sync"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/faultshim"
)

// TestSlowIsNotHung: a device on which a batch of calls takes longer than one
// call may is slow. It is not ended for it, and the first who asked need not
// wait for the last.
func TestSlowIsNotHung(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	first := &cfg.Members[0]
	shim := faultshim.ForOthers(t, first.Module)
	first.Module = shim.Module
	first.Environment = append(first.Environment, shim.Env...)
	cfg.Limits = Limits{Call: 3 * time.Second, Make: 10 * time.Second, Open: 10 * time.Second}
	d := openDomain(t, cfg)
	key := newDomainKey(t, d)
	if _, _, err := d.Encrypt(t.Context(), key, nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
	const each = 300 * time.Millisecond // a heartbeat comes meanwhile
	shim.Set("C_Encrypt", faultshim.Fault{Action: faultshim.Delay, Delay: each})
	defer shim.Clear()
	var mu sync.Mutex
	var took []time.Duration
	var callers sync.WaitGroup
	for range quick {
		callers.Go(func() {
			start := time.Now()
			_, _, err := d.Encrypt(t.Context(), key, nil, []byte("x"))
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(start)) // in the order in which they are answered
			if err != nil {
				t.Errorf("a slow device fails a call after %s: %v", time.Since(start), err)
			}
		})
	}
	callers.Wait()
	if n := counted(d.front.stats.hangs, "m0"); n != 0 {
		t.Errorf("a slow device was ended %v times as if it hung", n)
	}
	if took[0] > quick*each*3/4 {
		t.Errorf("the first of %d calls of %s each was answered after %s", quick, each, took[0])
	}
}
