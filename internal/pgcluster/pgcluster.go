// Package pgcluster runs a private Postgres cluster: its own data folder, a
// Unix socket in a folder that only its user can enter, no TCP port. It is
// what `trent dev` and the tests use; a server that is already on the machine
// is neither used nor disturbed. The durable settings stay on.
package pgcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// superuser is the cluster's one role. Whoever can enter the socket's
	// folder is trusted with it.
	superuser = "trent"
	port      = "5432"
	// longestSocket is what sun_path holds, less its NUL.
	longestSocket = 107
)

// Config says where a cluster lives.
type Config struct {
	// Dir holds data, log and socket. Made if missing, as the server's user.
	Dir string
	// Unsynced skips initdb's own flush to disk: for data that nobody keeps.
	// The server's settings are durable all the same.
	Unsynced bool
}

// Cluster is a running server. Its methods may not be called concurrently.
type Cluster struct {
	dir    string
	bin    string
	socket string // folder of the Unix socket
	as     *syscall.Credential
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
}

// Reaches reports whether the server's user can enter dir, which must exist:
// as root, the server runs as postgres.
func Reaches(ctx context.Context, dir string) (bool, error) {
	as, err := serverUser()
	if err != nil {
		return false, err
	}
	return reaches(ctx, dir, as), nil
}

// Start makes the cluster if Dir is empty, and runs it. It ends by itself
// when this process dies. The variables by which the machine's own Postgres is
// reached (PGSERVICE, PGOPTIONS, …) are taken from this process's environment:
// clients add to a URL what they find there.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := forgetOthers(); err != nil {
		return nil, err
	}
	bin, err := binaries(ctx)
	if err != nil {
		return nil, err
	}
	as, err := serverUser()
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("naming cluster folder: %w", err)
	}
	c := &Cluster{dir: dir, bin: bin, as: as}
	if err := c.ownFolder(dir); err != nil {
		return nil, err
	}
	if err := c.initdb(ctx, cfg.Unsynced); err != nil {
		return nil, err
	}
	if err := evict(ctx, c.data()); err != nil {
		return nil, err
	}
	if err := c.chooseSocket(); err != nil {
		return nil, err
	}
	if err := c.run(ctx); err != nil {
		c.removeSocket()
		return nil, err
	}
	return c, nil
}

func forgetOthers() error {
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(name, "PG") {
			continue
		}
		if err := os.Unsetenv(name); err != nil {
			return fmt.Errorf("forgetting %s: %w", name, err)
		}
	}
	return nil
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }
func (c *Cluster) log() string  { return filepath.Join(c.dir, "postgres.log") }

// ownFolder makes dir, which only the server's user can enter.
func (c *Cluster) ownFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making folder for Postgres: %w", err)
	}
	if c.as == nil {
		return nil
	}
	if err := os.Chown(dir, int(c.as.Uid), int(c.as.Gid)); err != nil {
		return fmt.Errorf("giving %s to the user that Postgres runs as: %w", dir, err)
	}
	return nil
}

// initdb makes the data folder in one rename, so that an interrupted run
// leaves none that looks complete.
func (c *Cluster) initdb(ctx context.Context, unsynced bool) error {
	if _, err := os.Stat(filepath.Join(c.data(), "PG_VERSION")); err == nil {
		return nil
	}
	fresh := c.data() + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("clearing half-made cluster: %w", err)
	}
	args := []string{"-D", fresh, "-U", superuser, "-E", "UTF8", "--no-locale", "--auth=trust"}
	if unsynced {
		args = append(args, "--no-sync")
	}
	cmd := c.command(ctx, "initdb", args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making Postgres cluster in %s: %w: %s", c.dir, err, bytes.TrimSpace(out))
	}
	if err := os.Rename(fresh, c.data()); err != nil {
		return fmt.Errorf("putting Postgres cluster in place: %w", err)
	}
	return nil
}

// command is a server program in a process group of its own, so that Ctrl-C
// reaches this process alone, which then stops the server in order.
func (c *Cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, name), args...) // #nosec G204 -- a server program, arguments not through a shell
	cmd.Dir = c.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.as, Setpgid: true}
	return cmd
}

// chooseSocket puts the socket into the cluster's folder, or into a short
// temporary one where the path would be too long for a socket.
func (c *Cluster) chooseSocket() error {
	c.socket = c.dir
	if len(filepath.Join(c.dir, ".s.PGSQL."+port)) <= longestSocket {
		return nil
	}
	dir, err := os.MkdirTemp("/tmp", "trent-pg-")
	if err != nil {
		return fmt.Errorf("making folder for the Postgres socket: %w", err)
	}
	c.socket = dir
	return c.ownFolder(dir)
}

