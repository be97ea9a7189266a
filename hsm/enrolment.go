package hsm

import (
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/failpoint"
)

// A generation that several members hold is made on one of them and carried to
// each by that member's enrolment key, an RSA pair whose private half never
// leaves its token and unwraps nothing but keys that stay there. It serves for
// one generation only and is destroyed when the token holds that.

const enrolmentRole = "enrolment"

// enrolmentSizes are the moduli in bits that are tried, in order.
var enrolmentSizes = []int{3072, 4096}

// enrolmentHashes are OAEP's, the best first. A parcel has one for each that
// the making device knows, and the taking one opens the first that it can.
var enrolmentHashes = []string{"RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"}

// Fingerprint of an enrolment key is what people compare: SHA-256 of its
// SubjectPublicKeyInfo, in groups of four hexadecimal digits.
func Fingerprint(publicKey []byte) string {
	sum := sha256.Sum256(publicKey)
	text := hex.EncodeToString(sum[:])
	var groups []string
	for ; text != ""; text = text[4:] {
		groups = append(groups, text[:4])
	}
	return strings.Join(groups, "-")
}

// EnrolmentKey returns the public half, a SubjectPublicKeyInfo in DER, of the
// token's enrolment key for a generation, which is made if there is none and the
// token has nothing of the generation yet.
func (d *Member) EnrolmentKey(ctx context.Context, number uint32) ([]byte, error) {
	var public []byte
	err := d.t.onMakerRetrying(ctx, func(s *session) (err error) {
		object, err := s.findOne(d.id.label(enrolmentRole, number))
		if errors.Is(err, errNotFound) {
			object, err = s.newEnrolmentKey(d.id, number)
		}
		if err != nil {
			return err
		}
		failpoint.Hit("enrol.key")
		public, err = s.inspectEnrolmentKey(object)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making the enrolment key of generation %d on %q: %w", number, d.t.info.Label, err)
	}
	return public, nil
}

// newEnrolmentKey refuses where the token holds keys of the generation: an
// enrolment key is destroyed only after all members hold those and the database
// says so, and whoever asks for another one has a database from before that.
func (s *session) newEnrolmentKey(id DomainID, number uint32) (pkcs11.ObjectHandle, error) {
	held, err := s.domainObjects(id)
	if err != nil {
		return 0, err
	}
	if len(held[number]) > 0 {
		return 0, fmt.Errorf("%w: the token holds keys of generation %d whose enrolment was finished, but the database is from before that: it was set back, or has lost its newest changes; restore it from a newer backup. "+
			"If there is none, so that nothing that is under those keys will ever be read again, destroy them with `trent domain retire --generation %d` and enrol anew",
			ErrDomainConflict, number, number)
	}
	return s.makeEnrolmentKey(id, number)
}

func (s *session) makeEnrolmentKey(id DomainID, number uint32) (pkcs11.ObjectHandle, error) {
	nested, free := nestedTemplate(carriedTemplate())
	defer free()
	private := append(privateUsage(pkcs11.CKA_UNWRAP), altered(privateKeyTemplate(pkcs11.CKK_RSA, false), attr(pkcs11.CKA_TOKEN, true))...)
	private = append(private,
		attr(pkcs11.CKA_LABEL, id.label(enrolmentRole, number)),
		attr(pkcs11.CKA_ID, id.object('e', number)),
		attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested),
		attr(pkcs11.CKA_MODIFIABLE, false))
	var err error
	for _, bits := range enrolmentSizes {
		var public, key pkcs11.ObjectHandle
		public, key, err = s.t.module.p11.GenerateKeyPair(s.handle, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN), []*pkcs11.Attribute{
			attr(pkcs11.CKA_TOKEN, false),
			attr(pkcs11.CKA_PRIVATE, false),
			attr(pkcs11.CKA_MODULUS_BITS, bits),
			attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent),
		}, private)
		if err == nil {
			s.destroy(public) // it can be read from the private half
			return key, nil
		}
		if !isCode(err, refusals...) {
			break // it may have been made all the same: the next try looks first
		}
	}
	return 0, deviceError("generating a key pair", err)
}

// carriedTemplate is what an enrolment key enforces on all that it unwraps.
// Without it, who has the PIN and saw a parcel could have the keys in the clear.
func carriedTemplate() []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_TOKEN, true),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_ENCRYPT, false),
		attr(pkcs11.CKA_DECRYPT, false),
		attr(pkcs11.CKA_DERIVE, false),
		attr(pkcs11.CKA_MODIFIABLE, false),
	}
}

// inspectEnrolmentKey demands that the key was made on this token, that its
// private half never was and never will be outside, and that it keeps to its
// template; and returns its public half.
func (s *session) inspectEnrolmentKey(key pkcs11.ObjectHandle) ([]byte, error) {
	wanted := append(privateUsage(pkcs11.CKA_UNWRAP),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_ALWAYS_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_NEVER_EXTRACTABLE, true),
		attr(pkcs11.CKA_LOCAL, true),
		attr(pkcs11.CKA_MODIFIABLE, false))
	if err := s.inspectFlags(enrolmentRole, key, wanted); err != nil {
		return nil, err
	}
	modulus, err := s.attribute(key, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, err
	}
	public, err := s.publicKey(specs[fmt.Sprintf("RSA_%d", 8*len(modulus))], key)
	if err != nil {
		return nil, err
	}
	return public, s.inspectCarrier(key, public)
}

