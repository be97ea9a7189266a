// Package shim builds PKCS#11 libraries that stand before a real one and differ
// from it in what a test needs.
package shim

import (
	_ "embed" // what the libraries' sources include
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/trent-kms/trent/internal/testenv"
)

//go:embed shim.h
var header []byte

// Build compiles source, C that may include shim.h, with the compiler's flags,
// and returns the library's path. It lives as long as the test.
func Build(t testing.TB, source []byte, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	code, path := filepath.Join(dir, "shim.c"), filepath.Join(dir, "shim.so")
	for name, content := range map[string][]byte{code: source, filepath.Join(dir, "shim.h"): header} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flags = append(flags, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", path, code, "-ldl", "-lpthread")
	if out, err := exec.CommandContext(t.Context(), testenv.Program(t, "gcc"), flags...).CombinedOutput(); err != nil { //nolint:gosec // the test's own words
		t.Fatalf("building the shim: %v\n%s", err, out)
	}
	return path
}

// BuildOnCopy is Build with MODULE defined as the path of a copy of module: a
// library's state is its process's, and the copy has its own.
func BuildOnCopy(t testing.TB, module string, source []byte, flags ...string) string {
	t.Helper()
	library, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(t.TempDir(), "real.so")
	if err := os.WriteFile(own, library, 0o600); err != nil {
		t.Fatal(err)
	}
	return Build(t, source, append(flags, Text("MODULE", own))...)
}

// Text is the flag that defines name as a string.
func Text(name, value string) string { return "-D" + name + "=" + strconv.Quote(value) }
