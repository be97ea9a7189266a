package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/trent-kms/trent/internal/faultshim"
)

// workerClasses are the columns for a module in a worker: what only another
// process survives, and one code of each class that recovery treats apart.
var workerClasses = []faultClass{
	{name: "hang", fault: faultshim.Fault{Action: faultshim.Hang, Times: 1}},
	{name: "crash", fault: faultshim.Fault{Action: faultshim.Crash, Times: 1}},
	{"done, then crash", faultshim.Fault{Action: faultshim.Crash, After: true, Times: 1}, creating},
	failing("device error", pkcs11.CKR_DEVICE_ERROR, insistently),
	failing("token gone", pkcs11.CKR_TOKEN_NOT_PRESENT, insistently),
	// That a session is gone is believed of one that is to be closed: its number
	// may be another's by now.
	{"session gone", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_SESSION_HANDLE_INVALID, Times: insistently},
		slices.DeleteFunc(slices.Clone(tableFunctions), func(f string) bool { return f == "C_CloseSession" })},
	failing("logged out", pkcs11.CKR_USER_NOT_LOGGED_IN, insistently),
	failing("general error", pkcs11.CKR_GENERAL_ERROR, 1),
	failingAfter("done, then device error", pkcs11.CKR_DEVICE_ERROR),
}

// lethal is how many of them a member does not survive as it is.
const lethal = 4

// workerTable runs the cells on the first member of a domain. The others are
// sound.
type workerTable struct {
	shim *faultshim.Shim
	d    *Domain
	load *workload

	// what useAll uses
	pair, signer, secretKey   Material
	secret, digest, signature []byte
	tokens                    map[string][]byte // see readToken
	// worked is the nudge that helped last.
	worked int

	recoveries                               []time.Duration
	injected, lost, leaks, wrong, hung, died int
}

// TestTimedFaultTableOfWorkers is TestFaultTable for worker processes. With a second
// member not one request may fail.
func TestTimedFaultTableOfWorkers(t *testing.T) {
	plainBuild(t)
	for _, members := range []int{1, 2} {
		tb := newWorkerTable(t, members)
		t.Run(fmt.Sprint(members), func(t *testing.T) {
			t.Parallel() // most of it is waiting
			tb.run(t)
		})
	}
}

func newWorkerTable(t *testing.T, members int) *workerTable {
	t.Helper()
	cfg, _ := newDomainConfig(t, members)
	first := &cfg.Members[0]
	tb := &workerTable{shim: faultshim.ForOthers(t, first.Module)}
	first.Module = tb.shim.Module
	tb.readToken(t, first.Environment[0])
	first.Environment = append(first.Environment, tb.shim.Env...)
	for i := range cfg.Members {
		m := &cfg.Members[i]
		m.HandleCache, m.AsymmetricSessions, m.RecoveryWait = 4, 2, 500*time.Millisecond
	}
	// The keys of the load may take as long as they take.
	patient := openDomain(t, cfg)
	tb.load = newWorkload(t, patient)
	tb.pair = must(patient.Generate(t.Context(), "ECC_NIST_P256", UseAgree))(t)
	tb.secret = must(patient.Agree(t.Context(), tb.pair.EKT, tb.pair.PublicKey))(t)
	tb.signer, tb.digest = must(patient.Generate(t.Context(), "ECC_SECG_P256K1", UseSign))(t), make([]byte, 32)
	tb.signature = must(patient.Sign(t.Context(), tb.signer.EKT, "ECDSA_SHA_256", tb.digest))(t)
	tb.secretKey = must(patient.Generate(t.Context(), "SYMMETRIC_DEFAULT", UseEncrypt))(t)
	patient.Close()
	cfg.Limits = Limits{Call: 200 * time.Millisecond, Make: 5 * time.Second, Open: time.Second}
	tb.d = openDomain(t, cfg)
	tb.load.user, tb.load.think = tb.d, time.Millisecond // or the load leaves the cells no time
	// A worker that is new tries it with an RSA key of its own: too much for
	// machines with few cores, when there are hundreds of them.
	tb.load.ops[slices.IndexFunc(tb.load.ops, func(op loadOp) bool { return op.name == "import" })].weight = 0
	return tb
}

