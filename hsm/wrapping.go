package hsm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// wrapForm is what becomes of a key that is wrapped, whatever number a vendor
// has given the mechanism.
type wrapForm uint8

const (
	formKW  wrapForm = iota + 1 // RFC 3394, KW of SP 800-38F
	formKWP                     // RFC 5649, KWP of SP 800-38F: any length
)

// String is the standard's name.
func (f wrapForm) String() string {
	if f == formKW {
		return "RFC 3394"
	}
	return "RFC 5649"
}

// Numbers that miekg does not name. Vendors' own may mean something else on
// another's device: what a mechanism does there is tried.
const (
	ckmAESKeyWrapKWP   = 0x210B                            // PKCS#11 v3.0 §2.14
	ckmLunaKW          = pkcs11.CKM_VENDOR_DEFINED | 0x170 // Luna's CKM_AES_KW
	ckmLunaKWP         = pkcs11.CKM_VENDOR_DEFINED | 0x171 // Luna's CKM_AES_KWP
	ckmCloudHSMNoPad   = pkcs11.CKM_VENDOR_DEFINED | 0x2109
	ckmCloudHSMZeroPad = pkcs11.CKM_VENDOR_DEFINED | 0x216F
)

// wrapMechanism is one that may stand in an EKT, and its form there.
type wrapMechanism struct {
	number uint // CKM_
	form   wrapForm
}

// wrapMechanisms are in the order in which devices are tried. An EKT with any
// other is refused. CKM_AES_KEY_WRAP_PAD is RFC 5649 on some devices, and
// RFC 3394 after PKCS #7 padding on others, as PKCS#11 v2.40 may be read: in
// an EKT it is the former, and no device of the latter kind may use it.
var wrapMechanisms = []wrapMechanism{
	{pkcs11.CKM_AES_KEY_WRAP, formKW},
	{ckmLunaKW, formKW},
	{ckmCloudHSMNoPad, formKW},
	{pkcs11.CKM_AES_KEY_WRAP_PAD, formKWP},
	{ckmAESKeyWrapKWP, formKWP},
	{ckmLunaKWP, formKWP},
	{ckmCloudHSMZeroPad, formKWP},
}

// wrapForms are those that a class may have, the preferred first.
func (c keyClass) wrapForms() []wrapForm {
	if c == classAES {
		return []wrapForm{formKW, formKWP}
	}
	return []wrapForm{formKWP}
}

// formOf finds the form of a mechanism for keys of a class; 0 if it is none
// for them.
func (c keyClass) formOf(mechanism uint) wrapForm {
	for _, m := range wrapMechanisms {
		if m.number == mechanism && slices.Contains(c.wrapForms(), m.form) {
			return m.form
		}
	}
	return 0
}

// ofForm are those of the mechanisms that make of the class's keys the same as
// the first does.
func (c keyClass) ofForm(form wrapForm, mechanisms []uint) []uint {
	var same []uint
	for _, m := range mechanisms {
		if c.formOf(m) == form {
			same = append(same, m)
		}
	}
	return same
}

// wrapWay is how a key of a class is wrapped on this device.
type wrapWay struct {
	class     keyClass
	mechanism uint
}

// wrapWays are the mechanisms that the device was found to have for a class,
// the preferred first.
type wrapWays map[keyClass][]uint

// way is how throw-away keys of the class are wrapped.
func (s *session) way(c keyClass) (wrapWay, error) {
	ways, err := s.ways()
	if len(ways[c]) == 0 {
		return wrapWay{}, err
	}
	return wrapWay{c, ways[c][0]}, nil
}

// wayOfForm finds a mechanism for a form, whose class does not matter.
func (s *session) wayOfForm(form wrapForm) (uint, error) {
	ways, err := s.ways()
	if err != nil && !errors.Is(err, errNoWrap) {
		return 0, err
	}
	for _, c := range keyClasses {
		if same := c.ofForm(form, ways[c]); len(same) > 0 {
			return same[0], nil
		}
	}
	return 0, &UnsupportedError{form.String(), mechanismName(form.first()), "the device has no mechanism for it"}
}

