// Package testenv gives tests what they must run against: a SoftHSM token and
// a Postgres database, both real and private to the test process, both gone
// when it ends. Where they are not installed a test is skipped on a laptop
// and fails in CI (CI=true).
package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/pgcluster"
	"github.com/trent-kms/trent/internal/softhsm"
)

const startTimeout = 2 * time.Minute

// Missing ends a test that lacks what err says: as skipped, or as failed in CI.
func Missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must not skip: %v", err)
	}
	t.Skip(err)
}

// need ends the test if err is set.
func need(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, softhsm.ErrNotInstalled), errors.Is(err, pgcluster.ErrNotInstalled):
		Missing(t, err)
	default:
		t.Fatal(err)
	}
}

// Program returns the path of a program that a test runs, as a name on PATH
// or a path.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, fmt.Errorf("%s is not installed (run scripts/bootstrap): %w", name, err))
	}
	return path
}

// Library returns the path of a shared library of a Debian package that a test
// loads: the first that a pattern of filepath.Glob finds.
func Library(t testing.TB, debian string, patterns ...string) string {
	t.Helper()
	for _, pattern := range patterns {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	Missing(t, fmt.Errorf("Debian's %s is not installed (run scripts/bootstrap)", debian))
	return ""
}

// scratch makes a folder that lives as long as the test process: a shell waits
// for the end of a pipe that only the process holds open, then ends a server
// that may still run in the folder, and removes it.
func scratch() (string, error) {
	dir, err := os.MkdirTemp("", "trent-test-")
	if err != nil {
		return "", fmt.Errorf("making scratch folder: %w", err)
	}
	const script = `cat >/dev/null
for i in $(seq 100); do
	pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) || break
	kill -INT "$pid" 2>/dev/null || break
	sleep 0.1
done
umount -l "$1" 2>/dev/null # a small disk
rm -rf "$1"`
	reaper := exec.CommandContext(context.Background(), "/bin/sh", "-c", script, "sh", dir)
	if _, err := reaper.StdinPipe(); err != nil {
		return "", fmt.Errorf("starting reaper: %w", err)
	}
	reaper.SysProcAttr = ownGroup()
	if err := reaper.Start(); err != nil {
		return "", fmt.Errorf("starting reaper: %w", err)
	}
	reapers.Lock()
	defer reapers.Unlock()
	reapers.running = append(reapers.running, reaper)
	return dir, nil
}

// reapers holds on to the pipes: one that is garbage collected is closed, and
// the server would be ended under the tests.
var reapers struct {
	sync.Mutex
	running []*exec.Cmd
}

// Token is an initialised, empty SoftHSM token.
type Token struct {
	Module string // path of the PKCS#11 library
	Label  string
	PIN    string
	SOPIN  string
	Conf   string // SOFTHSM2_CONF, also set in this process's environment
}

// tokens is the process's token folder: the module reads its configuration when
// it is initialised, so there can be only one at a time. A new one is begun
// when no test holds a token and the stock is low: libraries read all tokens of
// a folder, so that tests would become slower with each that was made before.
var tokens struct {
	sync.Mutex
	folder softhsm.Folder
	made   int
	held   int // by tests that run
	spare  []Token
}

// batch is how many tokens are made at once. A module that is initialised
// does not see tokens made later, so tests that hold theirs open while others
// ask for one are served from the stock.
const batch = 8

// SoftHSM returns a token that no other test uses, for as long as this test.
func SoftHSM(t testing.TB) Token {
	t.Helper()
	module, err := softhsm.Module()
	need(t, err)
	tokens.Lock()
	defer tokens.Unlock()
	if tokens.held == 0 && len(tokens.spare) < batch/2 {
		dir, err := scratch()
		need(t, err)
		tokens.folder, err = softhsm.Open(filepath.Join(dir, "softhsm"))
		need(t, err)
		tokens.spare = nil
		// Not t.Setenv: the module may be loaded by any later test too.
		need(t, os.Setenv("SOFTHSM2_CONF", tokens.folder.Conf))
	}
	if len(tokens.spare) == 0 {
		need(t, stock(t.Context(), module))
	}
	tokens.held++
	t.Cleanup(func() {
		tokens.Lock()
		defer tokens.Unlock()
		tokens.held--
	})
	tok := tokens.spare[0]
	tokens.spare = tokens.spare[1:]
	return tok
}

func stock(ctx context.Context, module string) error {
	for range batch {
		tokens.made++
		tok := Token{
			Module: module,
			Label:  fmt.Sprintf("test-%d-%d", os.Getpid(), tokens.made),
			PIN:    "1234-user",
			SOPIN:  "5678-officer",
			Conf:   tokens.folder.Conf,
		}
		if err := tokens.folder.InitToken(ctx, tok.Label, []byte(tok.SOPIN), []byte(tok.PIN)); err != nil {
			return err
		}
		tokens.spare = append(tokens.spare, tok)
	}
	return nil
}
