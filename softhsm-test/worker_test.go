package softhsmtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// workers are the server's worker processes.
func (s *server) workers(t *testing.T) []int {
	t.Helper()
	var found []int
	for _, path := range must(filepath.Glob("/proc/[0-9]*/stat"))(t) {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if parent, _ := strconv.Atoi(fields[1]); parent == s.cmd.Process.Pid && fields[0] != "Z" {
			found = append(found, must(strconv.Atoi(filepath.Base(filepath.Dir(path))))(t))
		}
	}
	return found
}

// A worker that is killed costs no call an error; the PIN is nowhere that
// others could see it; all end with the server.
func TestWorkerKilledUnderLoad(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	c := d.client(t)
	key := createKey(t, c)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	for range 8 {
		go func() {
			for n := 0; ctx.Err() == nil; n++ {
				plain := fmt.Appendf(nil, "message %d", n)
				sealed, err := c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: plain})
				if err != nil {
					done <- err
					return
				}
				opened, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
				if err != nil || !bytes.Equal(opened.Plaintext, plain) {
					done <- fmt.Errorf("decrypting %q: %w", plain, err)
					return
				}
			}
			done <- nil
		}()
	}
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGKILL} {
		time.Sleep(300 * time.Millisecond)
		var workers []int
		eventually(t, "one worker", func() bool { workers = s.workers(t); return len(workers) == 1 })
		for _, name := range []string{"cmdline", "environ"} {
			if text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", workers[0], name)); bytes.Contains(text, []byte(userPIN)) {
				t.Errorf("the PIN is in the worker's %s", name)
			}
		}
		must(0, syscall.Kill(workers[0], signal))(t)
		eventually(t, "a new worker", func() bool { now := s.workers(t); return len(now) == 1 && now[0] != workers[0] })
	}
	time.Sleep(300 * time.Millisecond)
	stop()
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	last := s.workers(t)
	must(0, s.stop())(t)
	for _, pid := range last {
		eventually(t, "the end of the server's worker", func() bool { return syscall.Kill(pid, 0) != nil })
	}
}

// A worker that dies on the way to a new key costs that call, and no other;
// nothing half-made is kept.
func TestWorkerCrashes(t *testing.T) {
	d, key, blob := stoppedWithKey(t)
	for _, point := range []string{"hbk.generated", "hbk.wrapped"} {
		t.Run(point, func(t *testing.T) {
			s := d.serve(t, "TRENT_FAILPOINT="+point)
			c := d.client(t)
			_, err := c.CreateKey(context.Background(), &kms.CreateKeyInput{})
			if err == nil {
				t.Fatal("a key was made by a worker that dies")
			}
			wantDecrypt(t, c, blob, marker, nil)
			encrypt(t, c, *key.KeyId, marker, nil)
			if keys := wantAllKeysWork(t, c); len(keys) != 1 {
				t.Errorf("%d keys, want 1", len(keys))
			}
			must(0, s.stop())(t)
			d.wantNoOrphans(t)
			d.wantChains(t)
		})
	}
}
