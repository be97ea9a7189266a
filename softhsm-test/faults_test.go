package softhsmtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trent-kms/trent/internal/faultshim"
	"github.com/trent-kms/trent/internal/softhsm"
	"github.com/trent-kms/trent/internal/testenv"
)

func readLog(t testing.TB, s *server) string {
	t.Helper()
	return string(must(os.ReadFile(s.log))(t))
}

// Each fault at start is a message that names the cause and the next step,
// and an exit code.
func TestFaultsAtStart(t *testing.T) {
	d := newDeployment(t, "")
	wrong := filepath.Join(d.dir, "wrong-pin")
	if err := os.WriteFile(wrong, []byte("9999-wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string]struct {
		setting string
		words   string // at least one of them, separated by |
	}{
		"no module":          {"TRENT_HSM_MODULE=/nonexistent/libhsm.so", "/nonexistent/libhsm.so"},
		"not a module":       {"TRENT_HSM_MODULE=/etc/hostname", "/etc/hostname"},
		"no such token":      {"TRENT_HSM_TOKEN=other", "other"},
		"wrong serial":       {"TRENT_HSM_SERIAL=0000000000000000", "0000000000000000"},
		"wrong PIN":          {"TRENT_PIN_FILE=" + wrong, "PIN"},
		"no PIN file":        {"TRENT_PIN_FILE=/nonexistent/pin", "/nonexistent/pin"},
		"database down":      {"TRENT_DATABASE_URL=postgres://trent@127.0.0.1:1/trent?sslmode=disable", "127.0.0.1"},
		"no such database":   {"TRENT_DATABASE_URL=" + strings.Replace(d.database, "test_", "missing_", 1), "missing_"},
		"other account":      {"TRENT_ACCOUNT=999999999999", "999999999999"},
		"plain HTTP for all": {"TRENT_LISTEN=0.0.0.0:0", "tls|TLS"},
		"bad certificate":    {"TRENT_TLS_CERT=/nonexistent/cert", "tls-key|/nonexistent/cert"},
		"no region":          {"TRENT_REGIONS=", "region"},
	} {
		t.Run(name, func(t *testing.T) {
			words := strings.Split(fault.words, "|")
			log := wantStartRefused(t, d.launch(t, fault.setting), "")
			found := false
			for _, word := range words {
				found = found || strings.Contains(log, word)
			}
			if !found || strings.Contains(log, "9999-wrong") || strings.Contains(log, "goroutine ") {
				t.Errorf("message: %s", log)
			}
		})
	}
	d.serve(t)
}

// A token locks after a few wrong PINs, for every host: each start may try
// once, and its exit code tells a supervisor not to start it again.
func TestWrongPINIsTriedOnce(t *testing.T) {
	d := newDeployment(t, "")
	logins := faultshim.New(t, d.module)
	d.module, d.extra = logins.Module, logins.Env
	d.serve(t)
	if logins.Take("C_Login") == 0 {
		t.Fatal("the shim saw no login of a service that runs")
	}
	d.stopAll()
	if err := os.WriteFile(d.pinFile(), []byte("9999-wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := d.launch(t)
		wantStartRefused(t, s, "PIN")
		if code, tries := s.cmd.ProcessState.ExitCode(), logins.Take("C_Login"); code != 3 || tries != 1 {
			t.Errorf("serve: %d tries, code %d; want 1 and 3", tries, code)
		}
	}
	for _, command := range []string{"init", "doctor"} {
		if out, err := d.command(t, command).CombinedOutput(); err == nil || !strings.Contains(string(out), "refused the PIN") {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
		if tries := logins.Take("C_Login"); tries != 1 {
			t.Errorf("%s: %d tries, want 1", command, tries)
		}
	}
}

func TestStartBeforeInit(t *testing.T) {
	d := prepare(t, testenv.Postgres(t))
	defer d.pool.Close()
	wantStartRefused(t, d.launch(t), "trent init")
}

func TestNewerSchema(t *testing.T) {
	d := newDeployment(t, "")
	_, err := d.pool.Exec(context.Background(),
		`INSERT INTO schema_migrations (version_id, is_applied) VALUES (99999, true)`)
	if err != nil {
		t.Fatal(err)
	}
	log := wantStartRefused(t, d.launch(t), "newer")
	if !strings.Contains(log, "trent") {
		t.Errorf("message: %s", log)
	}
	out, err := d.tryInitialise(t)
	if err == nil || !strings.Contains(out, "newer") {
		t.Errorf("init on a newer schema: %v\n%s", err, out)
	}
}

func TestUndurableDatabase(t *testing.T) {
	d := newDeployment(t, "")
	wantStartRefused(t, d.launch(t, "TRENT_DATABASE_URL="+d.database+"&synchronous_commit=off"), "synchronous_commit")
}

func TestUninitialisedToken(t *testing.T) {
	d := prepare(t, testenv.Postgres(t))
	defer d.pool.Close()
	empty := must(softhsm.Open(t.TempDir()))(t)
	out, err := d.tryInitialise(t, "SOFTHSM2_CONF="+empty.Conf)
	if err == nil || !strings.Contains(out, "initialis") && !strings.Contains(out, "trent-test") {
		t.Errorf("init without a token: %v\n%s", err, out)
	}
}

// A label that two tokens carry names neither.
func TestDuplicateLabel(t *testing.T) {
	d := newDeployment(t, "")
	folder := softhsm.Folder{Conf: d.conf}
	if err := folder.InitToken(context.Background(), d.label, []byte(officerPIN), []byte(userPIN)); err != nil {
		t.Fatal(err)
	}
	log := wantStartRefused(t, d.launch(t), d.label)
	if !strings.Contains(log, "serial") {
		t.Errorf("the message does not say to choose by serial: %s", log)
	}
}

func TestSecondInit(t *testing.T) {
	d := newDeployment(t, "")
	was := d.admin
	out, err := d.tryInitialise(t)
	if d.admin != was {
		t.Fatalf("a second init made another administrator:\n%s", out)
	}
	if err == nil && !strings.Contains(out, "already") {
		t.Errorf("second init: %s", out)
	}
	d.serve(t)
	createKey(t, d.client(t))
}

// init refuses a token that another database's deployment uses.
func TestInitOnUsedToken(t *testing.T) {
	d := newDeployment(t, "")
	d.database = testenv.Postgres(t)
	out, err := d.tryInitialise(t)
	if err == nil || !strings.Contains(out, "token") {
		t.Errorf("init on a used token: %v\n%s", err, out)
	}
}
