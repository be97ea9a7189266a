package hsm

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // see wantHMAC
	"errors"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
)

// RuleCheck is a rule of PKCS#11 about attributes that Trent relies on, tried
// with throw-away session objects.
type RuleCheck struct {
	Name   string `json:"name"`
	Means  string `json:"means"`            // what follows if it is broken
	Result string `json:"result"`           // one of the Rule constants
	Detail string `json:"detail,omitempty"` // what the device answered
}

// Results of a RuleCheck.
const (
	RuleHolds   = "holds"
	RuleBroken  = "broken"
	RuleUnknown = "unknown" // the device does not know what is asked for
)

// errBroken is what a rule's try returns when the device does what it must not.
var errBroken = errors.New("the rule is broken")

// attributeRule is tried on one session. A nil error means that it holds.
type attributeRule struct {
	name, means string
	// endangers: keys could leave the device if it is broken. unknownToo: as
	// well if the device does not know the attribute.
	endangers, unknownToo bool
	try                   func(*session) error
}

// ruleWrapWithTrusted is the name of a rule that a verdict looks at.
const ruleWrapWithTrusted = "WRAP_WITH_TRUSTED keys are wrapped by trusted keys only"

var attributeRules = []attributeRule{
	{"SENSITIVE keys cannot be read", "keys would lie open", true, true, (*session).trySensitive},
	{"SENSITIVE cannot be turned off", "keys would lie open", true, true, (*session).trySensitiveOff},
	{"keys that are not EXTRACTABLE cannot be wrapped", "keys in use could be taken out", true, true, (*session).tryWrapUnextractable},
	{"EXTRACTABLE cannot be turned on again", "keys in use could be taken out", true, true, (*session).tryExtractableOn},
	{"unwrap templates bind whoever unwraps", "whoever holds the PIN could unwrap backing keys as readable objects", true, true, (*session).tryUnwrapTemplate},
	{"keys that are not MODIFIABLE stay as they are", "a PIN holder could give keys in use further uses", true, false, (*session).tryModify},
	{ruleWrapWithTrusted, "a PIN holder can take out keys that he makes himself, and there is no trusted profile of domain keys", false, false, (*session).tryWrapWithTrusted},
	{"unwrapped keys can be held to their mechanisms", "a PIN holder can use keys in use with every mechanism of their type", false, false, (*session).tryMechanismsOnUnwrap},
	{"session objects end with their session", "objects could pile up after lost sessions", false, false, (*session).trySessionObjects},
	{"wrapping keeps odd lengths", "secrets come back padded with zeros: harmless to HMAC, for which alone Trent uses such keys", false, false, (*session).tryOddLength},
}

// tryRules is part of Examine.
func (r *Report) tryRules(ctx context.Context, t *Token) {
	for _, rule := range attributeRules {
		check := RuleCheck{Name: rule.name, Means: rule.means, Result: RuleHolds}
		err := t.onKeeperRetrying(ctx, rule.try)
		code, refused := codeOf(err)
		switch {
		case err == nil:
		case errors.Is(err, errBroken):
			check.Result, check.Detail = RuleBroken, err.Error()
		case refused && untriable(code):
			check.Result, check.Detail = RuleUnknown, err.Error()
		default:
			r.add(SeverityError, "trying whether %s: %v", rule.name, err)
			check.Result, check.Detail = RuleUnknown, err.Error()
		}
		r.Rules = append(r.Rules, check)
		if check.Result == RuleHolds {
			continue
		}
		severity := SeverityWarning
		if rule.endangers && (check.Result == RuleBroken || rule.unknownToo) {
			severity = SeverityError
		}
		r.add(severity, "%q does not hold on this token (%s): %s", rule.name, check.Detail, rule.means)
	}
}

// throwAwayKey generates an AES session key that is SENSITIVE, and that is
// not EXTRACTABLE nor anything else unless changed says so.
func (s *session) throwAwayKey(changed ...*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	template := append(usage(pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP),
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attr(pkcs11.CKA_VALUE_LEN, aesKeySize),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false))
	for _, a := range changed {
		if slices.ContainsFunc(template, func(b *pkcs11.Attribute) bool { return b.Type == a.Type }) {
			template = altered(template, a)
		} else {
			template = append(template, a)
		}
	}
	key, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), template)
	return key, deviceError("generating a throw-away key", err)
}

