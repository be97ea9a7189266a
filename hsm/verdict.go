package hsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// RateCheck is what the token does by itself: AES-256-GCM of 32 bytes.
type RateCheck struct {
	Sessions  int     `json:"sessions"` // each with a caller of its own
	PerSecond float64 `json:"perSecond"`
}

// Verdict says whether a feature of Trent will do on this token.
type Verdict struct {
	Feature string `json:"feature"`
	Verdict string `json:"verdict"` // one of the Verdict constants
	Why     string `json:"why,omitempty"`
}

// Verdicts.
const (
	VerdictWorks  = "works"
	VerdictPartly = "partly"
	VerdictAbsent = "absent"
)

// rateTime is how long each rate is measured.
const rateTime = 250 * time.Millisecond

// tryRates is part of Examine. A rate that falls with the number of sessions
// tells of a device that serves one at a time.
func (r *Report) tryRates(t *Token) {
	for _, sessions := range []int{1, 4, 16} {
		rate, err := t.rate(rateTime, sessions, false)
		if err != nil {
			r.add(SeverityWarning, "using %d sessions at once: %v; if the token has few sessions, set --hsm-sessions", sessions, err)
			return
		}
		r.Rates = append(r.Rates, RateCheck{sessions, rate})
	}
}

// tryLoss is part of Examine: it closes all of this process's sessions behind
// Trent's back, as a device that restarts does, and looks whether Trent finds
// back by itself. Other processes keep theirs (PKCS#11 §5.6).
func (r *Report) tryLoss(ctx context.Context, t *Token) {
	if err := t.module.p11.CloseAllSessions(t.slot); err != nil {
		r.add(SeverityWarning, "closing all sessions: %v", deviceError("closing", err))
		return
	}
	begun := time.Now()
	if err := t.Ping(ctx); err != nil {
		r.add(SeverityError, "after all sessions were lost the token does not come back: %v", err)
		return
	}
	r.RecoveredIn = time.Since(begun).Round(time.Microsecond).String()
}

// features group key specs as people think of them.
var features = []struct {
	name  string
	specs []string
}{
	{"symmetric keys", []string{"SYMMETRIC_DEFAULT"}},
	{"HMAC keys", []string{"HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512"}},
	{"RSA keys", []string{"RSA_2048", "RSA_3072", "RSA_4096"}},
	{"elliptic curve keys", []string{"ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1"}},
	{"Ed25519 keys", []string{"ECC_NIST_EDWARDS25519"}},
	{"ML-DSA keys", []string{"ML_DSA_44", "ML_DSA_65", "ML_DSA_87"}},
	{"ML-KEM keys", []string{"ML_KEM_512", "ML_KEM_768", "ML_KEM_1024"}},
}

// conclude adds the verdicts that follow from what was found.
func (r *Report) conclude() {
	for _, feature := range features {
		why, supported, found := "", 0, 0
		if len(r.Domains) == 0 {
			why = "by its mechanisms; run doctor again after trent init, when it can be tried"
		}
		for _, check := range r.KeySpecs {
			switch {
			case !slices.Contains(feature.specs, check.Spec):
				continue
			case check.Supported:
				supported++
			default:
				why = check.Spec + ": " + check.Missing
			}
			found++
		}
		if found < len(feature.specs) {
			why = "not all of it could be tried: see the findings"
		}
		verdict := VerdictPartly
		switch supported {
		case 0:
			verdict = VerdictAbsent
		case len(feature.specs):
			verdict = VerdictWorks
		}
		r.Verdicts = append(r.Verdicts, Verdict{feature.name, verdict, why})
	}
	var guards []string
	for _, rule := range attributeRules {
		if rule.endangers {
			guards = append(guards, rule.name)
		}
	}
	r.Verdicts = append(r.Verdicts,
		r.ruled("locked domain keys: keys in use never leave", guards...),
		r.ruled("trusted domain keys: re-wrapping and further HSMs for existing keys (needs the security officer)", ruleWrapWithTrusted))
	if r.RecoveredIn == "" {
		r.Verdicts = append(r.Verdicts, Verdict{"recovery from lost sessions", VerdictAbsent, "see the findings"})
		return
	}
	r.Verdicts = append(r.Verdicts, Verdict{"recovery from lost sessions", VerdictWorks, "in " + r.RecoveredIn})
}

// ruled is the verdict on a feature that stands on attribute rules: all of
// them must have been found to hold.
func (r *Report) ruled(feature string, rules ...string) Verdict {
	for _, rule := range rules {
		i := slices.IndexFunc(r.Rules, func(check RuleCheck) bool { return check.Name == rule })
		switch {
		case i < 0:
			return Verdict{feature, VerdictAbsent, "it could not be tried: see the findings"}
		case r.Rules[i].Result != RuleHolds:
			return Verdict{feature, VerdictAbsent, rule + ": " + r.Rules[i].Detail}
		}
	}
	return Verdict{feature, VerdictWorks, ""}
}

// tryImports says which of AWS's wrapping algorithms can be unwrapped inside.
func (r *Report) tryImports(d *Member) {
	var inside, refused []string
	for _, algorithm := range []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"} {
		err := d.SupportsImport(algorithm, "SYMMETRIC_DEFAULT", UseEncrypt)
		var unsupported *UnsupportedError
		switch {
		case err == nil:
			inside = append(inside, algorithm)
		case errors.As(err, &unsupported):
			refused = append(refused, fmt.Sprintf("%s (%s)", algorithm, unsupported.Mechanism))
		default:
			r.add(SeverityError, "trying to import by %s: %v", algorithm, err)
			return
		}
	}
	v := Verdict{"import of key material", VerdictWorks, "by " + strings.Join(inside, ", ")}
	switch {
	case len(inside) == 0:
		v.Verdict, v.Why = VerdictAbsent, "the device would need Trent's memory for "+strings.Join(refused, ", ")
	case len(refused) > 0:
		v.Verdict = VerdictPartly
		v.Why += "; the device would need Trent's memory for " + strings.Join(refused, ", ")
	}
	r.Verdicts = append(r.Verdicts, v)
}
