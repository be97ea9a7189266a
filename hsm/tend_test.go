package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// newFaultyWorker is a domain whose first member's worker has the shim before
// its library.
func newFaultyWorker(t *testing.T, members int, change func(*DomainConfig)) (*faultshim.Shim, *Domain) {
	t.Helper()
	cfg, _ := newDomainConfig(t, members)
	first := &cfg.Members[0]
	shim := faultshim.ForOthers(t, first.Module)
	first.Module = shim.Module
	first.Environment = append(first.Environment, shim.Env...)
	if change != nil {
		change(&cfg)
	}
	return shim, openDomain(t, cfg)
}

// TestWorkerStopsAtRefusedPIN: where the PIN is refused when the login has to be
// renewed, no other worker tries it either.
func TestWorkerStopsAtRefusedPIN(t *testing.T) {
	for name, code := range map[string]uint{"wrong": pkcs11.CKR_PIN_INCORRECT, "locked": pkcs11.CKR_PIN_LOCKED} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			shim, d := newFaultyWorker(t, 1, nil)
			shim.Set("C_Login", faultshim.Fault{Action: faultshim.Fail, Code: code})
			shim.Set("C_GetSessionInfo", faultshim.Fault{Action: faultshim.LoseAll, Times: 1})
			shim.Take("C_Login")
			if err := d.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
				t.Errorf("pinging: %v", err)
			}
			eventually(t, "the member's end", func() bool { return d.Health()[0].Stopped })
			time.Sleep(replaceAfter / 2)
			if tries := shim.Take("C_Login"); tries != 1 {
				t.Errorf("the PIN was tried %d times", tries)
			}
		})
	}
}

// TestSuccessorsPINIsTriedOnce: a PIN that was changed while the login lasts
// shows when a worker is to be replaced. The old one goes on, and the PIN is not
// tried again, not even when that ends.
func TestSuccessorsPINIsTriedOnce(t *testing.T) {
	shim, d := newFaultyWorker(t, 1, func(cfg *DomainConfig) { cfg.RetireUnwraps = 1 })
	eventually(t, "a successor", func() bool { return counted(d.front.stats.retired, "m0") > 0 })
	shim.Set("C_Login", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_PIN_INCORRECT})
	shim.Take("C_Login")
	time.Sleep(3 * memoryInterval)
	if _, _, err := d.Sum(t.Context(), []byte("row")); err != nil {
		t.Errorf("by the old worker: %v", err)
	}
	if pid := workerOf(d, 0); pid == 0 {
		t.Error("the member does not serve")
	}
	if tries := shim.Take("C_Login"); tries != 1 {
		t.Errorf("the PIN was tried %d times for a successor", tries)
	}
}

// TestCrashAtFirstLogin: whoever was about to try the PIN has said so before,
// however soon it ends.
func TestCrashAtFirstLogin(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	m := &cfg.Members[0]
	shim := faultshim.ForOthers(t, m.Module)
	m.Module = shim.Module
	m.Environment = append(append(m.Environment, shim.Env...), "GOMAXPROCS=1")
	shim.Set("C_Login", faultshim.Fault{Action: faultshim.Crash})
	for range 15 {
		if _, err := OpenDomain(t.Context(), cfg); !errors.Is(err, errOnce) {
			t.Fatalf("the worker ended while it logged in, and would be opened again: %v", err)
		}
	}
}

// TestLostIsKnownWhenToldOf: a call that ends with its worker finds it gone, by
// which is decided whether the PIN may be tried again.
func TestLostIsKnownWhenToldOf(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	cfg.Limits.Call = time.Minute
	d := openDomain(t, cfg)
	w := d.front.seats[0].target.Load().remote
	signalWorker(t, d, 0, syscall.SIGSTOP)
	const calls = 2000
	var early atomic.Int64
	var group sync.WaitGroup
	for range calls {
		group.Go(func() {
			if err := w.do(background, &call{op: callSum}, new(reply)); err == nil || !w.gone() {
				early.Add(1)
			}
		})
	}
	eventually(t, "all calls", func() bool { return w.inFlight() >= calls })
	w.lose(errLost)
	group.Wait()
	if n := early.Load(); n > 0 {
		t.Errorf("%d of %d calls were told of the worker's end before it was known", n, calls)
	}
}

