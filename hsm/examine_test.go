package hsm

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// TestExamineTries: on SoftHSM every vector comes out right, every rule that
// guards keys holds, and what does not hold is said.
func TestExamineTries(t *testing.T) {
	d := newDomain(t, nil)
	r, err := Examine(t.Context(), d.t.cfg, nil)
	if err != nil || !r.Usable() {
		t.Fatalf("got %v, %+v", err, r.Findings)
	}
	if len(r.Answers) != len(knownAnswers) {
		t.Errorf("%d of %d vectors tried", len(r.Answers), len(knownAnswers))
	}
	for _, a := range r.Answers {
		if a.Result != AnswerRight {
			t.Errorf("%s: %s, %s", a.Name, a.Result, a.Detail)
		}
	}
	for i, rule := range r.Rules {
		if attributeRules[i].endangers && rule.Result != RuleHolds {
			t.Errorf("%s: %s, %s", rule.Name, rule.Result, rule.Detail)
		}
	}
	for feature, want := range map[string]string{
		"symmetric keys": VerdictWorks, "Ed25519 keys": VerdictAbsent, "ML-KEM keys": VerdictAbsent,
		"import of key material": VerdictPartly, "recovery from lost sessions": VerdictWorks,
	} {
		i := slices.IndexFunc(r.Verdicts, func(v Verdict) bool { return v.Feature == feature })
		if i < 0 || r.Verdicts[i].Verdict != want {
			t.Errorf("verdict on %s: %+v, want %s", feature, r.Verdicts, want)
		}
	}
	if len(r.Rates) != 3 || r.RecoveredIn == "" || r.Vendor.Family != "SoftHSM" {
		t.Errorf("rates %v, recovered in %q, family %q", r.Rates, r.RecoveredIn, r.Vendor.Family)
	}
}

// TestWrongAnswers: a device that verifies what it should not is found out.
func TestWrongAnswers(t *testing.T) {
	d := newDomain(t, nil)
	err := d.t.onKeeper(t.Context(), func(s *session) error {
		return s.answerSignature(pkcs11.CKM_RSA_PKCS, []byte("signed"), make([]byte, 256),
			attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
			attr(pkcs11.CKA_MODULUS, append([]byte{0xC1}, make([]byte, 255)...)),
			attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	})
	if !errors.Is(err, errWrongAnswer) {
		t.Errorf("a signature that does not fit: %v", err)
	}
}

// TestBrokenRules: what a rule's try refuses to see allowed is allowed for
// keys that are made open.
func TestBrokenRules(t *testing.T) {
	d := newDomain(t, nil)
	for name, try := range map[string]func(*session) error{
		"EXTRACTABLE": func(s *session) error { return s.tryWrapping(attr(pkcs11.CKA_EXTRACTABLE, true)) },
		"MODIFIABLE": func(s *session) error {
			return s.tryTurning(attr(pkcs11.CKA_DECRYPT, true), attr(pkcs11.CKA_MODIFIABLE, true))
		},
	} {
		if err := d.t.onKeeper(t.Context(), try); !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRefusals: a rule holds by what the device refuses, not by what fails on
// a device that is ill.
func TestRefusals(t *testing.T) {
	d := newDomain(t, nil)
	got := map[uint]error{}
	if err := d.t.onKeeper(t.Context(), func(s *session) error {
		for _, code := range []uint{
			pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_KEY_UNEXTRACTABLE, pkcs11.CKR_ATTRIBUTE_SENSITIVE, pkcs11.CKR_GENERAL_ERROR,
			pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN,
		} {
			got[code] = s.mustRefuse("trying", pkcs11.Error(code))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for code, err := range got {
		ill := classify(code) != classOther && classify(code) != classData
		if (err != nil) != ill || errors.Is(err, errBroken) {
			t.Errorf("%s: %v", codeName(code), err)
		}
	}
	if err := (*session)(nil).mustRefuse("trying", nil); !errors.Is(err, errBroken) {
		t.Errorf("what succeeds: %v", err)
	}
}

// TestFailuresAreNoRefusals: nor does a try to use a key that must be of no use.
func TestFailuresAreNoRefusals(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	tries := map[string]func(*session) error{
		"session objects": (*session).trySessionObjects,
		"mechanisms": func(s *session) error {
			key, err := s.throwAwayKey(attr(pkcs11.CKA_ENCRYPT, false))
			if err != nil {
				return err
			}
			defer s.destroy(key)
			return s.mustNotSeal("using a key by another mechanism", key)
		},
	}
	for name, try := range tries {
		for code, want := range map[uint]bool{pkcs11.CKR_OK: true, pkcs11.CKR_DEVICE_ERROR: false, pkcs11.CKR_HOST_MEMORY: false, pkcs11.CKR_USER_NOT_LOGGED_IN: false} {
			err := d.t.onKeeperRetrying(t.Context(), func(s *session) (err error) {
				if code != pkcs11.CKR_OK {
					shim.Set("C_EncryptInit", faultshim.Fault{Action: faultshim.Fail, Code: code, Times: 1})
					defer shim.Clear()
				}
				// Not the error itself, or the token would be recovered from it.
				if got := try(s); (got == nil) != want || errors.Is(got, errBroken) {
					t.Errorf("%s, %s: %v", name, codeName(code), got)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestVerdictsNeedEvidence: what was not tried does not work.
func TestVerdictsNeedEvidence(t *testing.T) {
	works := func(r Report) (features []string) {
		r.conclude()
		for _, v := range r.Verdicts {
			if v.Verdict == VerdictWorks {
				features = append(features, v.Feature)
			}
		}
		return features
	}
	if features := works(Report{}); len(features) != 0 {
		t.Errorf("without having been tried works %q", features)
	}
	tried := Report{RecoveredIn: "1ms"}
	for _, rule := range attributeRules {
		tried.Rules = append(tried.Rules, RuleCheck{Name: rule.name, Result: RuleHolds})
	}
	all := len(works(tried))
	for i, rule := range attributeRules {
		if !rule.endangers {
			continue
		}
		tried.Rules[i].Result = RuleBroken
		if n := len(works(tried)); n != all-1 {
			t.Errorf("although it is broken that %s, %d of %d features work", rule.name, n, all)
		}
		tried.Rules[i].Result = RuleHolds
	}
}

// TestUntriedAnswers: a device that could not be asked has not answered wrongly.
func TestUntriedAnswers(t *testing.T) {
	d := newDomain(t, nil)
	defer func(was []knownAnswer) { knownAnswers = was }(knownAnswers)
	knownAnswers = []knownAnswer{
		{"ill", "", func(*session) error { return &DeviceError{Doing: "encrypting", Code: pkcs11.CKR_HOST_MEMORY} }},
		{"wrong", "", func(*session) error { return errWrongAnswer }},
		{"none", "", func(*session) error { return &DeviceError{Doing: "encrypting", Code: pkcs11.CKR_MECHANISM_INVALID} }},
	}
	var r Report
	r.tryAnswers(t.Context(), d.t)
	for i, want := range []string{AnswerRefused, AnswerWrong, AnswerRefused} {
		if r.Answers[i].Result != want {
			t.Errorf("%s: %+v, want %s", r.Answers[i].Name, r.Answers[i], want)
		}
	}
	if len(r.Findings) != 2 || r.Usable() || strings.Contains(r.Findings[0].Text, "vendor") || !strings.Contains(r.Findings[1].Text, "vendor") {
		t.Errorf("%+v", r.Findings)
	}
}
