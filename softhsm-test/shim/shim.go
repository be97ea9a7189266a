// Package shim builds PKCS#11 libraries that stand before a real one and see
// what Trent asks of it. SoftHSM counts no wrong PINs and locks nothing, so
// that a test against it alone could not tell one try from ten.
package shim

import (
	_ "embed" // the library's source
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/trent-kms/trent/internal/testenv"
)

//go:embed logins.c
var loginsSource []byte

// Logins is a library that counts C_Login.
type Logins struct {
	Module string   // path of the library
	Env    []string // what a process that loads it needs, as NAME=VALUE
	file   string
}

// NewLogins builds one that stands before module. It lives as long as the
// test.
func NewLogins(t testing.TB, module string) *Logins {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "logins.c")
	if err := os.WriteFile(source, loginsSource, 0o600); err != nil {
		t.Fatal(err)
	}
	l := &Logins{Module: filepath.Join(dir, "logins.so"), file: filepath.Join(dir, "logins")}
	l.Env = []string{"TRENT_SHIM_MODULE=" + module, "TRENT_SHIM_LOGINS=" + l.file}
	out, err := exec.CommandContext(t.Context(), testenv.Program(t, "gcc"),
		"-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", l.Module, source, "-ldl").CombinedOutput()
	if err != nil {
		t.Fatalf("building the shim: %v\n%s", err, out)
	}
	return l
}

// Take returns how often C_Login was called since the last Take.
func (l *Logins) Take(t testing.TB) int {
	t.Helper()
	calls, err := os.ReadFile(l.file)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err == nil {
		err = os.Remove(l.file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(calls)
}
