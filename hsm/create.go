package hsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/failpoint"
)

// CreateDomain makes generation 1 of the deployment's objects, those that are
// not there yet: three domain keys of the locked profile and the MAC key. It
// can be run again after it was interrupted anywhere. Only one process may run
// it at a time; what two would make double, OpenDomain refuses.
func (t *Token) CreateDomain(ctx context.Context, id DomainID) error {
	if err := t.createGeneration(ctx, id, firstGeneration, "init."); err != nil {
		return err
	}
	d, err := t.findMember(ctx, id, nil, false) // proves that the device enforces what was asked
	if err != nil {
		return err
	}
	return d.whole(ctx, firstGeneration, Locked)
}

// CreateGeneration is CreateDomain for a further generation. It does not make
// it the active one. Of the trusted profile the security officer must have made
// the domain keys before: see MakeTrustedKeys.
func (d *Member) CreateGeneration(ctx context.Context, number uint32, profile Profile) error {
	if number <= firstGeneration {
		return fmt.Errorf("%w: generation %d is made by trent init", ErrArgument, number)
	}
	if profile == Trusted {
		if err := d.trustedKeysThere(ctx, number); err != nil {
			return err
		}
	}
	if err := d.t.createGeneration(ctx, d.id, number, "generation."); err != nil {
		return err
	}
	return d.whole(ctx, number, profile)
}

// whole demands that the generation is on the token, whole and of the profile.
func (d *Member) whole(ctx context.Context, number uint32, profile Profile) error {
	keys, err := d.look(ctx)
	if err != nil {
		return err
	}
	g := keys.generations[number]
	switch {
	case g == nil:
		return absentGeneration{number, errNotFound}
	case !g.Whole:
		return g.err
	case g.Profile != profile:
		return fmt.Errorf("%w: generation %d is of the %s profile, not %s: destroy it if it was never active, or go on with that profile",
			ErrDomainConflict, number, g.Profile, profile)
	}
	return nil
}

func (d *Member) trustedKeysThere(ctx context.Context, number uint32) error {
	for _, c := range keyClasses {
		label := d.id.label(domainKeyRole(c), number)
		err := d.t.onKeeperRetrying(ctx, func(s *session) error {
			_, err := s.findOne(label)
			return err
		})
		if errors.Is(err, errNotFound) {
			return fmt.Errorf("%w: %s is missing: under the trusted profile the security officer makes the domain keys first", ErrNoDomain, label)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *Token) createGeneration(ctx context.Context, id DomainID, number uint32, point string) error {
	var ways wrapWays
	err := t.onKeeperRetrying(ctx, func(s *session) (err error) {
		ways, err = s.ways()
		return err
	})
	if err != nil {
		return err
	}
	for _, c := range keyClasses {
		create := func() error { return t.makeDomainKey(id, number, c, c.pinned(ways[c])) }
		if err := t.ensureObject(ctx, id.label(domainKeyRole(c), number), create); err != nil {
			return fmt.Errorf("making the %s domain key: %w", c, err)
		}
		failpoint.Hit(point + "domainkey." + c.String())
	}
	create := func() error { return t.makeMACKey(id, number) }
	if err := t.ensureObject(ctx, id.label(macRole, number), create); err != nil {
		return fmt.Errorf("making the MAC key: %w", err)
	}
	failpoint.Hit(point + "mackey")
	return nil
}

func (t *Token) ensureObject(ctx context.Context, label string, create func() error) error {
	find := func(s *session) error {
		_, err := s.findOne(label)
		return err
	}
	err := t.onKeeperRetrying(ctx, find)
	if !errors.Is(err, errNotFound) {
		return err
	}
	return create()
}

func (t *Token) makeDomainKey(id DomainID, number uint32, c keyClass, by []uint) error {
	nested, free := nestedTemplate(unwrapTemplate(c, Locked))
	defer free()
	return t.makeTokenKey(append(domainKeyTemplate(id, number, c, by), attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested)), crypto11.CipherAES)
}

func domainKeyTemplate(id DomainID, number uint32, c keyClass, by []uint) []*pkcs11.Attribute {
	return append(tokenKeyTemplate(id.label(domainKeyRole(c), number), id.object(byte(c), number), pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP),
		attr(pkcs11.CKA_ALLOWED_MECHANISMS, mechanisms(by...)))
}

func (t *Token) makeMACKey(id DomainID, number uint32) error {
	return t.makeTokenKey(macKeyTemplate(id, number), crypto11.CipherGeneric)
}

func macKeyTemplate(id DomainID, number uint32) []*pkcs11.Attribute {
	return append(tokenKeyTemplate(id.label(macRole, number), id.object(0, number), pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY),
		attr(pkcs11.CKA_ALLOWED_MECHANISMS, mechanisms(pkcs11.CKM_SHA256_HMAC)))
}

// object is the CKA_ID of a token object: deployment, role, generation (one
// octet, or four for those beyond 255).
func (id DomainID) object(role byte, generation uint32) []byte {
	b := append(append([]byte(nil), id[:]...), role)
	if generation <= math.MaxUint8 {
		return append(b, byte(generation))
	}
	return binary.BigEndian.AppendUint32(b, generation)
}

// makeTokenKey generates a 256-bit token key. CKA_ALLOWED_MECHANISMS is dropped
// for a device that does not know it; every other attribute is insisted on.
func (t *Token) makeTokenKey(template []*pkcs11.Attribute, cipher *crypto11.SymmetricCipher) error {
	set := crypto11.NewAttributeSet()
	set.AddIfNotPresent(template)
	err := t.generateTokenKey(set.Copy(), cipher)
	if isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) {
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

// DestroyGeneration destroys a generation's domain keys, and its MAC key too
// unless keepMAC. What was wrapped or sealed under them is lost for good: the
// caller has made sure that nothing is. It can be called again after an
// interruption. The active generation is refused.
func (d *Member) DestroyGeneration(ctx context.Context, number uint32, keepMAC bool) error {
	if d.inUse(number) {
		return fmt.Errorf("%w: generation %d is the active one", ErrArgument, number)
	}
	roles := allRoles()
	if keepMAC {
		roles = roles[:len(keyClasses)]
	}
	for _, role := range roles {
		err := d.t.onKeeperRetrying(ctx, func(s *session) error { return s.destroyNamed(d.id.label(role, number)) })
		if err != nil {
			return fmt.Errorf("destroying the %s key of generation %d on %q: %w", role, number, d.t.info.Label, err)
		}
		failpoint.Hit("generation.destroyed." + role)
	}
	_, err := d.look(ctx)
	return err
}

// inUse says whether the member makes keys under the generation. A member that
// is being enrolled makes none before it is told to.
func (d *Member) inUse(number uint32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.enrolling {
		return number == d.active
	}
	return number == d.served
}
