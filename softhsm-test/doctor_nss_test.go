package softhsmtest

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/trent-kms/trent/internal/nss"
)

// TestDoctorOnNSS: of a token that computes all and protects nothing doctor
// says so, by its exit code too.
func TestDoctorOnNSS(t *testing.T) {
	token := nss.New(t)
	doctor := func(args ...string) string {
		cmd := exec.Command(program(t, ""), append([]string{"doctor", "--hsm-module", token.Module, "--hsm-token", token.Label}, args...)...)
		cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir(), "TRENT_PIN=" + token.PIN}
		out, err := cmd.Output()
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("doctor: %v, want code 1\n%s", err, out)
		}
		return string(out)
	}
	text := doctor()
	for _, want := range []string{
		"NSS softokn", "chosen   CKM_AES_KEY_WRAP_KWP", "refused  CKM_AES_KEY_WRAP_PAD", `error: "unwrap templates bind whoever unwraps" does not hold`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("doctor does not say %q:\n%s", want, text)
		}
	}
	var report struct {
		Usable bool
		HSM    struct{ LoggedIn bool }
	}
	report.Usable = true
	if err := json.Unmarshal([]byte(doctor("--json")), &report); err != nil || report.Usable || !report.HSM.LoggedIn {
		t.Errorf("got %v, %+v", err, report)
	}
}
