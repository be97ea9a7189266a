// Package softhsm keeps a SoftHSM token folder of its own: where the module
// is, a configuration that names only that folder, and tokens made in it. The
// machine's own SoftHSM configuration and tokens are neither read nor changed.
// It is for `trent dev` and the tests; a production HSM is set up by its
// vendor's tools.
package softhsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrNotInstalled means that the module or softhsm2-util is not on the machine.
var ErrNotInstalled = errors.New("SoftHSM is not installed: run scripts/bootstrap, or apt-get install softhsm2")

// modules are the places where distributions put the library.
var modules = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/*/softhsm/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
	"/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// Module returns the path of the PKCS#11 library, or ErrNotInstalled.
func Module() (string, error) {
	for _, pattern := range modules {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("looking for %s: %w", pattern, err)
		}
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return "", ErrNotInstalled
}

// Folder is a token folder and the configuration that points to it.
type Folder struct {
	// Conf is the path for SOFTHSM2_CONF. The module reads that variable when
	// it is initialised, so a process can use one folder only.
	Conf string
}

// Open makes the folder and its configuration in dir if they are not there.
func Open(dir string) (Folder, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Folder{}, fmt.Errorf("naming token folder: %w", err)
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return Folder{}, fmt.Errorf("making token folder: %w", err)
	}
	f := Folder{Conf: filepath.Join(dir, "softhsm2.conf")}
	// Written anew each time, so that a state folder can be moved.
	conf := "directories.tokendir = " + tokens + "\n" +
		"objectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(f.Conf, []byte(conf), 0o600); err != nil {
		return Folder{}, fmt.Errorf("writing SoftHSM configuration: %w", err)
	}
	return f, nil
}