func (tb *workerTable) run(t *testing.T) {
	tb.serves(t)
	tb.load.healthy(t, 0)
	tb.load.failed.Store(0)
	tb.wantLive(t, "without any fault")
	ctx, stop := context.WithCancel(t.Context())
	wait := tb.load.run(ctx, 4)
	defer wait()
	var mending sync.WaitGroup
	mending.Go(func() { tb.mendToken(ctx, t) })
	defer mending.Wait()
	defer stop()
	before := tb.load.requests.Load()
	for _, function := range append(slices.Clone(onceOnly), tableFunctions...) {
		classes := workerClasses
		if len(tb.d.front.seats) > 1 {
			classes = classes[:lethal] // the rest shows with one
		}
		for _, c := range classes {
			if c.of == nil || slices.Contains(c.of, function) {
				tb.cell(t, function, c)
			}
		}
		tb.lost += tb.load.settle(t, 1, func() { tb.wantLive(t, function) })
		tb.worked = 0
	}
	tb.load.healthy(t, 0)
	slices.Sort(tb.recoveries)
	n, refused := len(tb.recoveries), tb.load.failed.Load()
	t.Logf("%d members: %d faults injected in %d cells (%d workers hung, %d died), %d requests meanwhile (%d refused), wrong results %d, lost keys %d, leaks %d, recovery p50 %s p99 %s max %s",
		len(tb.d.front.seats), tb.injected, n, tb.hung, tb.died, tb.load.requests.Load()-before, refused,
		tb.wrong, tb.lost, tb.leaks, tb.recoveries[n/2], tb.recoveries[n*99/100], tb.recoveries[n-1])
	if p99 := tb.recoveries[n*99/100]; p99 > soon {
		t.Errorf("recovery p99 %s", p99)
	}
	if tb.wrong+tb.lost+tb.leaks > 0 {
		t.Error("wrong results, lost keys or leaks")
	}
	if refused > 0 && len(tb.d.front.seats) > 1 {
		t.Errorf("%d requests failed although a second member was sound", refused)
	}
}

// cell has one kind of fault happen to one function.
func (tb *workerTable) cell(t *testing.T, function string, c faultClass) {
	t.Helper()
	name := function + ", " + c.name
	before := tb.shim.Injected()[function]
	happened := func() int { return tb.shim.Injected()[function] - before }
	hangs := counted(tb.d.front.stats.hangs, "m0")
	tb.shim.Set(function, c.fault)
	start := tb.provoke(function, c.fault.Times, happened)
	injected := happened()
	if injected == 0 {
		tb.shim.Clear()
		t.Errorf("%s: it did not happen", name)
		return
	}
	tb.injected += injected
	switch c.fault.Action {
	case faultshim.Hang:
		tb.wantKilled(t, name, hangs)
		tb.hung++
		start = time.Now()
	case faultshim.Crash:
		tb.died++
	default:
		start = time.Now()
	}
	tb.shim.Clear()
	tb.serves(t)
	tb.load.healthy(t, common)
	took := time.Since(start)
	if took > soon {
		t.Logf("%s: recovery took %s", name, took)
	}
	tb.recoveries = append(tb.recoveries, took)
	tb.load.paused.Lock()
	tb.load.paused.Unlock() //nolint:staticcheck // to wait is all
	for _, w := range tb.load.takeWrong() {
		tb.wrong++
		t.Errorf("%s: %s", name, w)
	}
}

// provoke nudges until a fault has happened as often as it is to. Once is
// enough where it is not soon repeated. It returns a moment before the first.
func (tb *workerTable) provoke(function string, times int, happened func() int) (start time.Time) {
	const atMost = 2 * time.Minute // for the first
	start = time.Now()             // it may have happened already
	end := start.Add(atMost)
	for try := 0; happened() < times && time.Now().Before(end); try++ {
		wait := 30 * time.Millisecond
		if happened() == 0 {
			start = time.Now()
			// Longer from round to round, or on a machine that does much else a
			// worker is killed before it comes to the function.
			wait *= time.Duration(1 + try/nudges)
		} else if try >= 6*nudges {
			break
		}
		kind := tb.worked + try
		tb.nudge(function, kind)
		for nudged := time.Now(); time.Since(nudged) < wait && happened() < times; {
			time.Sleep(time.Millisecond)
		}
		if happened() > 0 {
			tb.worked = kind % nudges
		}
	}
	return start
}

