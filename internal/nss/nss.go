// Package nss makes tokens of NSS softokn, a PKCS#11 implementation that shares
// no code with SoftHSM.
package nss

import (
	_ "embed" // the library's source
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/testenv"
)

//go:embed shim.c
var source []byte

// Where distributions keep it. Debian's package is libnss3.
var places = []string{"/usr/lib/*/libsoftokn3.so", "/usr/lib/*/nss/libsoftokn3.so", "/usr/lib64/libsoftokn3.so", "/usr/lib/libsoftokn3.so"}

// PIN is every token's.
const PIN = "user-pin-of-nss"

// databaseSlot is the number of the slot that keeps keys.
const databaseSlot = 2

// New makes a token of its own.
func New(t testing.TB) testenv.Token {
	t.Helper()
	dir := t.TempDir()
	path, code, label := filepath.Join(dir, "nss.so"), filepath.Join(dir, "shim.c"), "nss"
	if err := os.WriteFile(code, source, 0o600); err != nil {
		t.Fatal(err)
	}
	parameters := `configdir='sql:` + dir + `' certPrefix='' keyPrefix='' secmod='secmod.db' flags= dbTokenDescription=` + label
	out, err := exec.CommandContext(t.Context(), testenv.Program(t, "gcc"), "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", //nolint:gosec // the test's own words
		`-DMODULE="`+testenv.Library(t, "libnss3", places...)+`"`, `-DPARAMETERS="`+parameters+`"`, "-o", path, code, "-ldl").CombinedOutput()
	if err != nil {
		t.Fatalf("building the shim: %v\n%s", err, out)
	}
	if err := setPIN(path); err != nil {
		t.Fatalf("making a token of NSS: %v", err)
	}
	return testenv.Token{Module: path, Label: label, PIN: PIN}
}

// setPIN makes the token's database. Its security officer has no PIN.
func setPIN(module string) (err error) {
	p11 := pkcs11.New(module)
	if err := p11.Initialize(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p11.Finalize()) }()
	session, err := p11.OpenSession(databaseSlot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	if err := p11.Login(session, pkcs11.CKU_SO, ""); err != nil {
		return err
	}
	if err := p11.InitPIN(session, PIN); err != nil {
		return err
	}
	return errors.Join(p11.Logout(session), p11.CloseSession(session))
}
