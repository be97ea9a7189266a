package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
)

// wrapTrial is what came of trying a mechanism.
type wrapTrial struct {
	wrapMechanism
	offered bool
	err     error // errWrapForm, if it is offered and not to be used
}

// errWrapForm: the mechanism does something else than its number says.
var errWrapForm = errors.New("it does not wrap as it should")

// tryWraps tries all mechanisms on a session of its own, with which all that
// was left behind ends. Its errors are those of a device that is ill.
func (t *Token) tryWraps() ([]wrapTrial, error) {
	s, err := t.openSession()
	if err != nil {
		return nil, err
	}
	defer s.close()
	var trials []wrapTrial
	for _, m := range wrapMechanisms {
		t.module.getsOn()
		trial := wrapTrial{wrapMechanism: m}
		if trial.offered, err = s.offers(m.number); err != nil {
			return nil, err
		}
		if trial.offered {
			err = s.tryWrap(m)
			if errors.Is(err, errWrapForm) { // believe no device that says so once
				err = s.tryWrap(m)
			}
			if err != nil && !errors.Is(err, errWrapForm) {
				return nil, fmt.Errorf("trying %s: %w", mechanismName(m.number), err)
			}
			trial.err = err
		}
		trials = append(trials, trial)
	}
	return trials, nil
}

// offers asks whether the device has a mechanism for wrapping. For numbers that
// other vendors made up devices answer with various codes. Of those that a sick
// one may give, too, the first is not believed.
func (s *session) offers(m uint) (bool, error) {
	for again := true; ; again = false {
		err := s.lacksMechanism("", spec{}, m, pkcs11.CKF_WRAP|pkcs11.CKF_UNWRAP)
		code, refused := codeOf(err)
		switch c := classify(code); {
		case refused && c == classData && again:
		case refused && c != classOther && c != classData:
			return false, err
		default:
			return err == nil, nil
		}
	}
}

// tryWrap finds out whether a mechanism is of its form: by the published
// vector, if the device takes keys in the clear, and by keys that it makes.
func (s *session) tryWrap(m wrapMechanism) error {
	err := s.answerWrap(m)
	answered := err == nil
	if !answered && !s.unanswered(err) {
		return notForm(err)
	}
	wrapper, err := s.throwAwayKey(attr(pkcs11.CKA_ENCRYPT, false)) // as domain keys: some devices allow no more
	if err != nil {
		return err
	}
	defer s.destroy(wrapper)
	for _, c := range []keyClass{classAES, classGeneric} {
		if !slices.Contains(c.wrapForms(), m.form) {
			continue
		}
		if err := s.tryRoundTrip(wrapWay{c, m.number}, wrapper, answered); err != nil {
			return notForm(err)
		}
	}
	return nil
}

// unanswered says that a vector could not be put to the device.
func (s *session) unanswered(err error) bool {
	code, refused := codeOf(err)
	if errors.Is(err, errInTheClear) {
		return refused && (classify(code) == classOther || classify(code) == classData)
	}
	return refused && untriable(code)
}

// notForm tells a mechanism that is none for Trent from a device that is ill.
func notForm(err error) error {
	code, refused := codeOf(err)
	switch {
	case errors.Is(err, errWrongAnswer), errors.Is(err, errWrapForm):
	case refused && (classify(code) == classOther || classify(code) == classData || classify(code) == classForged):
	default:
		return err
	}
	return fmt.Errorf("%w: %w", errWrapForm, err)
}

// oddLength is the length in bytes of a secret that RFC 3394 cannot wrap.
const oddLength = 36

// tryRoundTrip demands that a key that the device makes comes back as it was,
// from as many bytes as the form has. That tells RFC 5649 from padding by
// PKCS #7, which always adds, but from RFC 3394 after zeros only if the vector
// was answered: else RFC 3394 must not open it.
func (s *session) tryRoundTrip(way wrapWay, wrapper pkcs11.ObjectHandle, answered bool) error {
	sp, size, sign := specs["SYMMETRIC_DEFAULT"], aesKeySize, uint(pkcs11.CKM_AES_CMAC)
	if way.class == classGeneric {
		sp, size, sign = specs["HMAC_256"], oddLength, pkcs11.CKM_SHA256_HMAC
	}
	key, err := s.t.module.p11.GenerateKey(s.handle, mechanism(sp.generate), sessionKeyTemplate(sp.keyType, size, true, pkcs11.CKA_SIGN))
	if err != nil {
		return deviceError("generating a throw-away key", err)
	}
	defer s.destroy(key)
	wrapped, err := s.wrap(way, wrapper, key)
	if err != nil {
		return err
	}
	if want := (size+7)/8*8 + 8; len(wrapped) != want {
		return fmt.Errorf("%w: a key of %d bytes becomes %d, not %d", errWrapForm, size, len(wrapped), want)
	}
	template := useTemplate(sp.keyType, pkcs11.CKA_SIGN)
	object, err := s.unwrapLength(way, wrapper, wrapped, size, template)
	if err != nil {
		return err
	}
	defer s.destroy(object)
	if err := s.sameMAC(sign, key, object); err != nil || answered || way.class == classAES {
		return err
	}
	return s.opensByNone(way, wrapper, wrapped, size, template)
}