// inspectCarrier asks for a throw-away key in forms that must not be had.
func (s *session) inspectCarrier(key pkcs11.ObjectHandle, public []byte) error {
	wrapper, err := s.wrapper(public)
	if err != nil {
		return err
	}
	defer s.destroy(wrapper)
	trial, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), backingKeyTemplate(pkcs11.CKK_AES, aesKeySize))
	if err != nil {
		return deviceError("generating a throw-away key", err)
	}
	defer s.destroy(trial)
	parcel, err := s.wrapFor(wrapper, trial)
	if err != nil {
		return err
	}
	good := append(carriedTemplate(), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES))
	for _, forbidden := range []*pkcs11.Attribute{
		attr(pkcs11.CKA_SENSITIVE, false), attr(pkcs11.CKA_EXTRACTABLE, true), attr(pkcs11.CKA_DECRYPT, true),
		attr(pkcs11.CKA_DERIVE, true), attr(pkcs11.CKA_MODIFIABLE, true),
	} {
		object, err := s.openParcel(key, parcel, altered(good, forbidden))
		if err == nil {
			s.destroy(object)
			return fmt.Errorf("%w: the enrolment key unwraps objects with attribute 0x%X = %x, so a PIN holder could take domain keys out: the device ignores unwrap templates, or somebody else made the key",
				ErrDomainConflict, forbidden.Type, forbidden.Value)
		}
		if !isCode(err, templateRefusals...) {
			return fmt.Errorf("trying the enrolment key: %w", err)
		}
	}
	return nil
}

// wrapper brings a public key in as an object that wraps.
func (s *session) wrapper(publicKey []byte) (pkcs11.ObjectHandle, error) {
	key, err := x509.ParsePKIXPublicKey(publicKey)
	public, ok := key.(*rsa.PublicKey)
	if err != nil || !ok || public.N.BitLen() < enrolmentSizes[0] || public.E != 65537 {
		return 0, fmt.Errorf("%w: it is no public key of an enrolment key", ErrArgument)
	}
	object, err := s.t.module.p11.CreateObject(s.handle, []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		attr(pkcs11.CKA_TOKEN, false),
		attr(pkcs11.CKA_PRIVATE, false),
		attr(pkcs11.CKA_ENCRYPT, false),
		attr(pkcs11.CKA_VERIFY, false),
		attr(pkcs11.CKA_WRAP, true),
		attr(pkcs11.CKA_MODULUS, public.N.Bytes()),
		attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent),
	})
	return object, deviceError("bringing in a public key", err)
}

// wrapFor wraps key by each hash that the device has.
func (s *session) wrapFor(wrapper, key pkcs11.ObjectHandle) (map[string][]byte, error) {
	made := map[string][]byte{}
	var last error
	for _, hash := range enrolmentHashes {
		wrapped, err := s.wrapBy(pkcs11.CKM_RSA_PKCS_OAEP, oaepParameters(hash), wrapper, key)
		if err == nil {
			made[hash] = wrapped
			continue
		}
		last = fmt.Errorf("for a member: %w", err)
		if !isCode(err, lacksHash...) {
			return nil, last
		}
	}
	if len(made) == 0 {
		return nil, last
	}
	return made, nil
}

func (s *session) openParcel(key pkcs11.ObjectHandle, parcel map[string][]byte, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	last := fmt.Errorf("%w: the parcel is empty", ErrArgument)
	for _, hash := range enrolmentHashes {
		wrapped, found := parcel[hash]
		if !found {
			continue
		}
		object, err := s.t.module.p11.UnwrapKey(s.handle, byOAEP(hash), key, wrapped, template)
		if err == nil {
			return object, nil
		}
		last = deviceError("unwrapping a key of the generation", err)
		if !isCode(err, lacksHash...) {
			return 0, last
		}
	}
	return 0, last
}

// unmodifiableLast is for SoftHSM, which sets attributes in their order and
// none after MODIFIABLE=false.
func unmodifiableLast(template []*pkcs11.Attribute) []*pkcs11.Attribute {
	return append(without(template, pkcs11.CKA_MODIFIABLE), attr(pkcs11.CKA_MODIFIABLE, false))
}

func without(template []*pkcs11.Attribute, kind uint) []*pkcs11.Attribute {
	return slices.DeleteFunc(slices.Clone(template), func(a *pkcs11.Attribute) bool { return a.Type == kind })
}

// DropEnrolmentKey destroys the enrolment key of a generation, after which no
// copy of its parcel opens any more. It can be called again.
func (d *Member) DropEnrolmentKey(ctx context.Context, number uint32) error {
	err := d.t.onMakerRetrying(ctx, func(s *session) error { return s.destroyNamed(d.id.label(enrolmentRole, number)) })
	if err != nil {
		return fmt.Errorf("destroying the enrolment key of generation %d on %q: %w", number, d.t.info.Label, err)
	}
	return nil
}

// onMakerRetrying is onKeeperRetrying for what takes long.
func (t *Token) onMakerRetrying(ctx context.Context, f func(*session) error) error {
	return t.maker.runFresh(ctx, t, f)
}

// SameFingerprint compares what people may have written with spaces or capitals.
func SameFingerprint(a, b string) bool {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("-", "", " ", "", ":", "").Replace(s))
	}
	return plain(a) == plain(b)
}
