// Package ivshim builds PKCS#11 libraries that stand before a real one and
// differ from it as HSMs of some vendors do: they make the IVs of AES-GCM
// themselves.
package ivshim

import (
	_ "embed" // the library's source
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/trent-kms/trent/internal/testenv"
)

//go:embed shim.c
var source []byte

// How a library differs. The first two exclude each other.
const (
	Written     = "WRITTEN"   // as AWS CloudHSM: its IV is written over the given one
	Appended    = "APPENDED"  // as Luna in FIPS mode: its IV stands after the tag, none may be given
	ValueLength = "VALUE_LEN" // as Luna before firmware 7.9.3: C_UnwrapKey wants CKA_VALUE_LEN

	Stuck = "STUCK"     // STUCK=n: after n IVs the last comes again
	Short = "IV_LENGTH" // IV_LENGTH=n: IVs of another length
)

// New builds a library before a copy of module, whose state is its own, and
// returns its path. Each difference is a constant above, or one with =n.
func New(t testing.TB, module string, differences ...string) string {
	t.Helper()
	dir := t.TempDir()
	library, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}
	path, own, code := filepath.Join(dir, "ivshim.so"), filepath.Join(dir, "real.so"), filepath.Join(dir, "shim.c")
	for name, content := range map[string][]byte{own: library, code: source} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", `-DMODULE="` + own + `"`}
	for _, d := range differences {
		args = append(args, "-D"+d)
	}
	args = append(args, "-o", path, code, "-ldl", "-lpthread")
	if out, err := exec.CommandContext(t.Context(), testenv.Program(t, "gcc"), args...).CombinedOutput(); err != nil { //nolint:gosec // the test's own words
		t.Fatalf("building the shim: %v\n%s", err, out)
	}
	return path
}
