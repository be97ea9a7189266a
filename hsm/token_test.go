package hsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/internal/faultshim"
	"github.com/trent-kms/trent/internal/testenv"
)

func TestOpenRefuses(t *testing.T) {
	good := testConfig(t)
	notModule := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(notModule, []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*Config)
		want   error
		next   string // step, that the error names
	}{
		"no module path":    {func(c *Config) { c.Module = "" }, ErrModule, "set the path"},
		"missing module":    {func(c *Config) { c.Module = "/nonexistent/libhsm.so" }, ErrModule, "apt-get install softhsm2"},
		"not a library":     {func(c *Config) { c.Module = notModule }, ErrModule, "install the vendor's library"},
		"neither named":     {func(c *Config) { c.TokenLabel = "" }, ErrTokenNotFound, "set --hsm-token or --hsm-serial"},
		"unknown label":     {func(c *Config) { c.TokenLabel = "nobody" }, ErrTokenNotFound, `softhsm2-util --init-token --free --label "nobody"`},
		"label, not serial": {func(c *Config) { c.TokenSerial = "0000" }, ErrTokenNotFound, "name one that is there"},
		"no PIN":            {func(c *Config) { c.PIN = PIN{} }, ErrPINIncorrect, "give it by file or credential"},
	}
	for name, test := range tests {
		cfg := good
		test.change(&cfg)
		token, err := Open(t.Context(), cfg)
		if err == nil {
			token.Close() //nolint:errcheck // the test has failed
		}
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.next) {
			t.Errorf("%s: %v, want %v and %q", name, err, test.want, test.next)
		}
	}
	bySerial := good
	token := openToken(t, good)
	bySerial.TokenLabel, bySerial.TokenSerial = "", token.Info().Serial
	if other := openToken(t, bySerial); other.Info() != token.Info() {
		t.Errorf("by serial %+v, by label %+v", other.Info(), token.Info())
	}
}

func TestWrongPIN(t *testing.T) {
	cfg := testConfig(t)
	logins := faultshim.New(t, cfg.Module)
	cfg.Module = logins.Module
	right := cfg.PIN
	cfg.PIN = NewPIN([]byte("not-the-pin"))
	_, err := Open(t.Context(), cfg)
	if !errors.Is(err, ErrPINIncorrect) || !strings.Contains(err.Error(), "CKR_PIN_INCORRECT") || strings.Contains(err.Error(), "not-the-pin") {
		t.Fatal(err)
	}
	if tries := logins.Take("C_Login"); tries != 1 {
		t.Errorf("Open tried the wrong PIN %d times", tries)
	}
	if report, err := Examine(t.Context(), cfg, nil); err != nil || report.Usable() {
		t.Errorf("usable with a wrong PIN; error %v", err)
	}
	if tries := logins.Take("C_Login"); tries != 1 {
		t.Errorf("Examine tried the wrong PIN %d times", tries)
	}
	cfg.PIN = right
	openToken(t, cfg)
}

// SoftHSM itself never locks, so the flags are set here.
func TestLastTryIsLeftAlone(t *testing.T) {
	base := uint(pkcs11.CKF_TOKEN_INITIALIZED | pkcs11.CKF_USER_PIN_INITIALIZED)
	for flag, want := range map[uint]error{
		pkcs11.CKF_USER_PIN_FINAL_TRY: ErrPINLocked,
		pkcs11.CKF_USER_PIN_LOCKED:    ErrPINLocked,
		pkcs11.CKF_USER_PIN_COUNT_LOW: nil,
	} {
		err := loginAllowed(slot{token: pkcs11.TokenInfo{Flags: base | flag}}, NewPIN([]byte("x")))
		if !errors.Is(err, want) {
			t.Errorf("flag 0x%X: %v", flag, err)
		}
	}
	if err := loginAllowed(slot{token: pkcs11.TokenInfo{Flags: pkcs11.CKF_TOKEN_INITIALIZED}}, NewPIN([]byte("x"))); !errors.Is(err, ErrTokenUninitialised) {
		t.Errorf("no user PIN: %v", err)
	}
}

