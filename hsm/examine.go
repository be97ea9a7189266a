package hsm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/miekg/pkcs11"
)

// Report is what doctor shows about a token.
type Report struct {
	Module     string           `json:"module"`
	Tokens     []Info           `json:"tokens"`          // all that the library shows
	Token      *Info            `json:"token,omitempty"` // the one that is configured
	LoggedIn   bool             `json:"loggedIn"`
	Mechanisms []MechanismCheck `json:"mechanisms"`
	Domains    []string         `json:"domains"` // ids of deployments with objects here
	// KeySpecs are tried if a domain is here, else judged by their mechanisms.
	KeySpecs    []KeySpecCheck `json:"keySpecs,omitempty"`
	Answers     []AnswerCheck  `json:"knownAnswers,omitempty"`
	Wraps       []WrapCheck    `json:"wraps,omitempty"`
	IVs         []IVCheck      `json:"ivs,omitempty"`
	Rules       []RuleCheck    `json:"attributeRules,omitempty"`
	Rates       []RateCheck    `json:"rates,omitempty"`
	RecoveredIn string         `json:"recoveredIn,omitempty"` // after all sessions were lost
	Vendor      *Vendor        `json:"vendor,omitempty"`      // what is known of its family
	Verdicts    []Verdict      `json:"verdicts,omitempty"`
	Findings    []Finding      `json:"findings"`
}

// MechanismCheck says whether the token has a mechanism that Trent uses.
type MechanismCheck struct {
	Name     string `json:"name"`
	Purpose  string `json:"purpose"`
	Required bool   `json:"required"`
	Present  bool   `json:"present"`
}

// KeySpecCheck says whether the token can make, wrap and use keys of an AWS
// key spec.
type KeySpecCheck struct {
	Spec      string `json:"spec"`
	Supported bool   `json:"supported"`
	Missing   string `json:"missing,omitempty"` // mechanism and reason
}

// Severities of findings.
const (
	SeverityError   = "error"   // Trent cannot run with this token
	SeverityWarning = "warning" // it can, with what the text says
)

// Finding is one thing that doctor has to say, with the next step.
type Finding struct {
	Severity string `json:"severity"`
	Text     string `json:"text"`
}

// Usable reports whether nothing that Trent needs is missing.
func (r Report) Usable() bool {
	for _, f := range r.Findings {
		if f.Severity == SeverityError {
			return false
		}
	}
	return true
}

func (r *Report) add(severity, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{severity, fmt.Sprintf(format, args...)})
}

// needs lists the mechanisms with the flags that make them useful. Those that
// wrap are chosen from several: see lookAtWraps.
var needs = []struct {
	name, purpose string
	mechanism     uint
	flags         uint
	required      bool
}{
	{"CKM_AES_KEY_GEN", "making domain and backing keys", pkcs11.CKM_AES_KEY_GEN, pkcs11.CKF_GENERATE, true},
	{"CKM_AES_GCM", "encrypting and decrypting", pkcs11.CKM_AES_GCM, pkcs11.CKF_ENCRYPT | pkcs11.CKF_DECRYPT, true},
	{"CKM_GENERIC_SECRET_KEY_GEN", "making the MAC key of database rows", pkcs11.CKM_GENERIC_SECRET_KEY_GEN, pkcs11.CKF_GENERATE, true},
	{"CKM_SHA256_HMAC", "MACs of database rows and signatures of requests", pkcs11.CKM_SHA256_HMAC, pkcs11.CKF_SIGN | pkcs11.CKF_VERIFY, true},
	{"CKM_AES_CMAC", "check values of AES keys", pkcs11.CKM_AES_CMAC, pkcs11.CKF_SIGN, true},
	{"CKM_EC_KEY_PAIR_GEN", "making elliptic curve keys, and proving that private keys stay in", pkcs11.CKM_EC_KEY_PAIR_GEN, pkcs11.CKF_GENERATE_KEY_PAIR, false},
}

// Examine looks at what cfg names and says what is missing and what that
// means. It works with whatever is there: the error is set only if ctx ended.
// The PIN is tried at most once. known are the proofs, by domain, of the
// generations that several members hold; a domain that is not in it could not
// be asked for, so that its copies are neither believed nor held against it.
func Examine(ctx context.Context, cfg Config, known map[DomainID]Proofs) (Report, error) {
	r := Report{Module: cfg.Module}
	if err := ctx.Err(); err != nil {
		return r, err
	}
	cfg.Metrics = nil
	r.lookAround(cfg.withDefaults())
	if !r.Usable() {
		return r, nil
	}
	t, err := Open(ctx, cfg)
	if err != nil {
		r.add(SeverityError, "%v", err)
		return r, ctx.Err()
	}
	defer t.Close() //nolint:errcheck // only read from
	r.LoggedIn = true
	r.tryIVs(ctx, t)
	r.tryWraps(ctx, t)
	r.lookInside(ctx, t, known)
	r.tryAnswers(ctx, t)
	r.tryRules(ctx, t)
	r.tryRates(t)
	r.tryLoss(ctx, t)
	r.conclude()
	return r, ctx.Err()
}

// lookAround needs no login.
func (r *Report) lookAround(cfg Config) {
	m, err := load(cfg.Module)
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		err = m.look(func() error { return r.lookAtSlots(m, cfg) })
	}
	if err != nil {
		r.add(SeverityError, "%v", err)
	}
}

