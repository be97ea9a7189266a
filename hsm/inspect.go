package hsm

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"
)

// inspect refuses a generation whose domain keys are not as CreateGeneration
// makes them, and finds its profile. Unwrap templates cannot be read on every
// device, so it tries instead what they must forbid.
func (s *session) inspect(g *generationKeys) error {
	var err error
	if g.Profile, err = s.profile(g); err != nil {
		return err
	}
	for c, key := range g.wrap {
		if err := s.inspectKind(g, domainKeyRole(c), key, pkcs11.CKK_AES); err != nil {
			return err
		}
		if err := s.inspectWrapper(g, c, key); err != nil {
			return err
		}
		if err := s.inspectLock(g, c, key); err != nil {
			return err
		}
	}
	return nil
}

// profile is Trusted if all domain keys are marked so, which only the security
// officer can do.
func (s *session) profile(g *generationKeys) (Profile, error) {
	marked := 0
	for _, key := range g.wrap {
		ok, err := s.flag(key, pkcs11.CKA_TRUSTED, true)
		if err != nil {
			return "", err
		}
		if ok {
			marked++
		}
	}
	switch marked {
	case 0:
		return Locked, nil
	case len(g.wrap):
		return Trusted, nil
	}
	return "", fmt.Errorf("%w: only some domain keys of generation %d are marked CKA_TRUSTED: destroy this generation if it was never active, else restore the token from its backup",
		ErrDomainConflict, g.Number)
}

// inspectWrapper demands a domain key's attributes. Where the security officer
// cannot make private objects a trusted key is a public one, which is noted.
func (s *session) inspectWrapper(g *generationKeys, c keyClass, key pkcs11.ObjectHandle) error {
	wanted := g.secretFlags(pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP)
	if g.Profile == Trusted {
		private, err := s.flag(key, pkcs11.CKA_PRIVATE, true)
		if err != nil {
			return err
		}
		if !private {
			g.Public = true
			wanted = altered(wanted, attr(pkcs11.CKA_PRIVATE, false))
		}
	}
	return s.inspectFlags(domainKeyRole(c), key, wanted)
}

func (s *session) inspectMAC(g *generationKeys, key pkcs11.ObjectHandle) error {
	if err := s.inspectKind(g, macRole, key, pkcs11.CKK_GENERIC_SECRET); err != nil {
		return err
	}
	return s.inspectFlags(macRole, key, g.secretFlags(pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY))
}

// errOutside is ErrDomainConflict of keys that were not made where they are:
// copies, which only a Proof can tell from planted ones.
var errOutside = fmt.Errorf("%w: a domain key or MAC key came from outside. If this token was enrolled together with others, `trent doctor` with the database's URL, or `trent domain members`, proves it; else it was not made by Trent: do not use this token before you know why", ErrDomainConflict)

// inspectKind demands a 256-bit secret key of the type. Of a shared one the
// proof knows the size, and SoftHSM does not.
func (s *session) inspectKind(g *generationKeys, role string, key pkcs11.ObjectHandle, keyType uint) error {
	if !g.Shared { // before its kind: SoftHSM does not tell a copy's size
		if copied, err := s.flag(key, pkcs11.CKA_LOCAL, false); err != nil {
			return fmt.Errorf("inspecting the %s key: %w", role, err)
		} else if copied {
			return fmt.Errorf("%w: the %s key is not CKA_LOCAL", errOutside, role)
		}
	}
	kind := []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, keyType)}
	if !g.Shared {
		kind = append(kind, attr(pkcs11.CKA_VALUE_LEN, aesKeySize))
	}
	for _, a := range kind {
		value, err := s.attribute(key, a.Type)
		if err != nil {
			return fmt.Errorf("inspecting the %s key: %w", role, err)
		}
		if !bytes.Equal(value, a.Value) {
			return fmt.Errorf("%w: the %s key is no 256-bit key of its type (attribute 0x%X is %x); it was not made by Trent: do not use this token before you know why",
				ErrDomainConflict, role, a.Type, value)
		}
	}
	return nil
}

