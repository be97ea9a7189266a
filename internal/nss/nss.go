// Package nss makes tokens of NSS softokn, a PKCS#11 implementation that shares
// no code with SoftHSM.
package nss

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

// Where distributions keep it. Debian's package is libnss3.
var places = []string{"/usr/lib/*/libsoftokn3.so", "/usr/lib/*/nss/libsoftokn3.so", "/usr/lib64/libsoftokn3.so", "/usr/lib/libsoftokn3.so"}

// PIN is every token's.
const PIN = "user-pin-of-nss"

// New makes a token of its own, which gets its PIN when it is first used.
func New(t testing.TB) testenv.Token {
	t.Helper()
	dir := t.TempDir()
	path, code, label := filepath.Join(dir, "nss.so"), filepath.Join(dir, "shim.c"), "nss"
	if err := os.WriteFile(code, source, 0o600); err != nil {
		t.Fatal(err)
	}
	parameters := `configdir='sql:` + dir + `' certPrefix='' keyPrefix='' secmod='secmod.db' flags= dbTokenDescription=` + label
	out, err := exec.CommandContext(t.Context(), testenv.Program(t, "gcc"), "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", //nolint:gosec // the test's own words
		`-DMODULE="`+testenv.Library(t, "libnss3", places...)+`"`, `-DPARAMETERS="`+parameters+`"`, `-DPIN="`+PIN+`"`, "-o", path, code, "-ldl").CombinedOutput()
	if err != nil {
		t.Fatalf("building the shim: %v\n%s", err, out)
	}
	return testenv.Token{Module: path, Label: label, PIN: PIN}
}