// nudge has functions called that the load does not call by itself, or not of
// this member: of making, of a session that is replaced, of recovery, and of a
// start.
func (tb *workerTable) nudge(function string, try int) {
	lose := func(code uint) {
		if function != "C_GenerateRandom" {
			tb.shim.Set("C_GenerateRandom", faultshim.Fault{Action: faultshim.Fail, Code: code, Times: 1})
			go tb.onFirst(func(ctx context.Context, d *Domain) { _ = d.Ping(ctx) })
		}
	}
	switch try % nudges {
	case 0:
		time.Sleep(10 * time.Millisecond) // the load does
	case 1:
		go tb.onFirst(tb.useAll)
	case 2:
		lose(pkcs11.CKR_SESSION_HANDLE_INVALID)
	case 3:
		lose(pkcs11.CKR_DEVICE_ERROR)
	case 4:
		if pid := workerOf(tb.d, 0); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// nudges is how many kinds there are.
const nudges = 5

// useAll makes and uses keys of the kinds that are seldom asked for.
func (tb *workerTable) useAll(ctx context.Context, d *Domain) {
	if secret, err := d.Agree(ctx, tb.pair.EKT, tb.pair.PublicKey); err == nil && !bytes.Equal(secret, tb.secret) {
		tb.load.accuse("agree: another shared secret")
	}
	_ = d.VerifySignature(ctx, "ECC_SECG_P256K1", tb.signer.PublicKey, "ECDSA_SHA_256", tb.digest, tb.signature)
	if made, err := d.Generate(ctx, "ECC_NIST_P256", UseSign); err == nil {
		tb.load.keep(made)
	}
	_, _, _ = d.GenerateDataKeyPair(ctx, "ECC_NIST_P256")
	if value, err := d.CheckValue(ctx, tb.secretKey.EKT); err == nil && !bytes.Equal(value, tb.secretKey.CheckValue) {
		tb.load.accuse("check value: another key's")
	}
}

// onFirst makes calls to the first member, wherever others would go.
func (tb *workerTable) onFirst(use func(context.Context, *Domain)) {
	for range 100 {
		if target := tb.d.front.seats[0].target.Load(); target != nil {
			ctx, cancel := context.WithTimeout(background, 500*time.Millisecond)
			defer cancel()
			use(ctx, &Domain{members: target})
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// wantKilled waits for the end of a worker that hangs. hangs is how many did
// before it.
func (tb *workerTable) wantKilled(t *testing.T, name string, hangs float64) {
	t.Helper()
	stats := tb.d.front.stats
	starts := counted(stats.starts, "m0") // one that hangs as it recovers is replaced
	for end := time.Now().Add(10 * time.Second); counted(stats.hangs, "m0") == hangs && counted(stats.starts, "m0") == starts; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%s: the worker that hangs was not killed", name)
			return
		}
	}
}

func counted(vec *prometheus.CounterVec, member string) float64 {
	var m dto.Metric
	_ = vec.WithLabelValues(member).Write(&m)
	return m.GetCounter().GetValue()
}

// serves waits until the first member does.
func (tb *workerTable) serves(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * soon); !tb.d.Health()[0].Serves; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the member does not serve: %v", tb.d.Health()[0].Err)
		}
	}
}

// readToken keeps SoftHSM's files of tokens as they are.
func (tb *workerTable) readToken(t *testing.T, environment string) {
	t.Helper()
	pattern := filepath.Join(filepath.Dir(strings.TrimPrefix(environment, "SOFTHSM2_CONF=")), "tokens", "*", "token.object")
	tb.tokens = map[string][]byte{}
	for _, path := range must(filepath.Glob(pattern))(t) {
		tb.tokens[path] = must(os.ReadFile(path))(t)
	}
}

// mendToken puts them back until ctx ends: SoftHSM writes them in place at each
// login, so that the end of its process at that moment ruins the token, which is
// no HSM's way.
func (tb *workerTable) mendToken(ctx context.Context, t *testing.T) {
	for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if !errors.Is(tb.d.Health()[0].Err, ErrTokenNotFound) {
			continue
		}
		for path, content := range tb.tokens {
			if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, content) {
				continue
			}
			t.Logf("SoftHSM left %s in pieces", filepath.Base(path))
			if err := errors.Join(os.WriteFile(path+".new", content, 0o600), os.Rename(path+".new", path)); err != nil {
				t.Errorf("mending the token: %v", err)
			}
		}
	}
}

// wantLive compares what the live worker has on the device with what it knows
// of.
func (tb *workerTable) wantLive(t *testing.T, when string) {
	t.Helper()
	var spareSessions, spareObjects int
	for end := time.Now().Add(30 * soon); time.Now().Before(end); {
		// Each lane's sessions clean up at their next call.
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() { tb.onFirst(tb.useAll) })
		}
		group.Wait()
		known, err := tb.known()
		sessions, objects := tb.shim.Live()
		spareSessions = sessions - known["trent_hsm_sessions"] - 1        // crypto11's for the login
		spareObjects = objects - known["trent_hsm_handle_cache_size"] - 1 // the probe
		if err == nil && spareSessions >= -1 && spareSessions <= 1 && spareObjects == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	tb.leaks++
	t.Errorf("%s: %d sessions and %d objects live that the worker does not know of", when, spareSessions, spareObjects)
}

// known is what the worker has counted.
func (tb *workerTable) known() (map[string]int, error) {
	target := tb.d.front.seats[0].target.Load()
	if target == nil {
		return nil, ErrUnavailable
	}
	samples, err := target.samples()
	known := map[string]int{}
	for _, s := range samples {
		known[s.Name] += int(s.Value)
	}
	return known, err
}
