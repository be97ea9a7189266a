package hsm

import (
	"errors"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"
)

// TestExamineTries: on SoftHSM every vector comes out right, every rule that
// guards keys holds, and what does not hold is said.
func TestExamineTries(t *testing.T) {
	d := newDomain(t, nil)
	r, err := Examine(t.Context(), d.t.cfg)
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
