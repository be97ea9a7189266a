package hsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/trent-kms/trent/internal/softhsm"
	"github.com/trent-kms/trent/internal/testenv"
)

// TestMain is a worker too: Domain runs this binary again.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "hsm-worker" {
		_ = unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0) // any: see traceWorker; systems without Yama need it not
		if err := ServeWorker(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if pid := os.Getenv(traceVariable); pid != "" {
		traceForTest(pid)
		return
	}
	os.Exit(m.Run())
}

// newDomainConfig makes a domain whose members hold the same keys, each in a
// token folder of its own, and can be reached through worker processes only.
func newDomainConfig(t testing.TB, members int) (DomainConfig, *prometheus.Registry) {
	t.Helper()
	tok := testenv.SoftHSM(t)
	config := Config{Module: tok.Module, TokenLabel: tok.Label, PIN: NewPIN([]byte(tok.PIN))}
	token, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(token.CreateDomain(t.Context(), testDomain), token.Close()); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	cfg := DomainConfig{ID: testDomain, Logger: testLog(t), Metrics: registry}
	cfg.Patience = 10 * time.Second // of a machine that does much else
	for i := range members {
		folder, err := softhsm.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		tokens := filepath.Join(filepath.Dir(folder.Conf), "tokens")
		if err := os.CopyFS(tokens, os.DirFS(filepath.Join(filepath.Dir(tok.Conf), "tokens"))); err != nil {
			t.Fatal(err)
		}
		cfg.Members = append(cfg.Members, MemberConfig{
			Config: config, Name: fmt.Sprintf("m%d", i), Environment: []string{"SOFTHSM2_CONF=" + folder.Conf},
		})
	}
	return cfg, registry
}

