package hsm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a worker process: this binary again, with a socket pair as its
// only tie to this one. Neither its arguments nor its environment hold secrets.
type process struct {
	conn *net.UnixConn
	log  *slog.Logger
	cmd  *exec.Cmd

	once   sync.Once
	killed atomic.Bool
	ended  chan struct{} // closed when the process is gone
}

// workerSocket is the worker's file descriptor of the socket pair.
const workerSocket = 3

// thisBinary stays the running binary even while it is being replaced.
const thisBinary = "/proc/self/exe"

// startWorker starts this binary, by the name that it was started by.
func startWorker(environment []string, log *slog.Logger) (*process, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("%w: making a socket pair for the worker process: %w", ErrUnavailable, err)
	}
	defer theirs.Close() //nolint:errcheck // the worker has its own copy
	stderr, worker, err := os.Pipe()
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("%w: making a pipe for the worker process: %w", ErrUnavailable, err)
	}
	defer worker.Close() //nolint:errcheck // the worker has its own copy
	cmd := exec.Command(thisBinary)
	cmd.Args = []string{os.Args[0], "hsm-worker"}
	cmd.Env = append(os.Environ(), environment...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = worker
	// Of a group of its own: a Ctrl-C is for this process, which lets calls end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p := &process{conn: ours, cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go p.mind(started)
	if err := <-started; err != nil {
		_, _ = ours.Close(), stderr.Close()
		return nil, fmt.Errorf("%w: starting the worker process: %w", ErrUnavailable, err)
	}
	p.log = log.With("worker", cmd.Process.Pid)
	go relay(stderr, p.log)
	return p, nil
}

// mind starts the process and waits for its end on one thread: the kernel
// sends the parent's death signal when the thread ends that made the child.
func (p *process) mind(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	_ = p.cmd.Wait() // how it ended is of no use: the socket tells that it did
	close(p.ended)
}

func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(fds[1]), "worker")
	ours, err = socketOf(fds[0])
	if err != nil {
		_ = theirs.Close()
	}
	return ours, theirs, err
}

// socketOf takes over a file descriptor.
func socketOf(fd int) (*net.UnixConn, error) {
	for _, option := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1<<20) // less will do
	}
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close() //nolint:errcheck // the connection has its own copy
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// kill ends the process at once; also one that was stopped.
func (p *process) kill() {
	p.once.Do(func() {
		p.killed.Store(true)
		_ = p.cmd.Process.Kill()
		_ = p.conn.Close()
	})
}

// endTimeout is how long a worker may take to close its token, killTimeout how
// long to be gone when it was killed.
const (
	endTimeout  = 5 * time.Second
	killTimeout = 2 * time.Second
)

// end lets the process log out and end, and kills it if it does not. One that
// waits in the kernel for a driver ends only when that lets it go: it is left
// behind, which end reports.
func (p *process) end() (left bool) {
	if !p.killed.Load() {
		_ = p.conn.CloseWrite()
		p.gone(endTimeout)
	}
	p.kill()
	if p.gone(killTimeout) {
		return false
	}
	p.log.Error("a worker that was killed does not end: it waits in the kernel, as for the driver of the HSM, and is left behind; look at the kernel's log, and reset the device or restart this machine")
	return true
}

func (p *process) gone(within time.Duration) bool {
	select {
	case <-p.ended:
		return true
	case <-time.After(within):
	}
	select { // where both came, either may have been chosen
	case <-p.ended:
		return true
	default:
		return false
	}
}

// leftBehind are the workers of a member that were killed and have not ended.
type leftBehind struct {
	mu   sync.Mutex
	list []*process
}

// mostLeft is how many there may be: each has a thread of this process, and
// whatever it holds of the device.
const mostLeft = 4

func (l *leftBehind) add(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, p)
}

// full is an error when there may be no more.
func (l *leftBehind) full() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = slices.DeleteFunc(l.list, func(p *process) bool { return p.gone(0) })
	if len(l.list) < mostLeft {
		return nil
	}
	return fmt.Errorf("%w: %d killed workers of this member wait in the kernel and do not end, so no more is started: reset the device or restart this machine",
		ErrUnavailable, len(l.list))
}

// relay passes on what the worker logs, which is slog's JSON, and what a
// vendor's library prints.
func relay(stderr *os.File, log *slog.Logger) {
	defer stderr.Close() //nolint:errcheck // it was read to its end
	lines := bufio.NewReaderSize(stderr, 64<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			relayLine(line, log)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if !errors.Is(err, io.EOF) {
				log.Warn("reading what the worker prints", "error", err)
			}
			return
		}
	}
}

func relayLine(line []byte, log *slog.Logger) {
	var record map[string]any
	var level slog.Level
	if err := json.Unmarshal(line, &record); err != nil || record[slog.MessageKey] == nil {
		log.Warn("printed by the worker", "line", string(line))
		return
	}
	name, _ := record[slog.LevelKey].(string)
	_ = level.UnmarshalText([]byte(name))
	message, _ := record[slog.MessageKey].(string)
	for _, key := range []string{slog.LevelKey, slog.MessageKey, slog.TimeKey} {
		delete(record, key)
	}
	var attrs []any
	for _, key := range slices.Sorted(maps.Keys(record)) {
		attrs = append(attrs, slog.Any(key, record[key]))
	}
	log.Log(background, level, message, attrs...)
}
