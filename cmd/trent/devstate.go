package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/trent-kms/trent/internal/pgcluster"
	"github.com/trent-kms/trent/internal/softhsm"
)

// devState is the folder of trent dev:
//
//	lock            held by the running process
//	softhsm/        token folder with its so-pin and pin; made elsewhere and
//	                renamed, so it is complete and the PINs are its own
//	so-pin, pin     where earlier releases put them
//	postgres/       cluster, or
//	postgres.path   where it is instead
//	credentials     the administrator's access key, as shell commands
//	env             what to source: credentials, region, endpoint
type devState struct {
	dir    string
	lock   *os.File
	module string // PKCS#11 library, once softHSM has found it
}

// openDevState makes the folder if needed, and locks it.
func openDevState(dir string) (*devState, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("naming the state folder: %w", err)
	}
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		// Postgres, which runs as another user then, passes through to its
		// own folder; every secret is in a file or folder for root alone.
		mode = 0o711
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return nil, fmt.Errorf("making the state folder: %w: choose another with --state", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the state folder: %w", err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		owner, _ := os.ReadFile(lock.Name())
		_ = lock.Close()
		return nil, fmt.Errorf("another trent dev (pid %s) runs on %s: stop it, or choose another folder with --state", bytes.TrimSpace(owner), dir)
	}
	if err == nil {
		err = lock.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintf(lock, "%d\n", os.Getpid())
	}
	if err != nil {
		return nil, fmt.Errorf("locking the state folder: %w", err)
	}
	return &devState{dir: dir, lock: lock}, nil
}

func (s *devState) close() { _ = s.lock.Close() }

func (s *devState) path(name string) string { return filepath.Join(s.dir, name) }
func (s *devState) envFile() string         { return s.path("env") }

// softHSM makes the token if it is not there, points this process's module to
// it, and returns the user PIN.
func (s *devState) softHSM(ctx context.Context) ([]byte, error) {
	module, err := softhsm.Module()
	if err != nil {
		return nil, err
	}
	s.module = module
	if _, err := os.Stat(s.path("softhsm")); errors.Is(err, os.ErrNotExist) {
		if err := s.makeToken(ctx); err != nil {
			return nil, err
		}
	}
	folder, err := softhsm.Open(s.path("softhsm"))
	if err != nil {
		return nil, err
	}
	if err := os.Setenv("SOFTHSM2_CONF", folder.Conf); err != nil {
		return nil, fmt.Errorf("choosing the SoftHSM configuration: %w", err)
	}
	pin, err := os.ReadFile(s.path("softhsm/pin"))
	if errors.Is(err, os.ErrNotExist) {
		pin, err = os.ReadFile(s.path("pin"))
	}
	if err != nil {
		return nil, fmt.Errorf("reading the token's PIN: %w: without it the keys in %s are lost; to begin anew, move that folder away", err, s.dir)
	}
	return bytes.TrimSpace(pin), nil
}

// tokenTraces are made after the token, and are of no use without it.
var tokenTraces = []string{"postgres", "postgres.path", "credentials"}

// makeToken makes token and PINs beside their place and renames them: a run
// that is interrupted leaves nothing that looks like a token. A token that is
// merely missing, as before a disk is mounted, is not made anew: the database's
// keys are on the old one.
func (s *devState) makeToken(ctx context.Context) error {
	for _, name := range tokenTraces {
		if _, err := os.Lstat(s.path(name)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is missing, but %s is there: put the token folder back, without which all keys are lost; to begin anew, move %s away",
				s.path("softhsm"), s.path(name), s.dir)
		}
	}
	fresh := s.path("softhsm.new")
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("clearing a half-made token: %w", err)
	}
	folder, err := softhsm.Open(fresh)
	if err != nil {
		return err
	}
	pins := map[string][]byte{}
	for _, name := range []string{"so-pin", "pin"} {
		pin := make([]byte, 16)
		rand.Read(pin)
		pins[name] = []byte(hex.EncodeToString(pin))
		if err := writeSecret(filepath.Join(fresh, name), append(pins[name], '\n')); err != nil {
			return err
		}
	}
	if err := folder.InitToken(ctx, devToken, pins["so-pin"], pins["pin"]); err != nil {
		return err
	}
	if err := os.Rename(fresh, s.path("softhsm")); err != nil {
		return fmt.Errorf("putting the token in place: %w", err)
	}
	return syncFolder(s.dir)
}

// postgresElsewhere is where the cluster of a root's state folder goes if the
// server's user cannot enter that folder, as below /root.
const postgresElsewhere = "/var/lib/trent-dev"

// postgres starts the folder's cluster.
func (s *devState) postgres(ctx context.Context, log *slog.Logger) (*pgcluster.Cluster, error) {
	dir, err := s.postgresFolder(ctx)
	if err != nil {
		return nil, err
	}
	log.Info("starting a private Postgres", "folder", dir)
	return pgcluster.Start(ctx, pgcluster.Config{Dir: dir})
}

// postgresFolder decides once where the cluster is.
func (s *devState) postgresFolder(ctx context.Context) (string, error) {
	if path, err := os.ReadFile(s.path("postgres.path")); err == nil {
		return strings.TrimSpace(string(path)), nil
	}
	inside := s.path("postgres")
	if _, err := os.Stat(inside); err == nil {
		return inside, nil
	}
	reaches, err := pgcluster.Reaches(ctx, s.dir)
	if err != nil {
		return "", err
	}
	if reaches {
		return inside, nil
	}
	if err := os.MkdirAll(postgresElsewhere, 0o711); err != nil { //nolint:gosec // G301: Postgres, another user, passes through
		return "", fmt.Errorf("making a folder for Postgres, whose user cannot enter %s: %w", s.dir, err)
	}
	// Not derived from the state folder's name: a new state folder of the
	// same name must not meet an old database.
	elsewhere, err := os.MkdirTemp(postgresElsewhere, "")
	if err != nil {
		return "", fmt.Errorf("making a folder for Postgres: %w", err)
	}
	return elsewhere, writeSecret(s.path("postgres.path"), []byte(elsewhere+"\n"))
}

// keepCredentials keeps the administrator's access key for later runs.
func (s *devState) keepCredentials(accessKeyID string, secret []byte) error {
	text := credentialLines(accessKeyID, secret)
	defer clear(text)
	return writeSecret(s.path("credentials"), text)
}

// writeEnv writes the file to source, and returns its content. A proxy, which
// the machine may have, does not reach its loopback address.
func (s *devState) writeEnv(api *net.TCPAddr, region string) ([]byte, error) {
	credentials, err := os.ReadFile(s.path("credentials"))
	if err != nil {
		return nil, fmt.Errorf("reading the administrator's access key: %w: its secret is nowhere else; to begin anew, move %s away", err, s.dir)
	}
	defer clear(credentials)
	rest := "export AWS_DEFAULT_REGION=" + region + "\nexport AWS_REGION=" + region +
		"\nexport AWS_ENDPOINT_URL_KMS=http://" + api.String() +
		"\nexport NO_PROXY=\"" + api.IP.String() + ",${NO_PROXY:-${no_proxy:-}}\"" +
		"\nexport no_proxy=\"$NO_PROXY\"" +
		"\nunset AWS_PROFILE AWS_SESSION_TOKEN\n"
	env := make([]byte, 0, len(credentials)+len(rest))
	env = append(append(env, credentials...), rest...)
	return env, writeSecret(s.envFile(), env)
}
