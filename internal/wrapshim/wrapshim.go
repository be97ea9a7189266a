// Package wrapshim builds PKCS#11 libraries that stand before a real one and
// know its mechanisms of AES key wrap by other numbers, as HSMs of some vendors
// do.
package wrapshim

import (
	_ "embed" // the library's source
	"fmt"
	"testing"

	"github.com/trent-kms/trent/internal/shim"
)

//go:embed shim.c
var source []byte

// Device is how a library differs from the real one. Its zero value has no AES
// key wrap at all.
type Device struct {
	KW  uint // number of RFC 3394, the real library's 0x2109; 0 = it has none
	KWP uint // number of RFC 5649, the real library's 0x210A; 0 = it has none
	// Padded is a number that pads first, whatever the length, as PKCS#11
	// v2.40's words on 0x210A may be read; 0 = it has none.
	Padded uint
	// Secretive: it takes no AES keys in the clear.
	Secretive bool
	// Strict: it makes no keys that both encrypt and wrap.
	Strict bool
}

// New builds a library before a copy of module, whose state is its own, and
// returns its path.
func New(t testing.TB, module string, d Device) string {
	t.Helper()
	flag := map[bool]int{true: 1}
	return shim.BuildOnCopy(t, module, source,
		fmt.Sprintf("-DKW=%#xUL", d.KW), fmt.Sprintf("-DKWP=%#xUL", d.KWP), fmt.Sprintf("-DPADDED=%#xUL", d.Padded),
		fmt.Sprintf("-DSECRETIVE=%d", flag[d.Secretive]), fmt.Sprintf("-DSTRICT=%d", flag[d.Strict]))
}