// testLog shows the log of a test that fails.
func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func openDomain(t testing.TB, cfg DomainConfig) *Domain {
	t.Helper()
	d, err := OpenDomain(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// workerOf is the worker process that serves a member now; 0 if none does.
func workerOf(d *Domain, member int) int {
	if t := d.front.seats[member].target.Load(); t != nil && t.remote != nil {
		return t.remote.process.cmd.Process.Pid
	}
	return 0
}

func signalWorker(t *testing.T, d *Domain, member int, signal syscall.Signal) int {
	t.Helper()
	pid := workerOf(d, member)
	if pid == 0 {
		t.Fatalf("member %d has no worker", member)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatal(err)
	}
	if signal == syscall.SIGSTOP {
		waitStopped(t, pid)
	}
	return pid
}

// waitStopped waits until the process has taken its SIGSTOP: other threads run
// on until the one that is to take it has had its turn.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "the stop of the worker", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
}

// burden is callers that encrypt, decrypt, seal and verify, and look at every
// answer.
type burden struct {
	stop            context.CancelFunc
	callers         sync.WaitGroup
	calls, failures atomic.Int64
}

func startLoad(t *testing.T, d *Domain, callers int) *burden {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l := &burden{stop: stop}
	t.Cleanup(l.end)
	var keys []EKT
	for range 8 {
		key, _, err := d.GenerateAES(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	for i := range callers {
		l.callers.Go(func() {
			for n := uint64(0); ctx.Err() == nil; n++ {
				err := roundTrip(d, keys[(uint64(i)+n)%8], uint64(i)<<32|n)
				if err != nil {
					l.failures.Add(1)
					t.Errorf("caller %d: %v", i, err)
					return
				}
				l.calls.Add(4)
			}
		})
	}
	return l
}

func roundTrip(d *Domain, key EKT, n uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	plain := fmt.Appendf(nil, "message %d", n)
	sealed, err := sealBlob(ctx, d, key, plain)
	if err != nil {
		return fmt.Errorf("encrypting: %w", err)
	}
	opened, err := openBlob(ctx, d, key, sealed)
	if err != nil || !bytes.Equal(opened, plain) {
		return fmt.Errorf("decrypting %q: %q, %w", plain, opened, err)
	}
	generation, mac, err := d.Sum(ctx, plain)
	if err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	if ok, err := d.Verify(ctx, generation, plain, mac); !ok || err != nil {
		return fmt.Errorf("verifying: %v, %w", ok, err)
	}
	return nil
}

func (l *burden) end() {
	l.stop()
	l.callers.Wait()
}

// goOn waits for calls to be answered.
func (l *burden) goOn(t *testing.T, calls int64) {
	t.Helper()
	began := l.calls.Load()
	eventually(t, fmt.Sprintf("%d more calls", calls), func() bool { return l.calls.Load() >= began+calls || l.failures.Load() > 0 })
}

// plainBuild begins a test whose bounds in time the race detector would not
// keep. scripts/test finds those tests by their prefix.
func plainBuild(t *testing.T) {
	t.Helper()
	if !strings.HasPrefix(t.Name(), "TestTimed") {
		t.Fatal("name it TestTimed…, or nothing runs it")
	}
	if underRace && os.Getenv("CI") == "true" {
		t.Fatal("CI must run it in a plain build")
	}
	if underRace {
		t.Skip("its bounds in time are those of a plain build: scripts/test runs it in one")
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestWorkerServes(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	d := openDomain(t, cfg)
	if err := d.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, d, 16)
	l.goOn(t, 5000)
}

// TestWorkersKilled kills workers under load, by one and by three.
func TestWorkersKilled(t *testing.T) {
	for _, members := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(members), func(t *testing.T) {
			cfg, _ := newDomainConfig(t, members)
			d := openDomain(t, cfg)
			l := startLoad(t, d, 16)
			for n := range 6 {
				l.goOn(t, 500)
				was := signalWorker(t, d, n%members, syscall.SIGKILL)
				eventually(t, "a new worker", func() bool { pid := workerOf(d, n%members); return pid != 0 && pid != was })
			}
			l.goOn(t, 500)
		})
	}
}

// TestWorkerHangs stops a worker: its calls are answered by its successor.
func TestWorkerHangs(t *testing.T) {
	for _, members := range []int{1, 2} {
		t.Run(fmt.Sprint(members), func(t *testing.T) {
			cfg, _ := newDomainConfig(t, members)
			cfg.Limits.Call = 500 * time.Millisecond
			d := openDomain(t, cfg)
			l := startLoad(t, d, 16)
			l.goOn(t, 500)
			was := signalWorker(t, d, 0, syscall.SIGSTOP)
			eventually(t, "a new worker", func() bool { pid := workerOf(d, 0); return pid != 0 && pid != was })
			l.goOn(t, 500)
			eventually(t, "the end of the worker that hung", func() bool { return syscall.Kill(was, 0) != nil })
		})
	}
}

// TestWorkerRetires lets workers reach their bound under load.
func TestWorkerRetires(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	cfg.RetireUnwraps = 50
	cfg.Members[0].HandleCache = 4 // so that the load unwraps all the time
	d := openDomain(t, cfg)
	l := startLoad(t, d, 16)
	first := workerOf(d, 0)
	seen := map[int]bool{first: true}
	eventually(t, "three workers", func() bool { seen[workerOf(d, 0)] = true; return len(seen) > 3 })
	l.goOn(t, 500)
	eventually(t, "the end of the first", func() bool { return syscall.Kill(first, 0) != nil })
}

// TestForgettingTurnsNobodyAway: a host that has many keys forgotten at once
// serves those who call meanwhile.
func TestForgettingTurnsNobodyAway(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	cfg.Members[0].Queue = 8
	d := openDomain(t, cfg)
	key := newDomainKey(t, d)
	for i := range 5000 {
		d.Forget(binary.BigEndian.AppendUint32(bytes.Clone(key), uint32(i)))
		if i%100 != 0 {
			continue
		}
		if _, _, err := d.Encrypt(t.Context(), key, nil, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
}
