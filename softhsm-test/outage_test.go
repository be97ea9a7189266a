package softhsmtest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// sdkLoad is callers of the SDK, with its own retries, that look at every
// answer until they are stopped.
func sdkLoad(t *testing.T, c *kms.Client, keyID *string, callers int) (calls *atomic.Int64, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	calls = new(atomic.Int64)
	done := make(chan error)
	for i := range callers {
		go func() {
			var err error
			for n := 0; ctx.Err() == nil && err == nil; n++ {
				err = sdkRoundTrip(c, keyID, fmt.Appendf(nil, "message %d of %d", n, i))
				calls.Add(2)
			}
			done <- err
		}()
	}
	return calls, func() {
		cancel()
		for range callers {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
}

func sdkRoundTrip(c *kms.Client, keyID *string, plain []byte) error {
	sealed, err := c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: keyID, Plaintext: plain})
	if err != nil {
		return err
	}
	opened, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
	if err != nil {
		return err
	}
	if !bytes.Equal(opened.Plaintext, plain) {
		return fmt.Errorf("%q was decrypted to %q", plain, opened.Plaintext)
	}
	return nil
}

// memberState is the line of /readyz, whatever its status.
func (s *server) memberState() (status int, member string) {
	status, body := get(s.adminURL + "/readyz")
	for line := range strings.Lines(string(body)) {
		if state, found := strings.CutPrefix(line, "member "); found {
			member = strings.TrimSpace(state)
		}
	}
	return status, member
}

// wantAnswer waits for a call to succeed.
func wantAnswer(t *testing.T, calls *atomic.Int64) {
	t.Helper()
	began := time.Now()
	for before := calls.Load(); calls.Load() == before; time.Sleep(time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("no call is answered any more")
		}
	}
}

// What becomes of the real module's process costs no caller
// of the SDK an error, and readiness says what it is.
func TestOutagesUnderLoad(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t, "TRENT_HSM_DEADLINE=500ms")
	c := d.client(t)
	key := createKey(t, c)
	calls, stop := sdkLoad(t, c, key.KeyId, 8)
	wantAnswer(t, calls)
	signal := func(signal syscall.Signal) int {
		workers := s.workers(t)
		for ; len(workers) == 0; workers = s.workers(t) {
			time.Sleep(5 * time.Millisecond)
		}
		pid := workers[0]
		must(0, syscall.Kill(pid, signal))(t)
		return pid
	}
	t.Run("killed", func(t *testing.T) {
		signal(syscall.SIGKILL)
		s.wantBack(t, calls)
	})
	t.Run("stopped for a moment", func(t *testing.T) {
		pid := signal(syscall.SIGSTOP)
		time.Sleep(100 * time.Millisecond)
		_ = syscall.Kill(pid, syscall.SIGCONT)
		s.wantBack(t, calls)
	})
	t.Run("stopped for good", func(t *testing.T) {
		pid := signal(syscall.SIGSTOP)
		for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the worker that hangs was not killed")
			}
		}
		s.wantBack(t, calls)
	})
	stop()
	if hangs := s.metric(t, "trent_hsm_worker_hangs_total"); hangs < 1 {
		t.Errorf("%v workers hung", hangs)
	}
	must(0, s.stop())(t)
	d.wantChains(t)
}

// wantBack demands answers of a member that is ready.
func (s *server) wantBack(t *testing.T, calls *atomic.Int64) {
	t.Helper()
	took := eventually(t, "the member being ready", func() bool {
		wantAnswer(t, calls)
		_, member := s.memberState()
		return strings.HasSuffix(member, ": ready") && len(s.workers(t)) == 1
	})
	wantAnswer(t, calls)
	t.Logf("recovery took %s", took)
	wantStatus(t, s.adminURL+"/readyz", 200)
}
