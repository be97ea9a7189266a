package hsm

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// traceVariable has this binary trace a process until its input ends.
const traceVariable = "TRENT_TEST_TRACE"

func traceForTest(process string) {
	runtime.LockOSThread()
	pid, err := strconv.Atoi(process)
	if err == nil {
		err = unix.PtraceSeize(pid)
	}
	fmt.Println("traced:", err)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// traceWorker has a member's worker traced by a process that does not look
// after it. Once killed it does not end for its parent before release, like one
// that waits in the kernel for a driver.
func traceWorker(t *testing.T, d *Domain, member int) (pid int, release func()) {
	t.Helper()
	pid = workerOf(d, member)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", traceVariable, pid))
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if inErr != nil || outErr != nil {
		t.Fatal(inErr, outErr)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release = func() { _ = in.Close(); _ = cmd.Wait() }
	t.Cleanup(release)
	said := make([]byte, 100)
	if n, err := out.Read(said); err != nil || !strings.HasPrefix(string(said[:n]), "traced: <nil>") {
		t.Fatalf("%s, %v", said[:n], err)
	}
	return pid, release
}

// TestWorkersThatDoNotEnd are left behind, and a successor serves. There are
// only so many: then the member waits until one of them ends.
func TestWorkersThatDoNotEnd(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	d := openDomain(t, cfg)
	var release []func()
	for n := range mostLeft {
		pid, end := traceWorker(t, d, 0)
		release = append(release, end)
		signalWorker(t, d, 0, syscall.SIGKILL)
		eventually(t, "a successor, or no more of them", func() bool {
			h := d.Health()[0]
			if n == mostLeft-1 {
				return strings.Contains(h.Reason, "no more is started")
			}
			return h.Serves && workerOf(d, 0) != pid
		})
	}
	release[0]()
	eventually(t, "a successor when one has ended", func() bool { return d.Health()[0].Serves })

	_, end := traceWorker(t, d, 0)
	defer end()
	began := time.Now()
	d.Close()
	if took := time.Since(began); took > endTimeout+2*killTimeout+20*time.Second {
		t.Errorf("closing took %s", took)
	}
}

// TestEndedProcessIsGone: that it is gone counts, however short one waits.
func TestEndedProcessIsGone(t *testing.T) {
	p := &process{ended: make(chan struct{})}
	close(p.ended)
	for range 1000 {
		if !p.gone(0) {
			t.Fatal("a process that has ended is not gone")
		}
	}
}