func (c *Cluster) removeSocket() {
	if c.socket != c.dir {
		_ = os.RemoveAll(c.socket)
	}
}

// openLog opens the server's log. As root this process does so in a folder of
// another user, who must not choose the file by a link: O_NOFOLLOW refuses a
// symbolic one, the count of links a hard one. It does not wait for the reader
// of a pipe.
func (c *Cluster) openLog() (*os.File, error) {
	const flags = os.O_CREATE | os.O_WRONLY | os.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK
	log, err := os.OpenFile(c.log(), flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening Postgres log: %w", err)
	}
	var stat unix.Stat_t
	err = unix.Fstat(int(log.Fd()), &stat)
	if err == nil && (stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Nlink != 1) {
		err = errors.New("it is a link or no file: remove it")
	}
	if err != nil {
		_ = log.Close()
		return nil, fmt.Errorf("opening Postgres log %s: %w", c.log(), err)
	}
	return log, nil
}

// run starts the server and waits until it answers.
func (c *Cluster) run(ctx context.Context) error {
	log, err := c.openLog()
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the server holds it open itself
	// Not bound to ctx: the server is stopped in order, by Stop.
	cmd := c.command(context.WithoutCancel(ctx), "postgres", "-D", c.data(),
		"-c", "listen_addresses=", "-c", "port="+port,
		"-c", "unix_socket_directories="+c.socket, "-c", "unix_socket_permissions=0700",
		"-c", "fsync=on", "-c", "full_page_writes=on", "-c", "synchronous_commit=on",
		"-c", "max_connections=200", "-c", "logging_collector=off")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Pdeathsig = syscall.SIGINT
	c.cmd, c.exited = cmd, make(chan struct{})
	started := make(chan error)
	go func() {
		// The death signal follows the thread that started the server, not
		// the process: keep that thread for as long as the server runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting Postgres: %w", err)
	}
	if err := c.wait(ctx); err != nil {
		return errors.Join(err, c.kill())
	}
	return nil
}

// wait returns when the server accepts connections.
func (c *Cluster) wait(ctx context.Context) error {
	deadline := time.After(60 * time.Second)
	for {
		if c.ready() {
			return nil
		}
		select {
		case <-c.exited:
			return fmt.Errorf("starting Postgres: it ended at once; its reason is in %s", c.log())
		case <-deadline:
			return fmt.Errorf("starting Postgres: no answer after 60 s; see %s", c.log())
		case <-ctx.Done():
			return fmt.Errorf("starting Postgres: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ready reports whether the server takes queries: the lock file says so in
// its last line, and the socket answers.
func (c *Cluster) ready() bool {
	text, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil || !bytes.Contains(text, []byte("\nready")) {
		return false
	}
	conn, err := net.Dial("unix", filepath.Join(c.socket, ".s.PGSQL."+port))
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// URL names a database of the cluster. "postgres" exists from the start.
func (c *Cluster) URL(database string) string {
	// PostgreSQL's URLs know no + for a space.
	host := strings.ReplaceAll(url.QueryEscape(c.socket), "+", "%20")
	return "postgres://" + superuser + "@/" + url.PathEscape(database) + "?host=" + host + "&port=" + port + "&sslmode=disable"
}

// Exited is closed when the server has ended, asked or not.
func (c *Cluster) Exited() <-chan struct{} { return c.exited }

// Log is the path of the server's log.
func (c *Cluster) Log() string { return c.log() }

// Restart stops the server and runs it again, with the same URLs.
func (c *Cluster) Restart(ctx context.Context) error {
	if err := c.halt(); err != nil {
		return err
	}
	return c.run(ctx)
}

// Stop ends the server: connections are cut, what was committed is on disk.
func (c *Cluster) Stop() error {
	defer c.removeSocket()
	return c.halt()
}

func (c *Cluster) halt() error {
	if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping Postgres: %w", err)
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(30 * time.Second):
		return errors.Join(errors.New("stopping Postgres: still running after 30 s"), c.kill())
	}
}

// kill ends the server without its shutdown checkpoint; it recovers from its
// log at the next start.
func (c *Cluster) kill() error {
	if err := c.cmd.Process.Signal(syscall.SIGQUIT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending Postgres: %w", err)
	}
	<-c.exited
	return nil
}
