package hsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/failpoint"
)

// Parcel has a generation's keys for one member, wrapped by its enrolment key.
// Whoever has the private half has the keys.
type Parcel []byte

// parcelText is a Parcel's JSON: by role and hash, and formsRole.
type parcelText map[string]map[string][]byte

// Shared is a generation on its way to its members.
type Shared struct {
	Proof   Proof    `json:"proof"`
	Parcels []Parcel `json:"parcels"` // in the order of the public keys
}

// MakeShared makes the keys of a generation of the locked profile on this
// token, wraps them for each of the public keys and destroys them: what remains
// are the parcels, and the proof by which the copies will be known.
func (d *Member) MakeShared(ctx context.Context, number uint32, publicKeys [][]byte) (Shared, error) {
	if number <= firstGeneration || len(publicKeys) == 0 {
		return Shared{}, fmt.Errorf("%w: generation %d for %d members", ErrArgument, number, len(publicKeys))
	}
	var made Shared
	err := d.t.onMakerRetrying(ctx, func(s *session) (err error) {
		made, err = s.makeShared(d.id, number, publicKeys)
		return err
	})
	if err != nil {
		return Shared{}, fmt.Errorf("making generation %d on %q: %w", number, d.t.info.Label, err)
	}
	return made, nil
}

func (s *session) makeShared(id DomainID, number uint32, publicKeys [][]byte) (made Shared, err error) {
	ways, err := s.ways()
	if err != nil {
		return Shared{}, err
	}
	g := &generationKeys{Generation: Generation{Number: number, Profile: Locked, Shared: true}, wrap: map[keyClass]pkcs11.ObjectHandle{}, by: ways}
	for _, c := range keyClasses {
		if g.wrap[c], err = s.makeCarried(pkcs11.CKM_AES_KEY_GEN, pkcs11.CKK_AES, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP); err != nil {
			return Shared{}, err
		}
		defer s.destroy(g.wrap[c])
	}
	if g.mac, err = s.makeCarried(pkcs11.CKM_GENERIC_SECRET_KEY_GEN, pkcs11.CKK_GENERIC_SECRET, pkcs11.CKA_SIGN); err != nil {
		return Shared{}, err
	}
	defer s.destroy(g.mac)
	if made.Proof, err = s.makeProof(id, g); err != nil {
		return Shared{}, err
	}
	for _, public := range publicKeys {
		parcel, err := s.packFor(public, g)
		if err != nil {
			return Shared{}, err
		}
		made.Parcels = append(made.Parcels, parcel)
	}
	return made, nil
}

// makeCarried makes a key that can be taken along. Its caller destroys it: it
// exists as itself for as long as makeShared runs.
func (s *session) makeCarried(with, keyType uint, uses ...uint) (pkcs11.ObjectHandle, error) {
	key, err := s.t.module.p11.GenerateKey(s.handle, mechanism(with), sessionKeyTemplate(keyType, aesKeySize, true, uses...))
	return key, deviceError("generating a key for several members", err)
}

func (s *session) packFor(publicKey []byte, g *generationKeys) (Parcel, error) {
	wrapper, err := s.wrapper(publicKey)
	if err != nil {
		return nil, err
	}
	defer s.destroy(wrapper)
	text := parcelText{formsRole: g.by.pack()}
	for c, key := range g.wrap {
		if text[domainKeyRole(c)], err = s.wrapFor(wrapper, key); err != nil {
			return nil, err
		}
	}
	if text[macRole], err = s.wrapFor(wrapper, g.mac); err != nil {
		return nil, err
	}
	b, err := json.Marshal(text)
	if err != nil {
		return nil, fmt.Errorf("encoding a parcel: %w", err)
	}
	return b, nil
}

// TakeShared brings the keys in a parcel to this token, those that are not
// there yet, with the attributes that CreateGeneration gives.
func (d *Member) TakeShared(ctx context.Context, number uint32, parcel Parcel) error {
	var text parcelText
	if err := json.Unmarshal(parcel, &text); err != nil {
		return fmt.Errorf("%w: reading a parcel: %w", ErrArgument, err)
	}
	err := d.t.onMakerRetrying(ctx, func(s *session) error {
		key, err := s.findOne(d.id.label(enrolmentRole, number))
		if err != nil {
			return fmt.Errorf("the enrolment key: %w", err)
		}
		for _, role := range allRoles() {
			if err := s.take(d.id, number, role, key, text); err != nil {
				return fmt.Errorf("the %s key: %w", role, err)
			}
			failpoint.Hit("enrol.took." + role)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bringing generation %d to %q: %w", number, d.t.info.Label, err)
	}
	return nil
}

func (s *session) take(id DomainID, number uint32, role string, key pkcs11.ObjectHandle, parcel parcelText) error {
	if _, err := s.findOne(id.label(role, number)); !errors.Is(err, errNotFound) {
		return err
	}
	template := append([]*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
	}, macKeyTemplate(id, number)...)
	for _, c := range keyClasses {
		if role == domainKeyRole(c) {
			by, err := s.waysToTake(c, parcel[formsRole])
			if err != nil {
				return err
			}
			nested, free := nestedTemplate(unwrapTemplate(c, Locked))
			defer free()
			template = append([]*pkcs11.Attribute{
				attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested),
			}, domainKeyTemplate(id, number, c, by)...)
		}
	}
	template = unmodifiableLast(template)
	_, err := s.openParcel(key, parcel[role], template)
	if isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) { // as in makeTokenKey
		_, err = s.openParcel(key, parcel[role], without(template, pkcs11.CKA_ALLOWED_MECHANISMS))
	}
	return err
}
