package hsm

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/internal/faultshim"
)

// aside puts a member's worker aside, which can do nothing until resume.
func aside(t *testing.T, d *Domain, member int) (resume func()) {
	t.Helper()
	s := d.front.seats[member]
	pid := signalWorker(t, d, member, syscall.SIGSTOP)
	s.aside(s.target.Load(), ErrUnavailable)
	return func() {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the worker's return", func() bool { return workerOf(d, member) == pid })
	}
}

// TestProofsForWhoComesBack: a member that was aside when the proofs came has
// them when it serves again, and so can have the generation made active.
func TestProofsForWhoComesBack(t *testing.T) {
	cfg, _ := newShared(t)
	proofs := cfg.Proofs
	cfg.Members, cfg.Proofs = cfg.Members[:1], nil
	d := openDomain(t, cfg)
	resume := aside(t, d, 0)
	if err := d.SetProofs(t.Context(), proofs); err != nil {
		t.Fatal(err)
	}
	resume()
	if err := d.SetActive(t.Context(), 2); err != nil {
		t.Errorf("activating what it has not been given the proofs of: %v", err)
	}
	if got := metric(t, cfg.Metrics.(*prometheus.Registry), "trent_hsm_worker_starts_total", "m0"); got != 1 {
		t.Errorf("%v workers were started", got)
	}
}

// TestForgetsWhileAside: the copy of a deleted key does not outlive it on a
// member that was aside when it was deleted.
func TestForgetsWhileAside(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	d := openDomain(t, cfg)
	key := newDomainKey(t, d)
	if _, _, err := d.Encrypt(t.Context(), key, nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
	cached := func() (n float64) {
		samples, err := d.front.seats[0].target.Load().samples()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range samples {
			if s.Name == "trent_hsm_handle_cache_size" {
				n += s.Value
			}
		}
		return n
	}
	if cached() != 1 {
		t.Fatalf("%v keys are cached, want the one that was used", cached())
	}
	resume := aside(t, d, 0)
	d.Forget(key)
	resume()
	eventually(t, "the end of the key's copy", func() bool { return cached() == 0 })
}

// TestRefusedPINIsTriedOnce: a worker whose successor's PIN was refused does
// not try it again when it loses its own login.
func TestRefusedPINIsTriedOnce(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	m := &cfg.Members[0]
	shim := faultshim.ForOthers(t, m.Module)
	m.Module, m.Environment = shim.Module, append(m.Environment, shim.Env...)
	d := openDomain(t, cfg)
	logins := func() int { return shim.Calls()["C_Login"] }
	before := logins()
	shim.Set("C_Login", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_PIN_INCORRECT})
	d.front.seats[0].target.Load().remote.retire <- struct{}{}
	eventually(t, "the successor's login", func() bool { return logins() > before })
	time.Sleep(2 * heartbeat)
	if err := d.Ping(t.Context()); err != nil {
		t.Errorf("the old worker does not go on: %v", err)
	}
	shim.Set("C_GenerateRandom", faultshim.Fault{Action: faultshim.Logout, Times: 1})
	eventually(t, "the end of service", func() bool { _ = d.Ping(t.Context()); return d.Health()[0].Stopped })
	if h := d.Health()[0]; !errors.Is(h.Err, ErrPINIncorrect) {
		t.Errorf("health %+v", h)
	}
	if n := logins() - before; n != 1 {
		t.Errorf("the refused PIN was tried %d times", n)
	}
}
