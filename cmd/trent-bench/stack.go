package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"

	"github.com/trent-kms/trent/internal/pgcluster"
	"github.com/trent-kms/trent/internal/softhsm"
)

const (
	account    = "111122223333"
	region     = "us-east-1"
	userPIN    = "1234-bench"
	officerPIN = "5678-bench"
)

// stack is what the figures are measured on, in a folder that close removes.
type stack struct {
	dir    string
	module string
	tokens softhsm.Folder
	pg     *pgcluster.Cluster
	trent  string // path of the binary
	procs  []*server
}

// server is a process of the benchmark.
type server struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
}

// endTimeout is how long a server may take to end when asked: trent lets idle
// connections go and writes its audit log.
const endTimeout = 30 * time.Second

// end asks the server to end. One that does not is killed, which is an error.
func (p *server) end() error {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.ended:
		return nil
	case <-time.After(endTimeout):
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
	return fmt.Errorf("ending %s: still running after %s", p.name, endTimeout)
}

// newStack makes two tokens, one for the device's figures and one for the
// service, and a Postgres cluster.
func newStack(ctx context.Context, trent string) (*stack, error) {
	module, err := softhsm.Module()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "trent-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	s := &stack{dir: dir, module: module, trent: trent}
	if err := s.fill(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stack) fill(ctx context.Context) (err error) {
	if err := os.Chmod(s.dir, 0o711); err != nil { // #nosec G302 -- Postgres runs as another user when we are root
		return fmt.Errorf("opening the folder: %w", err)
	}
	if err := s.findTrent(ctx); err != nil {
		return err
	}
	if s.tokens, err = softhsm.Open(filepath.Join(s.dir, "softhsm")); err != nil {
		return err
	}
	// The module reads it when it is initialised; trent inherits it.
	if err := os.Setenv("SOFTHSM2_CONF", s.tokens.Conf); err != nil {
		return fmt.Errorf("naming the SoftHSM configuration: %w", err)
	}
	for _, label := range []string{"device", "service"} {
		if err := s.tokens.InitToken(ctx, label, []byte(officerPIN), []byte(userPIN)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(s.path("pin"), []byte(userPIN), 0o600); err != nil {
		return fmt.Errorf("writing the PIN: %w", err)
	}
	s.pg, err = pgcluster.Start(ctx, pgcluster.Config{Dir: s.path("postgres"), Unsynced: true})
	return err
}

func (s *stack) path(name string) string { return filepath.Join(s.dir, name) }

// findTrent takes the binary beside this program, or builds one.
func (s *stack) findTrent(ctx context.Context) error {
	if s.trent != "" {
		return nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "trent")
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			s.trent = beside
			return nil
		}
	}
	s.trent = s.path("trent")
	build := exec.CommandContext(ctx, "go", "build", "-o", s.trent, "github.com/trent-kms/trent/cmd/trent") // #nosec G204 -- our own path
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building trent (or name it with --trent): %w: %s", err, out)
	}
	return nil
}

func (s *stack) close() error {
	var faults []error
	for _, p := range s.procs {
		faults = append(faults, p.end())
	}
	if s.pg != nil {
		faults = append(faults, s.pg.Stop())
	}
	return errors.Join(append(faults, os.RemoveAll(s.dir))...)
}

// start runs a server of the benchmark; it dies with us.
func (s *stack) start(ctx context.Context, name string, env []string, program string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(s.path(name + ".log"))
	if err != nil {
		return nil, fmt.Errorf("making a log: %w", err)
	}
	defer log.Close()                                                        //nolint:errcheck // the server holds it open itself
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, args...) // #nosec G204 -- ourselves or trent
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &server{name: name, cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The death signal follows the thread that started the server, not the
		// process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	s.procs = append(s.procs, p)
	return cmd, nil
}

// wait returns when url answers 200.
func (s *stack) wait(ctx context.Context, name, url string) error {
	for range 600 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("asking %s: %w", name, err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	log, _ := os.ReadFile(s.path(name + ".log"))
	return fmt.Errorf("%s is not ready after 30 s:\n%s", name, log)
}

// startBare runs the server that the service is compared with, as a process
// of its own like the service.
func (s *stack) startBare(ctx context.Context) (*target, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	cmd, err := s.start(ctx, "bare", nil, self, "bare", "--listen", address)
	if err != nil {
		return nil, err
	}
	if err := s.wait(ctx, "bare", "http://"+address+"/"); err != nil {
		return nil, err
	}
	return &target{address: address, pid: cmd.Process.Pid, jobs: []job{bareJob}}, nil
}

var (
	accessKeyID = regexp.MustCompile(`\bAKIA[A-Z2-7]{16}\b`)
	accessKey   = regexp.MustCompile(`(?:^|[^A-Za-z0-9+/])([A-Za-z0-9+/]{40})(?:$|[^A-Za-z0-9+/])`)
)

// startTrent makes a deployment and serves it.
func (s *stack) startTrent(ctx context.Context) (*target, error) {
	env := []string{
		"TRENT_HSM_MODULE=" + s.module, "TRENT_HSM_TOKEN=service", "TRENT_PIN_FILE=" + s.path("pin"),
		"TRENT_DATABASE_URL=" + s.pg.URL("postgres"),
		"TRENT_ACCOUNT=" + account, "TRENT_REGIONS=" + region, "TRENT_HOST=bench",
	}
	setup := exec.CommandContext(ctx, s.trent, "init") // #nosec G204 -- our own binary
	setup.Env = append(os.Environ(), env...)
	out, err := setup.CombinedOutput()
	id, secret := accessKeyID.Find(out), accessKey.FindSubmatch(out)
	if err != nil || id == nil || secret == nil {
		return nil, fmt.Errorf("setting the service up: %w: %s", err, bytes.TrimSpace(out))
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	admin, err := freeAddress()
	if err != nil {
		return nil, err
	}
	cmd, err := s.start(ctx, "trent", append(env, "TRENT_LISTEN="+address, "TRENT_ADMIN_LISTEN="+admin), s.trent, "serve")
	if err != nil {
		return nil, err
	}
	if err := s.wait(ctx, "trent", "http://"+admin+"/readyz"); err != nil {
		return nil, err
	}
	postmaster, err := s.postmaster()
	if err != nil {
		return nil, err
	}
	t := &target{address: address, pid: cmd.Process.Pid, postgres: postmaster, credentials: credentials{string(id), string(secret[1])}}
	return t, t.makeJobs(ctx)
}

// postmaster is the process id of the cluster's first process.
func (s *stack) postmaster() (int, error) {
	lock, err := os.ReadFile(filepath.Join(s.path("postgres"), "data", "postmaster.pid"))
	if err != nil {
		return 0, fmt.Errorf("finding Postgres: %w", err)
	}
	var pid int
	if _, err := fmt.Sscan(string(lock), &pid); err != nil {
		return 0, fmt.Errorf("reading the process id of Postgres: %w", err)
	}
	return pid, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
