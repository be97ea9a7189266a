package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// secret is a secret by reference: where its bytes may come from. A flag or
// the configuration file can name the file, never hold the content.
type secret struct {
	what       string // for messages
	file, flag string // first choice
	env        string // second choice
	credential string // third: the name in systemd's $CREDENTIALS_DIRECTORY
}

func pinSecret(file string) secret {
	return secret{what: "PIN", file: file, flag: "--pin-file", env: "TRENT_PIN", credential: "pin"}
}

func officerSecret(file string) secret {
	return secret{what: "security officer's PIN", file: file, flag: "--so-pin-file", env: "TRENT_SO_PIN", credential: "so-pin"}
}

func databaseSecret(file string) secret {
	return secret{what: "database URL", file: file, flag: "--database-url-file", env: "TRENT_DATABASE_URL", credential: "database-url"}
}

// largestSecret bounds what is read: a wrong path may name a device or a log.
const largestSecret = 64 << 10

// errNoSecret means that none of a secret's places holds it.
var errNoSecret = errors.New("is given")

// read returns the secret without the line's end. The caller clears it.
func (s secret) read(log *slog.Logger) ([]byte, error) {
	value, set := os.LookupEnv(s.env)
	// Children must not inherit it, even if it is not what counts.
	if err := os.Unsetenv(s.env); err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.what, err)
	}
	path := s.file
	if path == "" {
		if set {
			return s.trim([]byte(value), s.env)
		}
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir != "" {
			path = filepath.Join(dir, s.credential)
		}
		if _, err := os.Stat(path); dir == "" || errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("no %s %w: set %s to a file that holds it, or %s, or the systemd credential %q",
				s.what, errNoSecret, s.flag, s.env, s.credential)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w: write it there (mode 0600), or correct %s", s.what, err, s.flag)
	}
	if !info.Mode().IsRegular() || info.Size() > largestSecret {
		return nil, fmt.Errorf("reading %s: %s is not a small file: correct %s", s.what, path, s.flag)
	}
	if info.Mode().Perm()&0o077 != 0 && !isCredential(path) {
		log.Warn("a secret's file is open to others than its owner: give it mode 0600",
			"secret", s.what, "file", path, "mode", info.Mode().Perm().String())
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w: let this user read it, or correct %s", s.what, err, s.flag)
	}
	return s.trim(content, path)
}

// isCredential reports whether path is one of systemd's credentials, whose
// modes systemd chooses: the folder keeps others out.
func isCredential(path string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	return dir != "" && filepath.Dir(path) == filepath.Clean(dir)
}

func (s secret) trim(content []byte, from string) ([]byte, error) {
	content = bytes.TrimRight(content, "\r\n")
	if len(content) == 0 {
		return nil, fmt.Errorf("reading %s: %s is empty: write the %s there", s.what, from, s.what)
	}
	return content, nil
}

// writeSecret puts content into path as a whole or not at all, for its owner
// alone, and on disk before it returns.
func writeSecret(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder makes renames in dir durable.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("flushing %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("flushing %s: %w", dir, err)
	}
	return nil
}