func (r *Report) lookAtSlots(m *module, cfg Config) error {
	slots, err := m.slots()
	if err != nil {
		return err
	}
	for _, s := range slots {
		if s.token.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			r.Tokens = append(r.Tokens, m.describe(s))
		}
	}
	chosen, err := choose(slots, cfg)
	if err != nil {
		return err
	}
	info := m.describe(chosen)
	r.Token = &info
	r.Vendor = vendorOf(info)
	r.lookAtSessions(chosen, cfg)
	if chosen.token.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 {
		r.add(SeverityWarning, "a wrong PIN was tried on token %q lately; find out by whom", info.Label)
	}
	r.lookAtMechanisms(m, chosen)
	return loginAllowed(chosen, cfg.PIN)
}

// lookAtSessions compares what the token says of its sessions with what Trent
// opens: as many as are configured for symmetric calls, for private keys and
// for making keys, and one each for the login, the keeper and MACs of rows.
func (r *Report) lookAtSessions(s slot, cfg Config) {
	most, needed := s.token.MaxRwSessionCount, uint(3+cfg.Sessions+2*cfg.AsymmetricSessions)
	if most != pkcs11.CK_EFFECTIVELY_INFINITE && most != pkcs11.CK_UNAVAILABLE_INFORMATION && most < needed {
		r.add(SeverityWarning, "token %q allows %d sessions, Trent opens %d on each host: have the limit raised", s.token.Label, most, needed)
	}
}

func (r *Report) lookAtMechanisms(m *module, s slot) {
	for _, need := range needs {
		info, err := m.p11.GetMechanismInfo(s.id, mechanism(need.mechanism))
		present := err == nil && info.Flags&need.flags == need.flags
		r.Mechanisms = append(r.Mechanisms, MechanismCheck{need.name, need.purpose, need.required, present})
		switch {
		case present:
		case need.required:
			r.add(SeverityError, "the token has no %s, which Trent needs for %s; enable it (look for a FIPS mode or a licence) or choose another device", need.name, need.purpose)
		default:
			r.add(SeverityWarning, "the token has no %s: no %s", need.name, need.purpose)
		}
	}
	r.lookAtWraps(m, s)
}

func (r *Report) lookInside(ctx context.Context, t *Token, known map[DomainID]Proofs) {
	if err := t.Ping(ctx); err != nil {
		r.add(SeverityError, "asking for random bytes: %v", err)
	}
	ids, err := t.Domains(ctx)
	if err != nil {
		r.add(SeverityError, "%v", err)
	}
	for _, id := range ids {
		r.Domains = append(r.Domains, id.String())
		proofs, asked := known[id]
		d, err := t.OpenProved(ctx, id, proofs)
		if err == nil {
			r.lookAtGenerations(ctx, d)
		}
		switch {
		case err == nil && len(r.KeySpecs) == 0:
			r.tryKeySpecs(d.Supports)
			r.tryImports(d)
		case err == nil:
		case errors.Is(err, ErrNoDomain), errors.Is(err, errOutside) && !asked:
			r.add(SeverityWarning, "%v", err)
		default:
			r.add(SeverityError, "%v", err)
		}
	}
	if len(r.KeySpecs) == 0 {
		r.tryKeySpecs(func(name string, use Use) error { // by what the device says of its mechanisms
			return t.onKeeperRetrying(ctx, func(s *session) error { return s.lacks(name, specs[name], use) })
		})
	}
}

// tryKeySpecs finds out by lacks, which answers as Member.Supports does.
func (r *Report) tryKeySpecs(lacks func(name string, use Use) error) {
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		check := KeySpecCheck{Spec: name, Supported: true}
		for use := range specs[name].uses {
			var unsupported *UnsupportedError
			switch err := lacks(name, use); {
			case errors.As(err, &unsupported):
				check.Supported = false
				check.Missing = unsupported.Mechanism + ": " + unsupported.Why
			case err != nil:
				r.add(SeverityError, "trying to make keys of %s: %v", name, err)
				return
			}
		}
		r.KeySpecs = append(r.KeySpecs, check)
	}
}

// lookAtGenerations says what is to be feared of each generation of the domain
// keys. Of a retired one only the MAC key is there, as it should be.
func (r *Report) lookAtGenerations(ctx context.Context, d *Member) {
	all, err := d.Generations(ctx)
	if err != nil {
		r.add(SeverityError, "%v", err)
	}
	for _, g := range all {
		switch {
		case g.Whole && g.Profile == Locked:
			r.add(SeverityWarning, "domain keys of generation %d are of the locked profile: keys in use can never be taken out, but whoever holds the PIN can take out keys that he makes himself, and keys stay under the generation that they were made with", g.Number)
		case g.Whole && g.Public:
			r.add(SeverityWarning, "domain keys of generation %d are trusted, but public objects, which this token may keep unencrypted: for tests only", g.Number)
		case !g.Whole && g.Shared:
			r.add(SeverityError, "domain keys of generation %d: %s", g.Number, g.Why)
		case !g.Whole && !g.Retired:
			r.add(SeverityWarning, "domain keys of generation %d: %s", g.Number, g.Why)
		}
	}
}
