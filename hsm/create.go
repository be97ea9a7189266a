package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/failpoint"
)

// CreateDomain makes generation 1 of the deployment's objects, those that are
// not there yet: three domain keys of the locked profile and the MAC key. It
// can be run again after it was interrupted anywhere. Only one process may run
// it at a time; what two would make double, OpenDomain refuses.
func (t *Token) CreateDomain(ctx context.Context, id DomainID) error {
	for _, c := range keyClasses {
		make := func() error { return t.makeDomainKey(id, c) }
		if err := t.ensureObject(ctx, id.label(domainKeyRole(c)), make); err != nil {
			return fmt.Errorf("making the %s domain key: %w", c, err)
		}
		failpoint.Hit("init.domainkey." + c.String())
	}
	make := func() error { return t.makeMACKey(id) }
	if err := t.ensureObject(ctx, id.label(macRole), make); err != nil {
		return fmt.Errorf("making the MAC key: %w", err)
	}
	failpoint.Hit("init.mackey")
	_, err := t.openDomain(ctx, id) // proves that the device enforces what was asked
	return err
}

func (t *Token) ensureObject(ctx context.Context, label string, make func() error) error {
	find := func(s *session) error {
		_, err := s.findOne(label)
		return err
	}
	err := t.onKeeperRetrying(ctx, find)
	if !errors.Is(err, errNotFound) {
		return err
	}
	return make()
}

func (t *Token) makeDomainKey(id DomainID, c keyClass) error {
	nested, free := nestedTemplate(unwrapTemplate(c))
	defer free()
	template := append(tokenKeyTemplate(id.label(domainKeyRole(c)), id.object(byte(c)), pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP),
		attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested),
		attr(pkcs11.CKA_ALLOWED_MECHANISMS, mechanisms(c.wrapMechanism())))
	return t.makeTokenKey(template, crypto11.CipherAES)
}

func (t *Token) makeMACKey(id DomainID) error {
	template := append(tokenKeyTemplate(id.label(macRole), id.object(0), pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY),
		attr(pkcs11.CKA_ALLOWED_MECHANISMS, mechanisms(pkcs11.CKM_SHA256_HMAC)))
	return t.makeTokenKey(template, crypto11.CipherGeneric)
}

// object is the CKA_ID of a token object: deployment, role, generation.
func (id DomainID) object(role byte) []byte {
	return append(append([]byte(nil), id[:]...), role, byte(firstGeneration))
}

// makeTokenKey generates a 256-bit token key. CKA_ALLOWED_MECHANISMS is dropped
// for a device that does not know it; every other attribute is insisted on.
func (t *Token) makeTokenKey(template []*pkcs11.Attribute, cipher *crypto11.SymmetricCipher) error {
	set := crypto11.NewAttributeSet()
	set.AddIfNotPresent(template)
	err := t.generateTokenKey(set.Copy(), cipher)
	if code, ok := codeOf(err); ok && code == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID {
		t.log.Warn("the device does not know CKA_ALLOWED_MECHANISMS; keys are made without it", "token", t.info.Label)
		set.Unset(pkcs11.CKA_ALLOWED_MECHANISMS)
		err = t.generateTokenKey(set, cipher)
	}
	return deviceError("generating a token key", err)
}

func (t *Token) generateTokenKey(set crypto11.AttributeSet, cipher *crypto11.SymmetricCipher) error {
	return t.withConnection(func(conn *crypto11.Context) error {
		_, err := conn.GenerateSecretKeyWithAttributes(set, 8*aesKeySize, cipher)
		return err
	})
}