// sameMAC demands that two keys compute the same.
func (s *session) sameMAC(mechanism uint, a, b pkcs11.ObjectHandle) error {
	var macs [2][]byte
	for i, key := range []pkcs11.ObjectHandle{a, b} {
		var err error
		if macs[i], err = s.mac("using a throw-away key", mechanism, key, checkMessage, longestMAC); err != nil {
			return err
		}
	}
	if !bytes.Equal(macs[0], macs[1]) {
		return fmt.Errorf("%w: a key comes back as another one", errWrapForm)
	}
	return nil
}

// opensByNone demands that no mechanism of another form opens what way wrapped.
func (s *session) opensByNone(way wrapWay, wrapper pkcs11.ObjectHandle, wrapped []byte, size int, template []*pkcs11.Attribute) error {
	for _, other := range wrapMechanisms {
		if other.form == way.class.formOf(way.mechanism) {
			continue
		}
		offered, err := s.offers(other.number)
		if err != nil {
			return err
		}
		if !offered {
			continue
		}
		object, err := s.unwrapLength(wrapWay{way.class, other.number}, wrapper, wrapped, size, template)
		if err == nil {
			s.destroy(object)
			return fmt.Errorf("%w: %s opens what it wraps", errWrapForm, mechanismName(other.number))
		}
		if err := notForm(err); !errors.Is(err, errWrapForm) {
			return err
		}
	}
	return nil
}

// WrapCheck says what the device does by a wrapping mechanism.
type WrapCheck struct {
	Mechanism string   `json:"mechanism"`
	Form      string   `json:"form"` // RFC 3394 or RFC 5649
	Works     bool     `json:"works"`
	Chosen    []string `json:"chosenFor,omitempty"` // classes of new keys
	Detail    string   `json:"detail,omitempty"`
}

// tryWraps is part of Examine. Numbers that vendors made up are shown where
// the device has them.
func (r *Report) tryWraps(ctx context.Context, t *Token) {
	var trials []wrapTrial
	var ways wrapWays
	err := t.onKeeperRetrying(ctx, func(s *session) (err error) {
		if trials, err = t.tryWraps(); err == nil {
			ways, err = s.ways()
		}
		return err
	})
	if err != nil {
		r.add(SeverityError, "%v", err)
	}
	for _, trial := range trials {
		check := WrapCheck{Mechanism: mechanismName(trial.number), Form: trial.form.String(), Works: trial.offered && trial.err == nil}
		switch {
		case !trial.offered && trial.number >= pkcs11.CKM_VENDOR_DEFINED:
			continue
		case !trial.offered:
			check.Detail = "the device does not have it"
		case trial.err != nil:
			check.Detail = trial.err.Error()
		}
		for _, c := range keyClasses {
			if len(ways[c]) > 0 && ways[c][0] == trial.number {
				check.Chosen = append(check.Chosen, c.String())
			}
		}
		r.Wraps = append(r.Wraps, check)
	}
}

// lookAtWraps goes by what the device says of its mechanisms.
func (r *Report) lookAtWraps(m *module, s slot) {
	for _, need := range []struct {
		class   keyClass
		purpose string
	}{
		{classAES, "wrapping AES backing keys"},
		{classGeneric, "wrapping secrets of access keys and private keys"},
	} {
		check := MechanismCheck{Name: mechanismName(need.class.wrapForms()[0].first()), Purpose: need.purpose, Required: true}
		var all []string
		for _, form := range need.class.wrapForms() {
			for _, candidate := range wrapMechanisms {
				if candidate.form != form || check.Present {
					continue
				}
				info, err := m.p11.GetMechanismInfo(s.id, mechanism(candidate.number))
				all = append(all, mechanismName(candidate.number))
				if flags := uint(pkcs11.CKF_WRAP | pkcs11.CKF_UNWRAP); err == nil && info.Flags&flags == flags {
					check.Present, check.Name = true, mechanismName(candidate.number)
				}
			}
		}
		r.Mechanisms = append(r.Mechanisms, check)
		if !check.Present {
			r.add(SeverityError, "the token has none of %q, of which Trent needs one for %s; enable one (look for a FIPS mode or a licence) or choose another device", all, need.purpose)
		}
	}
}
