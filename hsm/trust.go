package hsm

import (
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
)

// inspectTrust proves what the trusted profile rests on: a copy that may leave
// leaves under the domain key and under no key that a PIN holder makes, and
// the restriction cannot be taken off it.
func (s *session) inspectTrust(g *generationKeys, c keyClass, key pkcs11.ObjectHandle, wrapped []byte, keyType uint) error {
	p11 := s.t.module.p11
	moving, err := s.unwrap(g.way(c), key, wrapped, g.protected(movingTemplate(c, keyType)))
	if err != nil {
		return fmt.Errorf("trying the %s key: unwrapping a key that is to be wrapped again: %w", domainKeyRole(c), err)
	}
	defer s.destroy(moving)
	own, err := p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN),
		sessionKeyTemplate(pkcs11.CKK_AES, aesKeySize, false, pkcs11.CKA_WRAP))
	if err != nil {
		return deviceError("generating an untrusted key", err)
	}
	defer s.destroy(own)
	free := []*pkcs11.Attribute{attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false)}
	attempts := map[string]func() error{
		"lets a key that anyone made wrap it":           func() error { _, err := s.wrap(g.way(c), own, moving); return err },
		"lets the restriction be cleared":               func() error { return p11.SetAttributeValue(s.handle, moving, free) },
		"lets the restriction be cleared in a copy":     func() error { return s.copied(moving, free) },
		"lets anyone mark a key trusted":                func() error { return p11.SetAttributeValue(s.handle, own, trusted()) },
		"lets anyone make a key that is marked trusted": func() error { return s.selfTrusted() },
	}
	for what, attempt := range attempts {
		err := attempt()
		if err == nil {
			return fmt.Errorf("%w: the device %s, so a PIN holder could take backing keys out: use the locked profile", ErrDomainConflict, what)
		}
		code, ok := codeOf(err)
		if !ok || code != pkcs11.CKR_KEY_NOT_WRAPPABLE && code != pkcs11.CKR_USER_NOT_LOGGED_IN && !slices.Contains(templateRefusals, code) {
			return fmt.Errorf("trying the %s key: %w", domainKeyRole(c), deviceError("trying to take a key out", err))
		}
	}
	if _, err := s.wrap(g.way(c), key, moving); err != nil {
		return fmt.Errorf("trying the %s key: wrapping again: %w", domainKeyRole(c), err)
	}
	return nil
}

func trusted() []*pkcs11.Attribute { return []*pkcs11.Attribute{attr(pkcs11.CKA_TRUSTED, true)} }

// copied tries C_CopyObject.
func (s *session) copied(object pkcs11.ObjectHandle, change []*pkcs11.Attribute) error {
	made, err := s.t.module.p11.CopyObject(s.handle, object, change)
	if err == nil {
		s.destroy(made)
	}
	return err
}

// selfTrusted tries to make a trusted wrapping key without being the security
// officer.
func (s *session) selfTrusted() error {
	made, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN),
		append(sessionKeyTemplate(pkcs11.CKK_AES, aesKeySize, false, pkcs11.CKA_WRAP), trusted()...))
	if err == nil {
		s.destroy(made)
	}
	return err
}

// movingTemplate is how a key comes back only to be wrapped by the domain key
// of another generation.
func movingTemplate(c keyClass, keyType uint) []*pkcs11.Attribute {
	template := useTemplate(keyType)
	if c == classPrivate {
		template = privateUseTemplate(keyType)
	}
	return altered(template, attr(pkcs11.CKA_EXTRACTABLE, true))
}
