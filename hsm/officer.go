package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/failpoint"
)

// MakeTrustedKeys has the security officer make the domain keys of a trusted
// generation, those that are not there yet: only he can mark a key trusted.
// cfg.PIN is not used. No token may be open in this process, since a process is
// logged in as one user only. The user then makes the generation's MAC key and
// proves it all: see Member.CreateGeneration.
func MakeTrustedKeys(ctx context.Context, cfg Config, officer PIN, id DomainID, number uint32) error {
	return asOfficer(ctx, cfg, officer, func(s *session) error {
		ways, err := s.offeredWays()
		if err != nil {
			return err
		}
		for _, c := range keyClasses {
			if err := s.makeTrustedKey(id, number, c, c.pinned(ways[c])); err != nil {
				return fmt.Errorf("making the trusted %s domain key: %w", c, err)
			}
			failpoint.Hit("generation.domainkey." + c.String())
		}
		return nil
	})
}

// asOfficer runs f on a session of the security officer's. The PIN is tried
// once.
func asOfficer(ctx context.Context, cfg Config, officer PIN, f func(*session) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	m, err := load(cfg.Module)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users > 0 {
		return fmt.Errorf("%w: this process is logged in to a token as its user: the security officer comes first", ErrArgument)
	}
	return m.look(func() error {
		slots, err := m.slots()
		if err != nil {
			return err
		}
		chosen, err := choose(slots, cfg)
		if err != nil {
			return err
		}
		t := &Token{cfg: cfg, log: cfg.Logger, module: m, slot: chosen.id, info: m.describe(chosen)}
		t.stats = newMetrics(nil, t)
		s, err := t.openSession()
		if err != nil {
			return err
		}
		defer s.close()
		if err := m.p11.Login(s.handle, pkcs11.CKU_SO, officer.reveal()); err != nil {
			return officerRefused(chosen, err)
		}
		defer m.p11.Logout(s.handle) //nolint:errcheck // the session ends
		return f(s)
	})
}

func officerRefused(s slot, err error) error {
	if code, ok := codeOf(err); ok && classify(code) == classPIN {
		return fmt.Errorf("%w of the security officer of token %q: %s; it was tried once: correct it, and mind that a few wrong tries lock the token for good",
			ErrPINIncorrect, s.token.Label, codeName(code))
	}
	return deviceError(fmt.Sprintf("logging in to %q as security officer", s.token.Label), err)
}

// officersRefusals are how devices say that the security officer may not have
// private objects (PKCS#11 v2.40 §4.4): SoftHSM and others.
var officersRefusals = []uint{pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID}

func (s *session) makeTrustedKey(id DomainID, number uint32, c keyClass, by []uint) error {
	_, err := s.findOne(id.label(domainKeyRole(c), number))
	if !errors.Is(err, errNotFound) {
		return err
	}
	nested, free := nestedTemplate(unwrapTemplate(c, Trusted))
	defer free()
	template := append(domainKeyTemplate(id, number, c, by),
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attr(pkcs11.CKA_VALUE_LEN, aesKeySize),
		attr(pkcs11.CKA_TRUSTED, true),
		attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested))
	_, err = s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), template)
	if isCode(err, officersRefusals...) {
		s.t.log.Warn("this token's security officer makes only public objects, which it may keep unencrypted: for tests only", "token", s.t.info.Label)
		_, err = s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), altered(template, attr(pkcs11.CKA_PRIVATE, false)))
	}
	return deviceError("generating", err)
}

// ProveOfficer shows that officer is the PIN of the token's security officer,
// under the conditions of MakeTrustedKeys.
func ProveOfficer(ctx context.Context, cfg Config, officer PIN) error {
	return asOfficer(ctx, cfg, officer, func(*session) error { return nil })
}
