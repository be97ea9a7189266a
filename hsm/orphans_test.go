package hsm

import (
	"testing"

	"github.com/miekg/pkcs11"
	dto "github.com/prometheus/client_model/go"

	"github.com/trent-kms/trent/internal/faultshim"
)

// TestOrphansAreOpen: a session that the device does not close is one that the
// metrics count, until it is closed after all or ends otherwise.
func TestOrphansAreOpen(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	counted := func() int {
		var m dto.Metric
		_ = d.t.stats.sessions.Write(&m)
		return int(m.GetGauge().GetValue())
	}
	live := func() int { n, _ := shim.Live(); return n }
	theirs := live() - counted() // crypto11's
	want := func(what string, more int) {
		t.Helper()
		if got := counted(); got != live()-theirs || more > 0 != d.t.orphans.any.Load() {
			t.Errorf("%s: %d sessions are counted, %d are open (orphans: %v)", what, got, live()-theirs, d.t.orphans.any.Load())
		}
	}
	lose := func() {
		t.Helper()
		shim.Set("C_CloseSession", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_FUNCTION_FAILED})
		defer shim.Clear()
		for range 3 {
			s := must(d.t.openSession())(t)
			s.close()
		}
	}
	lose()
	want("not closed", 3)
	if err := d.t.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("closed by the next call", 0)
	lose()
	d.t.ask(d.t.epoch.Load(), remedyRestart, errOnce)
	wantHealthy(t, d)
	if got := counted(); got != len(d.t.sessions) || d.t.orphans.any.Load() {
		t.Errorf("after a restart %d sessions are counted, Trent has %d (orphans: %v)", got, len(d.t.sessions), d.t.orphans.any.Load())
	}
}

// TestReusedSessionNumber: where the device has closed a session although it
// said no, and given its number to another, that one is not closed for it.
func TestReusedSessionNumber(t *testing.T) {
	d := newDomain(t, nil)
	first := must(d.t.openSession())(t)
	defer first.close()
	next := first.handle + 1 // SoftHSM counts
	d.t.orphans.add(next)
	other := must(d.t.openSession())(t)
	defer other.close()
	if other.handle != next {
		t.Fatalf("the next session is %d, not %d", other.handle, next)
	}
	d.t.orphans.close(d.t)
	if err := other.check(); err != nil {
		t.Errorf("the session that has the number now: %v", err)
	}
}
