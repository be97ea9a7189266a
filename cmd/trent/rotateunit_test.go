package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/trent-kms/trent/internal/faultshim"
	"github.com/trent-kms/trent/internal/testenv"
)

// rotateUnit does what systemd does with packaging/trent-domain-rotate.service.
type rotateUnit struct {
	condition, after string // shell scripts
	env              []string
}

func newRotateUnit(t *testing.T, env ...string) *rotateUnit {
	t.Helper()
	text, err := os.ReadFile("../../packaging/trent-domain-rotate.service")
	if err != nil {
		t.Fatal(err)
	}
	script := func(setting string) string {
		found := regexp.MustCompile(`(?m)^` + setting + `=/bin/sh -c '(.*)'$`).FindSubmatch(text)
		if found == nil {
			t.Fatalf("the unit has no %s", setting)
		}
		return strings.ReplaceAll(string(found[1]), "$$", "$") // systemd.service(5)
	}
	if !strings.Contains(string(text), "\nExecStart=/usr/local/bin/trent domain rotate --no-wait ") {
		t.Fatal("the unit starts something else")
	}
	return &rotateUnit{script("ExecCondition"), script("ExecStopPost"), env}
}

// start returns the exit status of what failed, or 0, and what was printed.
func (u *rotateUnit) start(t *testing.T) (status int, printed string) {
	t.Helper()
	run := func(env []string, name string, args ...string) int {
		cmd := exec.Command(name, args...)
		cmd.Env = append(append(os.Environ(), u.env...), env...)
		out, err := cmd.CombinedOutput()
		printed += string(out)
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode()
	}
	if status = run(nil, "/bin/sh", "-c", u.condition); status == 0 {
		status = run(nil, "trent", "domain", "rotate", "--no-wait")
	}
	run([]string{fmt.Sprintf("EXIT_STATUS=%d", status)}, "/bin/sh", "-c", u.after)
	return status, printed
}

// TestTimerTriesARefusedPINOnce: not once a day until the token is locked.
func TestTimerTriesARefusedPINOnce(t *testing.T) {
	token := testenv.SoftHSM(t)
	shim := faultshim.New(t, token.Module)
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	write := func(content string) {
		if err := os.WriteFile(pin, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unit := newRotateUnit(t, "STATE_DIRECTORY="+dir, "TRENT_PIN_FILE="+pin, "TRENT_HSM_MODULE="+shim.Module,
		"TRENT_HSM_TOKEN="+token.Label, "TRENT_DATABASE_URL=postgres://127.0.0.1:1/none")
	write("9999-wrong")
	if status, printed := unit.start(t); status != exitPIN {
		t.Fatalf("status %d: %s", status, printed)
	}
	for range 2 {
		status, printed := unit.start(t)
		if status != 255 { // which systemd calls a failure, and others of a condition not
			t.Errorf("status %d when the PIN was refused before: %s", status, printed)
		}
		if !strings.Contains(printed, "rm "+dir+"/pin-refused") {
			t.Errorf("it does not say how to go on: %s", printed)
		}
	}
	if n := shim.Take("C_Login"); n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
	write(token.PIN)
	if err := os.Remove(dir + "/pin-refused"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // there is no database, which may pass
		if status, printed := unit.start(t); status != exitFault {
			t.Errorf("status %d with the right PIN: %s", status, printed)
		}
	}
	if n := shim.Take("C_Login"); n != 2 {
		t.Errorf("the right PIN was tried %d times", n)
	}
}
