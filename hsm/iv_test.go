package hsm

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/internal/ivshim"
)

// shimmed is testConfig before a library that differs from SoftHSM.
func shimmed(t *testing.T, differences ...string) Config {
	t.Helper()
	cfg := testConfig(t)
	cfg.Module = ivshim.New(t, cfg.Module, differences...)
	return cfg
}

func TestIVSources(t *testing.T) {
	for name, test := range map[string]struct {
		differences []string
		setting     IVSource
		want        ivWay
		size        int
	}{
		"ours by default":         {nil, "", ivOurs, 12},
		"ours":                    {nil, IVProcess, ivOurs, 12},
		"the HSM's generator":     {nil, IVHSM, ivDevices, 12},
		"like CloudHSM":           {[]string{ivshim.Written}, IVAuto, ivWritten, 12},
		"like CloudHSM, as told":  {[]string{ivshim.Written}, IVMechanism, ivWritten, 12},
		"like Luna in FIPS mode":  {[]string{ivshim.Appended}, IVAuto, ivAppended, 16},
		"like Luna, short IVs":    {[]string{ivshim.Appended, ivshim.Short + "=12"}, IVMechanism, ivAppended, 12},
		"like Luna before 7.9.3":  {[]string{ivshim.Appended, ivshim.ValueLength}, IVAuto, ivAppended, 16},
		"length wanted, ours IVs": {[]string{ivshim.ValueLength}, IVAuto, ivOurs, 12},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := shimmed(t, test.differences...)
			d := newDomain(t, func(c *Config) { c.Module, c.TokenLabel, c.IVSource = cfg.Module, cfg.TokenLabel, test.setting })
			if got := d.t.ivs(); got != test.want {
				t.Fatalf("IVs are %s, want %s", got, test.want)
			}
			if wants := slices.Contains(test.differences, ivshim.ValueLength); d.t.wantsLength.Load() != wants {
				t.Errorf("the device wants a length: %v, want %v", !wants, wants)
			}
			ekt, seen := newAES(t, d), map[string]bool{}
			for i := range 200 { // more than a block of the device's generator
				plain := bytes.Repeat([]byte{byte(i)}, i)
				iv, sealed, err := d.Encrypt(t.Context(), ekt, testAAD, plain)
				if err != nil || len(iv) != test.size || len(sealed) != i+16 || seen[string(iv)] || isZero(iv) {
					t.Fatalf("%d bytes: IV %x (seen: %v), %d sealed, %v", i, iv, seen[string(iv)], len(sealed), err)
				}
				seen[string(iv)] = true
				opened, err := d.Decrypt(t.Context(), ekt, iv, testAAD, sealed)
				if err != nil || !bytes.Equal(opened, plain) {
					t.Fatalf("%d bytes come back as %d, %v", i, len(opened), err)
				}
				iv[0] ^= 1
				if _, err := d.Decrypt(t.Context(), ekt, iv, testAAD, sealed); !errors.Is(err, ErrInvalidCiphertext) {
					t.Fatalf("%d bytes open with another IV: %v", i, err)
				}
			}
			if err := d.t.module.p11.CloseAllSessions(d.t.slot); err != nil {
				t.Fatal(err)
			}
			if _, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x")); err != nil {
				t.Errorf("after lost sessions: %v", err)
			}
		})
	}
}