// histories are attributes that only tell of a key's past. A device may lack
// them; those that protect a key it must show.
var histories = []uint{pkcs11.CKA_LOCAL, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_NEVER_EXTRACTABLE}

// secretFlags are the attributes of Trent's own token keys. Those that several
// members hold came from outside, so that the device cannot attest their past:
// their proof has to do.
func (g *generationKeys) secretFlags(uses ...uint) []*pkcs11.Attribute {
	wanted := append(usage(uses...),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_MODIFIABLE, false),
	)
	if g.Shared {
		return wanted
	}
	return append(wanted,
		attr(pkcs11.CKA_ALWAYS_SENSITIVE, true),
		attr(pkcs11.CKA_NEVER_EXTRACTABLE, true),
		attr(pkcs11.CKA_LOCAL, true),
	)
}

func (s *session) inspectFlags(role string, key pkcs11.ObjectHandle, wanted []*pkcs11.Attribute) error {
	for _, a := range wanted {
		ok, err := s.flag(key, a.Type, a.Value[0] != 0)
		if err == nil && !ok && slices.Contains(histories, a.Type) {
			_, err = s.attribute(key, a.Type)
			if ok = isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID); ok {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("inspecting the %s key: %w", role, err)
		}
		if !ok && slices.Contains(histories, a.Type) {
			return fmt.Errorf("%w: attribute 0x%X of the %s key", errOutside, a.Type, role)
		}
		if !ok {
			return fmt.Errorf("%w: attribute 0x%X of the %s key is not %t; it was not made by Trent or was changed: do not use this token before you know why",
				ErrDomainConflict, a.Type, role, a.Value[0] != 0)
		}
	}
	return nil
}

// inspectLock wraps a throw-away key and asks for it back in the forms that
// the unwrap template must forbid.
func (s *session) inspectLock(g *generationKeys, c keyClass, key pkcs11.ObjectHandle) error {
	wrapped, keyType, err := s.throwAway(g, c, key)
	if err != nil {
		return fmt.Errorf("trying the %s key: %w", domainKeyRole(c), err)
	}
	if wrapped == nil {
		return nil
	}
	good := useTemplate(keyType)
	if c == classPrivate {
		good = privateUseTemplate(keyType, pkcs11.CKA_SIGN)
	}
	good = g.protected(good)
	object, err := s.unwrap(g.way(c), key, wrapped, good)
	if err != nil {
		return fmt.Errorf("trying the %s key: %w", domainKeyRole(c), err)
	}
	s.destroy(object)
	for _, forbidden := range g.forbidden(c) {
		object, err := s.unwrap(g.way(c), key, wrapped, altered(good, forbidden))
		if err == nil {
			s.destroy(object)
			return fmt.Errorf("%w: the %s key unwraps objects with attribute 0x%X = %x, so a PIN holder could take backing keys out; it was not made by Trent, or the device ignores unwrap templates",
				ErrDomainConflict, domainKeyRole(c), forbidden.Type, forbidden.Value)
		}
		if !isCode(err, templateRefusals...) {
			return fmt.Errorf("trying the %s key: %w", domainKeyRole(c), err)
		}
	}
	if g.Profile == Trusted {
		return s.inspectTrust(g, c, key, wrapped, keyType)
	}
	return nil
}

// forbidden is what no copy that the generation's domain key of a class unwraps
// may be.
func (g *generationKeys) forbidden(c keyClass) []*pkcs11.Attribute {
	bad := []*pkcs11.Attribute{
		attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_TOKEN, true),
	}
	if g.Profile == Trusted {
		bad = append(bad, attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false))
	} else {
		bad = append(bad, attr(pkcs11.CKA_EXTRACTABLE, true))
	}
	if c == classPrivate {
		return bad
	}
	other := uint(pkcs11.CKK_GENERIC_SECRET)
	if c == classGeneric {
		other = pkcs11.CKK_AES
	}
	return append(bad, attr(pkcs11.CKA_WRAP, true), attr(pkcs11.CKA_UNWRAP, true), attr(pkcs11.CKA_DERIVE, true),
		attr(pkcs11.CKA_MODIFIABLE, true), attr(pkcs11.CKA_KEY_TYPE, other))
}

