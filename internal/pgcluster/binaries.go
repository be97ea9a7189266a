package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNotInstalled means that the server's programs are not on the machine.
var ErrNotInstalled = errors.New("the Postgres server programs are not installed: run scripts/bootstrap, or apt-get install postgresql")

// oldest is the oldest server release that Trent is tested with.
const oldest = 15

// binaries returns the folder of the newest initdb and postgres. Debian keeps
// them off PATH, one folder per release.
func binaries(ctx context.Context) (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", fmt.Errorf("looking for Postgres: %w", err)
	}
	slices.SortFunc(found, func(a, b string) int { return release(b) - release(a) })
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		found = append(found, strings.TrimSpace(string(out)))
	}
	for _, dir := range found {
		if r := release(dir); r != 0 && r < oldest {
			continue
		}
		if executable(filepath.Join(dir, "initdb")) && executable(filepath.Join(dir, "postgres")) {
			return dir, nil
		}
	}
	return "", ErrNotInstalled
}

// release is the 15 of /usr/lib/postgresql/15/bin, or 0.
func release(bin string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	if err != nil {
		return 0
	}
	return n
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// serverUser is who the server runs as: nil for this process's own user, and
// postgres for root, as whom Postgres refuses to run. Not nobody: what that
// user owns is open to every program that was confined to it.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("running as root, and Postgres needs a user of its own: %w: run as another user than root, or type useradd --system postgres", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("reading user id of postgres: %w", err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("reading group id of postgres: %w", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), NoSetGroups: false}, nil
}

// reaches reports whether the server's user can enter dir.
func reaches(ctx context.Context, dir string, as *syscall.Credential) bool {
	if as == nil {
		return true
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `cd "$1"`, "sh", dir) // #nosec G204 -- the path is an argument, not part of the script
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	return cmd.Run() == nil
}

// alive reports whether pid is a server on data, rather than a process that
// was given the same number later.
func alive(pid int, data string) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(data)
	return err == nil && cwd == real
}

// lockedPID is the process named in data's lock file, or 0.
func lockedPID(data string) int {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return 0
	}
	return pid
}

// evict stops a server that outlived its owner, and removes a lock file whose
// process is gone: Postgres refuses to start if the number was given out anew.
func evict(ctx context.Context, data string) error {
	pid := lockedPID(data)
	if pid == 0 {
		return nil
	}
	for range 300 {
		if !alive(pid, data) {
			err := os.Remove(filepath.Join(data, "postmaster.pid"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("removing stale lock of %s: %w", data, err)
			}
			return nil
		}
		// SIGINT is Postgres's fast shutdown.
		if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stopping the Postgres (pid %d) that an earlier run left on %s: %w", pid, data, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("the Postgres (pid %d) that an earlier run left on %s does not stop: end it with kill %d", pid, data, pid)
}
