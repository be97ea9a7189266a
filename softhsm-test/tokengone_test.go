package softhsmtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
)

// outageLoad is callers who look at every answer, and go on after an error of
// AWS's.
type outageLoad struct {
	succeeded atomic.Int64
	mu        sync.Mutex
	refused   map[string]int // by error code
	wrong     []error
}

func startOutageLoad(c *kms.Client, keyID *string, callers int) (l *outageLoad, stop func()) {
	l = &outageLoad{refused: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.note(sdkRoundTrip(c, keyID, fmt.Appendf(nil, "message %d of %d", n, i)))
			}
		})
	}
	return l, func() { cancel(); group.Wait() }
}

func (l *outageLoad) note(err error) {
	if err == nil {
		l.succeeded.Add(1)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var api smithy.APIError
	if !errors.As(err, &api) {
		l.wrong = append(l.wrong, err)
		return
	}
	l.refused[api.ErrorCode()]++
}

func (l *outageLoad) refusals() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.refused)
}

// eventually waits for something to become so, and returns how long that took.
// How long it may take TestTimed… of package hsm say, which run alone.
func eventually(t *testing.T, what string, so func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for ; !so(); time.Sleep(2 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("%s: not after a minute", what)
		}
	}
	return time.Since(began).Round(time.Millisecond)
}

// lose moves the folder of tokens away, and kills the workers, since SoftHSM
// goes on with what it has read.
func (s *server) lose(t *testing.T, tokens string) {
	t.Helper()
	must(0, os.Rename(tokens, tokens+".away"))(t)
	for _, pid := range s.workers(t) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (s *server) wantAlive(t *testing.T) {
	t.Helper()
	select {
	case <-s.exited:
		t.Fatalf("trent serve ended: %s", s.cmd.ProcessState)
	default:
	}
}

// TestTokenGoneAndBack: while the only token is away calls fail with AWS's
// errors and readiness says so; it comes back without a restart.
func TestTokenGoneAndBack(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	c := newClient(d.url, d.admin, nil) // without the HSM there are no sealed records of what is refused
	load, stop := startOutageLoad(c, createKey(t, c).KeyId, 4)
	defer stop()
	eventually(t, "the first answer", func() bool { return load.succeeded.Load() > 0 })
	if refused := load.refusals(); len(refused) > 0 {
		t.Errorf("refused without any fault: %v", refused)
	}
	tokens := filepath.Join(filepath.Dir(d.conf), "tokens")
	for range 2 {
		s.lose(t, tokens)
		var status int
		var member string
		refused := len(load.refusals())
		eventually(t, "readiness telling", func() bool {
			status, member = s.memberState()
			return status == 503
		})
		if strings.HasSuffix(member, ": ready") {
			t.Errorf("without its token readiness says of the member %q", member)
		}
		t.Logf("without its token readiness says %q", member)
		eventually(t, "a refusal", func() bool { return len(load.refusals()) >= max(refused, 1) })

		must(0, os.Rename(tokens+".away", tokens))(t)
		before := load.succeeded.Load()
		took := eventually(t, "the first answer after the token came back", func() bool { return load.succeeded.Load() > before })
		took += eventually(t, "the member being ready", func() bool {
			_, member = s.memberState()
			return strings.HasSuffix(member, ": ready")
		})
		t.Logf("healthy %s after the token came back", took)
		eventually(t, "readiness, which is kept for a second", func() bool {
			status, _ = s.memberState()
			return status == 200
		})
		time.Sleep(2 * time.Second) // the recovery is not to count as a repetition
	}
	stop()
	s.wantAlive(t)
	for code, n := range load.refusals() {
		if code != "KeyUnavailableException" && code != "DependencyTimeoutException" {
			t.Errorf("%d calls were refused by %s", n, code)
		}
	}
	for _, err := range load.wrong {
		t.Errorf("not an answer of AWS's: %v", err)
	}
	t.Logf("%d calls succeeded, %v", 2*load.succeeded.Load(), load.refusals())
	must(0, s.stop())(t)
	d.wantChains(t)
}

// TestOneOfTwoTokensGoneAndBack: with a second member no call fails.
func TestOneOfTwoTokensGoneAndBack(t *testing.T) {
	d := newDeployment(t, "")
	confs := map[string]string{"first": d.conf, "second": d.another(t, "second")}
	d.enrolled(t, "2", confs)
	s := d.serve(t)
	c := d.client(t)
	load, stop := startOutageLoad(c, createKey(t, c).KeyId, 4)
	defer stop()
	d.until(t, "sealing rows anew", func(all map[int64]generationStatus) bool { return all[1].SealedRows == 0 })
	ready := func(name string) bool {
		_, body := get(s.adminURL + "/readyz")
		return strings.Contains(string(body), "member "+name+": ready")
	}
	for name, conf := range confs {
		tokens := filepath.Join(filepath.Dir(conf), "tokens")
		s.lose(t, tokens)
		eventually(t, "readiness telling", func() bool { return !ready(name) })
		before := load.succeeded.Load()
		time.Sleep(4 * time.Second) // more than calls wait for a member
		if load.succeeded.Load() == before {
			t.Errorf("without %s nothing is answered", name)
		}
		wantStatus(t, s.adminURL+"/readyz", 200)
		must(0, os.Rename(tokens+".away", tokens))(t)
		t.Logf("%s served %s after its token came back", name, eventually(t, "its return", func() bool { return ready(name) }))
	}
	stop()
	s.wantAlive(t)
	if refused := load.refusals(); len(refused)+len(load.wrong) > 0 {
		t.Errorf("with a second member: %v, %v", refused, load.wrong)
	}
	t.Logf("%d calls succeeded", 2*load.succeeded.Load())
	must(0, s.stop())(t)
	d.wantChains(t)
}
