package hsm

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/faultshim"
)

// TestWaysAfterRecovery: a device may come back in another mode, or have been
// ill when it was tried, so its mechanisms are tried anew.
func TestWaysAfterRecovery(t *testing.T) {
	d := newDomain(t, nil)
	found := *d.t.wraps.Load()
	gone := wrapWays{}
	for c, ways := range found { // as if it had had another number for each
		gone[c] = append([]uint{ckmLunaKWP}, ways...)
	}
	d.t.wraps.Store(&gone)
	d.t.wantsLength.Store(true)
	epoch := d.t.epoch.Load()
	loseKeeper(t, d.t)
	if _, err := d.Generations(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d.t.epoch.Load() == epoch {
		t.Fatal("it did not recover")
	}
	if d.t.wantsLength.Load() {
		t.Error("it is still taken to want a length")
	}
	for c, ways := range *d.t.wraps.Load() {
		if !slices.Equal(ways, found[c]) {
			t.Errorf("%s keys are wrapped by %x, want %x", c, ways, found[c])
		}
	}
	newAES(t, d)
}

// TestTimedRecoveryOverANetwork: all that is tried again before a token serves
// takes less than a second where each call takes as long as on a network HSM.
func TestTimedRecoveryOverANetwork(t *testing.T) {
	plainBuild(t)
	shim, d := newFaultyDomain(t, nil)
	shim.Set(faultshim.Every, faultshim.Fault{Action: faultshim.Delay, Delay: time.Millisecond})
	defer shim.Clear()
	quickest(t, soon, func() time.Duration {
		d.t.calm()
		before, epoch := shim.Calls(), d.t.epoch.Load()
		start := time.Now()
		loseKeeper(t, d.t)
		for d.t.epoch.Load() == epoch || d.t.Health().State != StateReady {
			if err := d.t.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		took, calls := time.Since(start), 0
		for function, n := range shim.Calls() {
			calls += n - before[function]
		}
		t.Logf("%d calls in %s", calls, took)
		return took
	})
}

// quickest demands that something takes no longer than bound, at its quickest
// of a few times: the machine may do something else meanwhile.
func quickest(t *testing.T, bound time.Duration, try func() time.Duration) {
	t.Helper()
	least := time.Duration(math.MaxInt64)
	for range 5 {
		if least = min(least, try()); least <= bound {
			return
		}
	}
	t.Errorf("it takes %s, at its quickest", least)
}