// templateRefusals are the codes by which devices say that a template is not
// to be had (PKCS#11 §5.1); any other may come from a device that is ill.
var templateRefusals = []uint{
	pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_TEMPLATE_INCOMPLETE,
	pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID,
	pkcs11.CKR_ACTION_PROHIBITED,
}

// altered returns template with one attribute replaced.
func altered(template []*pkcs11.Attribute, with *pkcs11.Attribute) []*pkcs11.Attribute {
	out := make([]*pkcs11.Attribute, 0, len(template))
	for _, a := range template {
		if a.Type == with.Type {
			a = with
		}
		out = append(out, a)
	}
	return out
}

// throwAway makes a key of the class, wraps it and destroys it. It returns no
// bytes where the device cannot make one, which for private keys is not fatal
// here: symmetric keys do without.
func (s *session) throwAway(g *generationKeys, c keyClass, wrapper pkcs11.ObjectHandle) (wrapped []byte, keyType uint, err error) {
	p11 := s.t.module.p11
	var key pkcs11.ObjectHandle
	switch c {
	case classAES:
		keyType = pkcs11.CKK_AES
		key, err = p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), g.protected(backingKeyTemplate(keyType, aesKeySize)))
	case classGeneric:
		keyType = pkcs11.CKK_GENERIC_SECRET
		key, err = p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_GENERIC_SECRET_KEY_GEN), g.protected(backingKeyTemplate(keyType, aesKeySize)))
	case classPrivate:
		keyType = pkcs11.CKK_EC
		var public pkcs11.ObjectHandle
		public, key, err = s.generateP256()
		if strange(err) { // believe no device that says so once
			public, key, err = s.generateP256()
		}
		if strange(err) || lacking(err) {
			return nil, 0, nil
		}
		if err == nil {
			defer s.destroy(public)
		}
	}
	if err != nil {
		return nil, 0, deviceError("generating a throw-away key", err)
	}
	defer s.destroy(key)
	wrapped, err = s.wrap(g.way(c), wrapper, key)
	return wrapped, keyType, err
}

// lacking is the answer of a device that has not what was asked for, strange one
// of which that cannot be told. Any other is of one that is ill: what it cannot
// be asked now is not proved.
func lacking(err error) bool {
	return isClass(err, classOther)
}

func strange(err error) bool {
	return isClass(err, classStrange) || isClass(err, classData)
}

func (s *session) generateP256() (public, private pkcs11.ObjectHandle, err error) {
	return s.generatePair(specs["ECC_NIST_P256"], UseSign, privateBackingTemplate(pkcs11.CKK_EC))
}

// probe is a known answer. A call that failed for reasons that may lie in the
// data or in the device is followed by it: if it still comes out right, the
// data was bad.
type probe struct {
	key        pkcs11.ObjectHandle
	iv, sealed []byte
}

var probePlain = []byte("the device is healthy")

// newProbe makes a session key that lives as long as the epoch. It looks first
// how the device wants its IVs: it may have come back in another mode.
func (s *session) newProbe() (probe, error) {
	if err := s.chooseIVs(); err != nil {
		return probe{}, err
	}
	if _, err := s.ways(); err != nil {
		return probe{}, err
	}
	key, err := s.probeKey()
	if err != nil {
		return probe{}, err
	}
	iv, sealed, err := s.sealProbe(key, s.t.ivs())
	if err != nil {
		return probe{}, err
	}
	return probe{key, iv, sealed}, nil
}

// probeKey makes a key that never leaves the token nor its session.
func (s *session) probeKey() (pkcs11.ObjectHandle, error) {
	key, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN),
		sessionKeyTemplate(pkcs11.CKK_AES, aesKeySize, false, pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT))
	return key, deviceError("generating a throw-away key", err)
}

func (p probe) passed(plain []byte) bool { return bytes.Equal(plain, probePlain) }