// TestIVsOfTheDevice: one call of the generator makes IVs for many messages,
// and no byte of it is left for a second one.
func TestIVsOfTheDevice(t *testing.T) {
	d := newDomain(t, func(c *Config) { c.IVSource = IVHSM })
	err := d.t.onKeeper(t.Context(), func(s *session) error {
		s.random = nil // the probe took some
		iv := make([]byte, ivSize)
		if code := s.nextIV(iv); code != pkcs11.CKR_OK {
			return &DeviceError{Doing: "taking an IV", Code: code}
		}
		block := s.random
		if len(s.random) != ivBlock-ivSize {
			t.Errorf("%d bytes are left of a block", len(s.random))
		}
		next := bytes.Clone(block[:ivSize])
		if code := s.nextIV(iv); code != pkcs11.CKR_OK || !bytes.Equal(iv, next) || !isZero(block[:ivSize]) {
			t.Errorf("the second IV is %x of %x, %x is left", iv, next, block[:ivSize])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestIVsRefused: a source that the device has not keeps a domain from being
// opened, with the next step.
func TestIVsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		differences []string
		setting     IVSource
	}{
		"SoftHSM makes none":                  {nil, IVMechanism}, // it would take the zeros
		"CloudHSM takes none of ours":         {[]string{ivshim.Written}, IVProcess},
		"Luna takes none of ours":             {[]string{ivshim.Appended}, IVProcess},
		"Luna takes none, of whatever source": {[]string{ivshim.Appended}, IVHSM},
		"8 bytes":                             {[]string{ivshim.Appended, ivshim.Short + "=8"}, IVAuto},
		"always the same":                     {[]string{ivshim.Appended, ivshim.Stuck + "=1"}, IVAuto},
		"always zero":                         {[]string{ivshim.Written, ivshim.Stuck + "=0"}, IVAuto},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := shimmed(t, test.differences...)
			cfg.IVSource = test.setting
			token := openToken(t, cfg)
			err := token.CreateDomain(t.Context(), testDomain)
			if err == nil {
				_, err = token.OpenDomain(t.Context(), testDomain)
			}
			if err == nil || !strings.Contains(err.Error(), "--hsm-iv-source") || !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
		})
	}
	token := openToken(t, func() Config { c := testConfig(t); c.IVSource = "dice"; return c }())
	err := token.onKeeper(t.Context(), func(s *session) error { return s.chooseIVs() })
	if !errors.Is(err, ErrArgument) {
		t.Errorf("a source that is none: %v", err)
	}
}

// TestRepeatedIV: a device whose generator gets stuck while Trent runs seals
// nothing more.
func TestRepeatedIV(t *testing.T) {
	cfg := shimmed(t, ivshim.Written, ivshim.Stuck+"=40")
	metrics := prometheus.NewPedanticRegistry()
	d := newDomain(t, func(c *Config) { c.Module, c.TokenLabel, c.Metrics = cfg.Module, cfg.TokenLabel, metrics })
	ekt, seen := newAES(t, d), map[string]bool{}
	for range 100 {
		iv, _, err := d.Encrypt(t.Context(), ekt, nil, []byte("x"))
		if code, ok := codeOf(err); ok && code == ckrBadIV {
			if iv, sealed, err := d.Encrypt(t.Context(), ekt, nil, []byte("x")); err == nil {
				t.Errorf("once more it seals %x with IV %x", sealed, iv)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if seen[string(iv)] {
			t.Fatalf("IV %x came twice", iv)
		}
		seen[string(iv)] = true
	}
	t.Error("100 messages from a generator of 40 IVs")
}

// TestExamineIVs: doctor says what the device takes, and finds nothing wrong
// with one that makes its own.
func TestExamineIVs(t *testing.T) {
	for name, test := range map[string]struct {
		differences []string
		works       []IVSource
		chosen      IVSource
	}{
		"SoftHSM":  {nil, []IVSource{IVProcess, IVHSM}, IVProcess},
		"CloudHSM": {[]string{ivshim.Written}, []IVSource{IVMechanism}, IVMechanism},
		"Luna":     {[]string{ivshim.Appended, ivshim.ValueLength}, []IVSource{IVMechanism}, IVMechanism},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := shimmed(t, test.differences...)
			r, err := Examine(t.Context(), cfg, nil)
			if err != nil || !r.Usable() {
				t.Fatalf("%v, %+v", err, r.Findings)
			}
			var works []IVSource
			for _, check := range r.IVs {
				if check.Works {
					works = append(works, check.Source)
				}
				if check.Chosen != (check.Source == test.chosen) || check.Detail == "" {
					t.Errorf("%+v", check)
				}
			}
			if !slices.Equal(works, test.works) {
				t.Errorf("works: %v, want %v", works, test.works)
			}
			for _, a := range r.Answers {
				if a.Result != AnswerRight {
					t.Errorf("%s: %s, %s", a.Name, a.Result, a.Detail)
				}
			}
		})
	}
	cfg := shimmed(t, ivshim.Written)
	cfg.IVSource = IVProcess
	if r, err := Examine(t.Context(), cfg, nil); err != nil || r.Usable() {
		t.Errorf("a source that the device has not: %v, %+v", err, r.Findings)
	}
}