func TestDuplicateLabels(t *testing.T) {
	token := testenv.SoftHSM(t)
	cfg := Config{Module: token.Module, TokenLabel: "twins", PIN: NewPIN([]byte(token.PIN))}
	for range 2 {
		out, err := exec.CommandContext(t.Context(), "softhsm2-util", "--init-token", "--free", "--label", "twins",
			"--so-pin", token.SOPIN, "--pin", token.PIN).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	_, err := Open(t.Context(), cfg)
	if !errors.Is(err, ErrTokenAmbiguous) || !strings.Contains(err.Error(), "serial") {
		t.Error(err)
	}
	slots := []slot{
		{1, pkcs11.TokenInfo{Label: "twins", SerialNumber: "a", Flags: pkcs11.CKF_TOKEN_INITIALIZED}},
		{2, pkcs11.TokenInfo{Label: "twins", SerialNumber: "b", Flags: pkcs11.CKF_TOKEN_INITIALIZED}},
		{3, pkcs11.TokenInfo{Label: "", SerialNumber: "c"}},
	}
	if s, err := choose(slots, Config{TokenLabel: "twins", TokenSerial: "b"}); err != nil || s.id != 2 {
		t.Errorf("label and serial: slot %d, %v", s.id, err)
	}
	if _, err := choose(slots, Config{TokenSerial: "c"}); !errors.Is(err, ErrTokenUninitialised) {
		t.Errorf("uninitialised token: %v", err)
	}
}

func TestPINPrintsRedacted(t *testing.T) {
	pin := NewPIN([]byte("1234-user"))
	cfg := Config{PIN: pin}
	var log bytes.Buffer
	for _, logger := range []*slog.Logger{slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewJSONHandler(&log, nil))} {
		logger.Info("x", "pin", pin, "pointer", &pin, "cfg", cfg, "group", slog.GroupValue(slog.Any("pin", pin)))
	}
	asJSON, err := json.Marshal(map[string]any{"pin": pin, "pointer": &pin})
	if err != nil {
		t.Fatal(err)
	}
	printed := log.String() + string(asJSON) + pin.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		printed += fmt.Sprintf(verb, pin) + fmt.Sprintf(verb, &pin) + fmt.Sprintf(verb, cfg) +
			fmt.Sprintf(verb, &cfg) + fmt.Sprintf(verb, []PIN{pin}) + fmt.Sprintf(verb, pin.secret)
	}
	for _, leak := range []string{"1234-user", fmt.Sprintf("%x", "1234-user"), fmt.Sprintf("%X", "1234-user"), "49 50 51"} {
		if strings.Contains(printed, leak) {
			t.Errorf("%q is printed in %s", leak, printed)
		}
	}
	if !strings.Contains(printed, "[redacted]") {
		t.Error("no [redacted]")
	}
}

func TestExamine(t *testing.T) {
	cfg := testConfig(t)
	r, err := Examine(t.Context(), cfg, nil)
	if err != nil || !r.Usable() || !r.LoggedIn || r.Token == nil || r.Token.Label != cfg.TokenLabel || len(r.Mechanisms) != len(needs)+2 {
		t.Errorf("%+v, %v", r, err)
	}
	token := openToken(t, cfg)
	if err := token.CreateDomain(t.Context(), testDomain); err != nil {
		t.Fatal(err)
	}
	r, err = Examine(t.Context(), cfg, nil) // beside a running service
	if err != nil || !r.Usable() || len(r.Domains) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	cfg.Module = "/nonexistent/libhsm.so"
	if r, err = Examine(t.Context(), cfg, nil); err != nil || r.Usable() || len(r.Findings) != 1 {
		t.Errorf("missing module: %+v, %v", r, err)
	}
}

func TestClosedToken(t *testing.T) {
	token, err := Open(t.Context(), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := token.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("pinging a closed token: %v", err)
	}
}

// Sessions, login and session objects vanish; the next calls bring them back.
func TestLostSessions(t *testing.T) {
	metrics := prometheus.NewPedanticRegistry()
	d := newDomain(t, func(c *Config) { c.Sessions, c.AsymmetricSessions, c.Metrics = 2, 2, metrics })
	ekt := newAES(t, d)
	iv, sealed, err := d.Encrypt(t.Context(), ekt, nil, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	_, mac, err := d.Sum(t.Context(), []byte("row"))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := d.t.module.p11.CloseAllSessions(d.t.slot); err != nil {
			t.Fatal(err)
		}
		if plain, err := d.Decrypt(t.Context(), ekt, iv, nil, sealed); err != nil || string(plain) != "x" {
			t.Fatalf("decrypting after lost sessions: %q, %v", plain, err)
		}
		if ok, err := d.Verify(t.Context(), 1, []byte("row"), mac); !ok || err != nil {
			t.Fatalf("verifying after lost sessions: %v, %v", ok, err)
		}
		if err := d.t.module.p11.CloseAllSessions(d.t.slot); err != nil {
			t.Fatal(err)
		}
		newAES(t, d)
	}
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			seen[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	if seen["trent_hsm_sessions"] != float64(len(d.t.sessions)) || seen["trent_hsm_errors_total"] == 0 || seen["trent_hsm_operation_seconds"] == 0 {
		t.Errorf("metrics %v", seen)
	}
}

// TestExamineKeySpecs: doctor names what the device lacks.
func TestExamineKeySpecs(t *testing.T) {
	d := newDomain(t, nil)
	r, err := Examine(t.Context(), d.t.cfg, nil)
	if err != nil || len(r.KeySpecs) != len(specs) {
		t.Fatalf("%d key specs, %v", len(r.KeySpecs), err)
	}
	for _, check := range r.KeySpecs {
		if check.Supported == (check.Missing != "") {
			t.Errorf("%+v", check)
		}
	}
}