// ways tries the device's mechanisms, once for each epoch or until all classes
// have one. errNoWrap comes with what others have.
func (s *session) ways() (wrapWays, error) {
	if known := s.t.wraps.Load(); known != nil {
		return *known, nil
	}
	trials, err := s.t.tryWraps()
	if err != nil {
		return nil, err
	}
	ways, lacking := wrapWays{}, ""
	for _, c := range keyClasses {
		var why []string
		for _, form := range c.wrapForms() {
			for _, trial := range trials {
				switch {
				case trial.form != form || !trial.offered:
				case trial.err == nil:
					ways[c] = append(ways[c], trial.number)
				default:
					why = append(why, fmt.Sprintf("%s: %v", mechanismName(trial.number), trial.err))
				}
			}
		}
		if len(ways[c]) == 0 {
			lacking = fmt.Sprintf("for %s keys (%s)", c, strings.Join(append(why, "it has none else"), "; "))
		}
	}
	if lacking != "" {
		return ways, fmt.Errorf("%w: %w %s; enable one (look for a FIPS mode or a licence), let trent doctor say which there are, or choose another device",
			ErrUnavailable, errNoWrap, lacking)
	}
	s.t.wraps.Store(&ways)
	return ways, nil
}

var errNoWrap = errors.New("the device has no wrapping mechanism that Trent can use")

// errNoWay is errNoWrap of one generation: of the security officer's, who goes
// by what the device says of itself, or after the device has changed. The
// others still serve.
var errNoWay = errors.New("the device has now none of the mechanisms")

// findWays finds out how keys are wrapped under a generation's domain keys: by
// what the device can do and the keys allow, and in the form that all who hold
// a shared generation use, which its proof tells.
func (s *session) findWays(g *generationKeys) error {
	shared := proofForms(g.proof)
	g.by = wrapWays{}
	for _, c := range keyClasses {
		allowed, err := s.allowedMechanisms(g.wrap[c])
		if err != nil {
			return fmt.Errorf("inspecting the %s key: %w", domainKeyRole(c), err)
		}
		if g.by[c], err = s.waysAllowed(c, allowed); err != nil {
			return err
		}
		if len(g.by[c]) == 0 {
			return fmt.Errorf("%w: %w that the %s key of generation %d serves by (%x only): enable one, let trent doctor say what it has, or destroy this generation if it was never active",
				ErrUnavailable, errNoWay, domainKeyRole(c), g.Number, allowed)
		}
		if shared[c] == 0 {
			continue
		}
		if g.by[c] = c.ofForm(shared[c], g.by[c]); len(g.by[c]) == 0 {
			return fmt.Errorf("%w: %s keys of generation %d are wrapped by %s, for which this token has no mechanism (%s elsewhere): it can hold a domain that began on a token like it, not this one; remove it and use another device",
				ErrDomainConflict, c, g.Number, shared[c], mechanismName(shared[c].first()))
		}
	}
	return nil
}

// waysAllowed are the device's ways with a domain key. One that the key allows
// and that the device was not found to have is tried again: it may have been
// ill.
func (s *session) waysAllowed(c keyClass, allowed []uint) ([]uint, error) {
	for again := true; ; again = false {
		ways, err := s.ways()
		if err != nil || len(allowed) == 0 {
			return ways[c], err
		}
		both := slices.DeleteFunc(slices.Clone(ways[c]), func(m uint) bool { return !slices.Contains(allowed, m) })
		if len(both) > 0 || !again {
			return both, nil
		}
		s.t.wraps.Store(nil)
	}
}

// allowedMechanisms is CKA_ALLOWED_MECHANISMS; none if the key or the device
// has not this attribute.
func (s *session) allowedMechanisms(key pkcs11.ObjectHandle) ([]uint, error) {
	value, err := s.attribute(key, pkcs11.CKA_ALLOWED_MECHANISMS)
	if isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []uint
	for size := len(ulongs(0)); len(value) >= size; value = value[size:] {
		list = append(list, uint(ulong(value[:size])))
	}
	return list, nil
}

