// Package nss makes tokens of NSS softokn, a PKCS#11 implementation that shares
// no code with SoftHSM.
package nss

import (
	_ "embed" // the library's source
	"testing"

	"github.com/trent-kms/trent/internal/shim"
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
	const label = "nss"
	parameters := `configdir='sql:` + t.TempDir() + `' certPrefix='' keyPrefix='' secmod='secmod.db' flags= dbTokenDescription=` + label
	module := shim.Build(t, source, shim.Text("MODULE", testenv.Library(t, "libnss3", places...)),
		shim.Text("PARAMETERS", parameters), shim.Text("PIN", PIN))
	return testenv.Token{Module: module, Label: label, PIN: PIN}
}