// mustRefuse turns a call's success into errBroken, and its refusal into nil.
// A device that is ill, or a session that is lost, has refused nothing.
func (s *session) mustRefuse(what string, err error) error {
	if err == nil {
		return fmt.Errorf("%s succeeds: %w", what, errBroken)
	}
	code, ok := codeOf(err)
	if !ok {
		return err
	}
	switch classify(code) {
	case classOther, classForged:
		return nil
	case classData: // some say no by these codes: believe a device that works
		key, ill := s.throwAwayKey()
		if ill == nil {
			s.destroy(key)
			return nil
		}
	}
	return deviceError(what, err)
}

func (s *session) trySensitive() error {
	key, err := s.throwAwayKey(attr(pkcs11.CKA_EXTRACTABLE, true))
	if err != nil {
		return err
	}
	defer s.destroy(key)
	out := make([]byte, aesKeySize)
	defer clear(out)
	length, code := s.t.module.native.attribute(s.handle, key, pkcs11.CKA_VALUE, out)
	if code == pkcs11.CKR_OK && length == 0 {
		return nil // as much as it shows is nothing
	}
	return s.mustRefuse("reading CKA_VALUE", codeError("reading CKA_VALUE", code))
}

func (s *session) trySensitiveOff() error {
	return s.tryTurning(attr(pkcs11.CKA_SENSITIVE, false))
}

func (s *session) tryExtractableOn() error {
	return s.tryTurning(attr(pkcs11.CKA_EXTRACTABLE, true))
}

// tryTurning changes an attribute of a key, and of a copy as it is made.
func (s *session) tryTurning(to *pkcs11.Attribute, with ...*pkcs11.Attribute) error {
	p11 := s.t.module.p11
	key, err := s.throwAwayKey(with...)
	if err != nil {
		return err
	}
	defer s.destroy(key)
	if err := s.mustRefuse("C_SetAttributeValue", p11.SetAttributeValue(s.handle, key, []*pkcs11.Attribute{to})); err != nil {
		return err
	}
	made, err := p11.CopyObject(s.handle, key, []*pkcs11.Attribute{to})
	if err == nil {
		defer s.destroy(made)
	}
	return s.mustRefuse("C_CopyObject", err)
}

func (s *session) tryModify() error {
	return s.tryTurning(attr(pkcs11.CKA_DECRYPT, true), attr(pkcs11.CKA_MODIFIABLE, false))
}

func (s *session) tryWrapUnextractable() error {
	return s.tryWrapping()
}

func (s *session) tryWrapWithTrusted() error {
	return s.tryWrapping(attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_WRAP_WITH_TRUSTED, true))
}

// tryWrapping wraps what must not be wrapped by a key that nobody trusts.
func (s *session) tryWrapping(with ...*pkcs11.Attribute) error {
	wrapper, err := s.throwAwayKey()
	if err != nil {
		return err
	}
	defer s.destroy(wrapper)
	key, err := s.throwAwayKey(with...)
	if err != nil {
		return err
	}
	defer s.destroy(key)
	way, err := s.way(classAES)
	if err != nil {
		return err
	}
	_, err = s.wrap(way, wrapper, key)
	return s.mustRefuse("C_WrapKey", err)
}

// wrappedThrowAway makes a wrapping key with further attributes, and a key
// wrapped by it.
func (s *session) wrappedThrowAway(way wrapWay, with ...*pkcs11.Attribute) (wrapper pkcs11.ObjectHandle, wrapped []byte, err error) {
	wrapper, err = s.throwAwayKey(with...)
	if err != nil {
		return 0, nil, err
	}
	key, err := s.throwAwayKey(attr(pkcs11.CKA_EXTRACTABLE, true))
	if err == nil {
		wrapped, err = s.wrap(way, wrapper, key)
		s.destroy(key)
	}
	if err != nil {
		s.destroy(wrapper)
	}
	return wrapper, wrapped, err
}