// proofForms are the forms of the keys in a proof.
func proofForms(proof Proof) map[keyClass]wrapForm {
	forms := map[keyClass]wrapForm{}
	var text proofText
	if json.Unmarshal([]byte(proof), &text) != nil {
		return forms // none, or one that checkMAC has refused
	}
	for _, c := range keyClasses {
		if k, err := text.Keys[c.String()].EKT.parse(); err == nil && k.class == c {
			forms[c] = c.formOf(k.mechanism)
		}
	}
	return forms
}

// way is how new keys of the class are wrapped under the generation.
func (g *generationKeys) way(c keyClass) wrapWay {
	if len(g.by[c]) == 0 {
		return wrapWay{class: c} // nothing is wrapped under what is not whole
	}
	return wrapWay{c, g.by[c][0]}
}

// wayOf is how an EKT is unwrapped: by its own mechanism, or, where the device
// has another number for it, by one of the same form.
func (g *generationKeys) wayOf(k keyToken) (wrapWay, error) {
	if slices.Contains(g.by[k.class], k.mechanism) {
		return wrapWay{k.class, k.mechanism}, nil
	}
	form := k.class.formOf(k.mechanism)
	if same := k.class.ofForm(form, g.by[k.class]); len(same) > 0 {
		return wrapWay{k.class, same[0]}, nil
	}
	return wrapWay{}, absentGeneration{g.Number, fmt.Errorf("its %s keys that are wrapped by %s cannot be unwrapped here", k.class, form)}
}

// pinned are the mechanisms that a new domain key serves by: all that the
// device has for the form of the first, and none of another form.
func (c keyClass) pinned(ways []uint) []uint {
	return c.ofForm(c.formOf(ways[0]), ways)
}

// offeredWays are the ways by what the device says of itself. They are for the
// security officer, who cannot try them: the user does before they serve.
func (s *session) offeredWays() (wrapWays, error) {
	ways := wrapWays{}
	for _, c := range keyClasses {
		for _, form := range c.wrapForms() {
			for _, m := range wrapMechanisms {
				offered, err := s.offers(m.number)
				if err != nil {
					return nil, err
				}
				if offered && m.form == form {
					ways[c] = append(ways[c], m.number)
				}
			}
		}
		if len(ways[c]) == 0 {
			return nil, fmt.Errorf("%w: %w for %s keys", ErrUnavailable, errNoWrap, c)
		}
	}
	return ways, nil
}

// formsRole is the entry of a parcel that says in which form keys are wrapped
// under its generation, by a mechanism for each class.
const formsRole = "mechanisms"

func (w wrapWays) pack() map[string][]byte {
	packed := map[string][]byte{}
	for c, ways := range w {
		packed[c.String()] = binary.BigEndian.AppendUint32(nil, uint32(ways[0]))
	}
	return packed
}

// waysToTake are the mechanisms of this device for the domain key in a parcel.
func (s *session) waysToTake(c keyClass, packed map[string][]byte) ([]uint, error) {
	ways, err := s.ways()
	if err != nil {
		return nil, err
	}
	entry, found := packed[c.String()]
	if !found { // of a release that knew one mechanism for each class
		entry = binary.BigEndian.AppendUint32(nil, uint32(c.wrapForms()[0].first()))
	}
	if len(entry) != 4 {
		return nil, fmt.Errorf("%w: the parcel's mechanism is no number", ErrArgument)
	}
	form := c.formOf(uint(binary.BigEndian.Uint32(entry)))
	same := c.ofForm(form, ways[c])
	switch {
	case form == 0:
		return nil, fmt.Errorf("%w: the parcel's mechanism %x is none for %s keys", ErrArgument, entry, c)
	case len(same) == 0:
		return nil, fmt.Errorf("%w: %s keys of this generation are wrapped by %s, for which this token has no mechanism: it can hold a domain that began on a token like it, not this one; use another device", errNoWrap, c, form)
	}
	return same, nil
}

// first is the standard's mechanism of a form.
func (f wrapForm) first() uint {
	i := slices.IndexFunc(wrapMechanisms, func(m wrapMechanism) bool { return m.form == f })
	return wrapMechanisms[i].number
}