// TestAsideTwice: a member that is put aside before the news of its predecessor
// is read comes back as well.
func TestAsideTwice(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	cfg.Metrics = nil
	d := &spread{cfg: cfg.withDefaults(), log: testLog(t), changed: make(chan struct{})}
	if err := d.place(); err != nil {
		t.Fatal(err)
	}
	d.stats = newFrontMetrics(d)
	d.proofs.Store(&Proofs{})
	s := d.seats[0]
	predecessor := must(s.open(t.Context()))(t)
	defer predecessor.end()
	next := must(s.open(t.Context()))(t)
	defer next.end()
	s.serve(predecessor)
	s.aside(predecessor, ErrUnavailable)
	s.serve(next)
	s.aside(next, ErrUnavailable)
	ctx, stop := context.WithCancel(t.Context())
	var tender sync.WaitGroup
	tender.Go(func() { _, _ = s.watch(ctx, next) })
	defer tender.Wait()
	defer stop()
	eventually(t, "the member's return", func() bool { return s.target.Load() == next })
}

// TestClosedDomain: nobody waits for the members of a domain that was closed.
func TestClosedDomain(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	cfg.Patience = time.Minute
	d := openDomain(t, cfg)
	d.Close()
	began := time.Now()
	if _, _, err := d.Sum(t.Context(), []byte("row")); !errors.Is(err, ErrUnavailable) || time.Since(began) > cfg.Patience/2 {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}

// TestAskingAllSurvivesADeath: a member that ends while all are asked counts as
// one that does not serve; if it was the only one, it is asked again.
func TestAskingAllSurvivesADeath(t *testing.T) {
	for _, members := range []int{1, 2} {
		shim, d := newFaultyWorker(t, members, nil)
		shim.Set("C_GetMechanismInfo", faultshim.Fault{Action: faultshim.Crash, Times: 1})
		if err := d.Supports("HMAC_512", UseMAC); err != nil {
			t.Errorf("of %d members: %v", members, err)
		}
		if shim.Injected()["C_GetMechanismInfo"] != 1 {
			t.Error("it did not crash")
		}
	}
}

// TestMakersPatience: what waits behind the making of a key may wait as long.
func TestMakersPatience(t *testing.T) {
	shim, d := newFaultyWorker(t, 1, func(cfg *DomainConfig) {
		cfg.Limits.Call = 2 * time.Second
		cfg.Members[0].AsymmetricSessions = 1
	})
	key := newDomainKey(t, d)
	if err := d.Supports("ECC_NIST_P256", UseSign); err != nil {
		t.Fatal(err)
	}
	pid := workerOf(d, 0)
	shim.Set("C_GenerateKeyPair", faultshim.Fault{Action: faultshim.Delay, Delay: 6 * time.Second, Times: 1})
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := d.Generate(t.Context(), "ECC_NIST_P256", UseSign); err != nil {
			t.Errorf("making a pair: %v", err)
		}
	})
	eventually(t, "the making of the pair", func() bool { return shim.Injected()["C_GenerateKeyPair"] == 1 || shim.Take("C_GenerateKeyPair") > 0 })
	for name, call := range map[string]func() error{
		"check value": func() error { _, err := d.CheckValue(t.Context(), key); return err },
		"making AES":  func() error { _, _, err := d.GenerateAES(t.Context()); return err },
		"a secret":    func() error { _, err := d.ImportSecret(t.Context(), make([]byte, minSecret)); return err },
		"moving": func() error {
			if _, err := d.Rewrap(t.Context(), key, 2); !errors.Is(err, ErrNoGeneration) {
				return fmt.Errorf("to a generation that is not there: %w", err)
			}
			return nil
		},
	} {
		group.Go(func() {
			if err := call(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	group.Wait()
	if workerOf(d, 0) != pid {
		t.Error("it cost the worker")
	}
}
