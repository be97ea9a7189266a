// Package ivshim builds PKCS#11 libraries that stand before a real one and
// differ from it as HSMs of some vendors do: they make the IVs of AES-GCM
// themselves.
package ivshim

import (
	_ "embed" // the library's source
	"testing"

	"github.com/trent-kms/trent/internal/shim"
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
	var flags []string
	for _, d := range differences {
		flags = append(flags, "-D"+d)
	}
	return shim.BuildOnCopy(t, module, source, flags...)
}