func (s *session) tryUnwrapTemplate() error {
	nested, free := nestedTemplate(unwrapTemplate(classAES, Locked))
	defer free()
	way, err := s.way(classAES)
	if err != nil {
		return err
	}
	wrapper, wrapped, err := s.wrappedThrowAway(way, attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested))
	if err != nil {
		return err
	}
	defer s.destroy(wrapper)
	good := useTemplate(pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT)
	object, err := s.unwrap(way, wrapper, wrapped, good)
	if err != nil {
		return err
	}
	s.destroy(object)
	for _, forbidden := range []*pkcs11.Attribute{attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_SENSITIVE, false)} {
		object, err := s.unwrap(way, wrapper, wrapped, altered(good, forbidden))
		if err == nil {
			s.destroy(object)
		}
		if err := s.mustRefuse("C_UnwrapKey", err); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) tryMechanismsOnUnwrap() error {
	way, err := s.way(classAES)
	if err != nil {
		return err
	}
	wrapper, wrapped, err := s.wrappedThrowAway(way)
	if err != nil {
		return err
	}
	defer s.destroy(wrapper)
	object, err := s.unwrap(way, wrapper, wrapped, append(useTemplate(pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT),
		attr(pkcs11.CKA_ALLOWED_MECHANISMS, mechanisms(pkcs11.CKM_AES_CTR))))
	if err != nil {
		return err
	}
	defer s.destroy(object)
	return s.mustNotSeal("using a key by another mechanism", object)
}

func (s *session) mustNotSeal(what string, key pkcs11.ObjectHandle) error {
	_, _, err := s.sealProbe(key, s.t.ivs())
	return s.mustRefuse(what, err)
}

func (s *session) trySessionObjects() error {
	other, err := s.t.openSession()
	if err != nil {
		return err
	}
	key, err := other.throwAwayKey()
	other.close()
	if err != nil {
		return err
	}
	err = s.mustNotSeal("using a key after its session was closed", key)
	if isClass(err, classHandle) {
		return nil // which says that the object is no more
	}
	if errors.Is(err, errBroken) {
		s.destroy(key)
	}
	return err
}

func (s *session) tryOddLength() error {
	way, err := s.way(classGeneric)
	if err != nil {
		return err
	}
	wrapper, err := s.throwAwayKey()
	if err != nil {
		return err
	}
	defer s.destroy(wrapper)
	secret := []byte("20 bytes that are odd")[:20]
	key, err := s.put(pkcs11.CKK_GENERIC_SECRET, secret, pkcs11.CKA_SIGN)
	if err != nil {
		return err
	}
	defer s.destroy(key)
	wrapped, err := s.wrap(way, wrapper, key)
	if err != nil {
		return err
	}
	readable := altered(altered(useTemplate(pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN),
		attr(pkcs11.CKA_SENSITIVE, false)), attr(pkcs11.CKA_EXTRACTABLE, true))
	object, err := s.unwrap(way, wrapper, wrapped, readable)
	if err != nil {
		return err
	}
	defer s.destroy(object)
	value, err := s.attribute(object, pkcs11.CKA_VALUE)
	if err != nil {
		return err
	}
	if !bytes.Equal(value, secret) {
		return fmt.Errorf("a secret of %d bytes comes back with %d: %w", len(secret), len(value), errBroken)
	}
	return nil
}

// wantHMAC has the device compute an HMAC under object, whose value is known:
// SHA-1's, for which 20 bytes are no device's too short a key.
func (s *session) wantHMAC(object pkcs11.ObjectHandle, secret []byte) error {
	got, err := s.mac("computing HMAC", pkcs11.CKM_SHA_1_HMAC, object, checkMessage, sha1.Size)
	if err != nil {
		return err
	}
	mac := hmac.New(sha1.New, secret)
	mac.Write(checkMessage)
	if !hmac.Equal(got, mac.Sum(nil)) {
		return errWrongAnswer
	}
	return nil
}
