package hsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// newMembers makes a domain on the first of n tokens. The others hold nothing.
func newMembers(t *testing.T, n int) []*Member {
	t.Helper()
	var configs []Config
	for range n {
		configs = append(configs, testConfig(t)) // before the library sees any
	}
	return newMembersOn(t, configs...)
}

// newMembersOn makes a domain on the first of the configured tokens.
func newMembersOn(t *testing.T, configs ...Config) (members []*Member) {
	t.Helper()
	for i, cfg := range configs {
		token := openToken(t, cfg)
		if i == 0 {
			if err := token.CreateDomain(t.Context(), testDomain); err != nil {
				t.Fatal(err)
			}
		}
		m, err := token.openMember(t.Context(), testDomain, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, m)
	}
	return members
}

// enrolmentKeys makes those for generation 2, and returns their public halves.
func enrolmentKeys(t *testing.T, members ...*Member) (publicKeys [][]byte) {
	t.Helper()
	for _, m := range members {
		public, err := m.EnrolmentKey(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		publicKeys = append(publicKeys, public)
	}
	return publicKeys
}

// enrolled makes generation 2 on all members, the first of which makes it, and
// leaves the enrolment keys in place.
func enrolled(t *testing.T, members ...*Member) Shared {
	t.Helper()
	made, err := members[0].MakeShared(t.Context(), 2, enrolmentKeys(t, members...))
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range members {
		if err := m.TakeShared(t.Context(), 2, made.Parcels[i]); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

func TestEnrolment(t *testing.T) {
	members := newMembers(t, 3)
	a, b, c := members[0], members[1], members[2]
	ctx := t.Context()
	old := newAES(t, a)
	first, err := b.EnrolmentKey(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.EnrolmentKey(ctx, 2); err != nil || !bytes.Equal(again, first) {
		t.Errorf("asked again, it is another enrolment key: %v", err)
	}
	made := enrolled(t, a, b, c)
	proofs := Proofs{2: made.Proof}
	for i, m := range []*Member{a, b, c} {
		if err := m.SetActive(ctx, 2); !errors.Is(err, ErrNoGeneration) {
			t.Errorf("member %d takes copies for good without a proof: %v", i, err)
		}
		if err := m.SetProofs(ctx, proofs); err != nil {
			t.Fatal(err)
		}
		if err := m.SetActive(ctx, 2); err != nil {
			t.Fatal(err)
		}
		if err := m.DropEnrolmentKey(ctx, 2); err != nil {
			t.Fatal(err)
		}
		if err := m.DropEnrolmentKey(ctx, 2); err != nil { // nothing left to do
			t.Fatal(err)
		}
		// Who asks again has a database from before, and must not make others.
		if _, err := m.EnrolmentKey(ctx, 2); !errors.Is(err, ErrDomainConflict) {
			t.Errorf("member %d: an enrolment key for what was enrolled: %v", i, err)
		}
	}
	wantGenerations(t, a, 2, 1, 2)
	wantGenerations(t, b, 2, 2)
	for i, m := range []*Member{a, b, c} {
		ekt := newAES(t, m)
		blob := encryptsAndDecrypts(t, m, ekt)
		pair, err := m.Generate(ctx, "ECC_NIST_P256", UseSign)
		if err != nil {
			t.Fatal(err)
		}
		_, mac, err := m.Sum(ctx, []byte("row"))
		if err != nil {
			t.Fatal(err)
		}
		for j, other := range []*Member{a, b, c} {
			opens(t, other, ekt, blob)
			if ok, err := other.Verify(ctx, 2, []byte("row"), mac); !ok || err != nil {
				t.Errorf("member %d does not verify the row of member %d: %v", j, i, err)
			}
			if _, err := other.Sign(ctx, pair.EKT, "ECDSA_SHA_256", make([]byte, 32)); err != nil {
				t.Errorf("member %d does not sign with the key of member %d: %v", j, i, err)
			}
		}
	}
	if _, _, err := b.Encrypt(ctx, old, nil, nil); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("a locked key of before, on the new member: %v", err)
	}
	if err := b.TakeShared(ctx, 3, made.Parcels[1]); err == nil {
		t.Error("a parcel opens after its enrolment key was destroyed")
	}
	again, err := b.t.OpenProved(ctx, testDomain, proofs)
	if err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, again, 2, 2)
	if _, err := b.t.OpenDomain(ctx, testDomain); !errors.Is(err, ErrDomainConflict) {
		t.Errorf("opened without a proof: %v", err)
	}
}

// TestCopiesAreAsMade: what a member gets has the attributes that
// CreateGeneration gives, but for its past.
func TestCopiesAreAsMade(t *testing.T) {
	members := newMembers(t, 2)
	a, b := members[0], members[1]
	enrolled(t, a, b)
	for _, m := range []*Member{a, b} {
		err := m.t.onKeeperRetrying(t.Context(), func(s *session) error {
			for _, role := range allRoles() {
				key, err := s.findOne(testDomain.label(role, 2))
				if err != nil {
					return err
				}
				uses := []uint{pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP}
				if role == macRole {
					uses = []uint{pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY}
				}
				for _, a := range append((&generationKeys{Generation: Generation{Shared: true}}).secretFlags(uses...), attr(pkcs11.CKA_LOCAL, false)) {
					if ok, err := s.flag(key, a.Type, a.Value[0] != 0); !ok || err != nil {
						t.Errorf("%s key: attribute 0x%X: %v", role, a.Type, err)
					}
				}
				made, err := s.findOne(testDomain.label(role, 1))
				if errors.Is(err, errNotFound) {
					continue // b has none of its own
				}
				if err != nil {
					return err
				}
				own, err := s.attribute(made, pkcs11.CKA_ALLOWED_MECHANISMS)
				if err != nil {
					return err
				}
				if copied, err := s.attribute(key, pkcs11.CKA_ALLOWED_MECHANISMS); err != nil || !bytes.Equal(own, copied) {
					t.Errorf("%s key: mechanisms %x, want %x, %v", role, copied, own, err)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestParcelStaysInside: not even with the PIN, and before the enrolment key is
// destroyed, does a parcel give a key that can be read.
func TestParcelStaysInside(t *testing.T) {
	members := newMembers(t, 2)
	a, b := members[0], members[1]
	made := enrolled(t, a, b)
	var parcel parcelText
	if err := json.Unmarshal(made.Parcels[1], &parcel); err != nil {
		t.Fatal(err)
	}
	err := b.t.onMakerRetrying(t.Context(), func(s *session) error {
		key, err := s.findOne(testDomain.label(enrolmentRole, 2))
		if err != nil {
			return err
		}
		good := append(carriedTemplate(), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES))
		for _, bad := range [][]*pkcs11.Attribute{
			altered(good, attr(pkcs11.CKA_SENSITIVE, false)), altered(good, attr(pkcs11.CKA_EXTRACTABLE, true)),
			altered(good, attr(pkcs11.CKA_DECRYPT, true)), without(good, pkcs11.CKA_SENSITIVE), without(good, pkcs11.CKA_EXTRACTABLE),
		} {
			if object, err := s.openParcel(key, parcel[domainKeyRole(classAES)], bad); err == nil {
				s.destroy(object)
				t.Errorf("a parcel opens as %v", bad)
			}
		}
		if err := s.t.module.p11.DecryptInit(s.handle, byOAEP("RSAES_OAEP_SHA_1"), key); err == nil {
			t.Error("an enrolment key decrypts")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPlantedCopy: another key than the proved one is not used, whoever put it
// there.
func TestPlantedCopy(t *testing.T) {
	ctx := t.Context()
	members := newMembers(t, 2)
	a, b := members[0], members[1]
	made := enrolled(t, a, b)
	proofs := Proofs{2: made.Proof}
	var other Shared
	for _, role := range allRoles() {
		other = plant(t, b, role)
		if err := b.SetProofs(ctx, proofs); err != nil {
			t.Fatal(err)
		}
		if err := b.SetActive(ctx, 2); !errors.Is(err, ErrNoGeneration) {
			t.Errorf("a planted %s key is used: %v", role, err)
		}
		if _, err := b.t.OpenProved(ctx, testDomain, proofs); !errors.Is(err, ErrDomainConflict) {
			t.Errorf("opened with a planted %s key: %v", role, err)
		}
		replace(t, b, role, made.Parcels[1])
	}
	if err := b.SetActive(ctx, 2); err != nil {
		t.Errorf("with the right keys again: %v", err)
	}
	if err := a.SetProofs(ctx, Proofs{2: other.Proof}); err != nil {
		t.Fatal(err)
	}
	if err := a.SetActive(ctx, 2); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("proved by the proof of other keys: %v", err)
	}
	if err := a.SetProofs(ctx, Proofs{2: "{"}); err != nil {
		t.Fatal(err)
	}
	if err := a.SetActive(ctx, 2); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("proved by nothing: %v", err)
	}
}

// TestExamineCopies: copies are believed by their proof and by nothing else,
// and held against nobody who could not be asked for it.
func TestExamineCopies(t *testing.T) {
	members := newMembers(t, 2)
	proof := enrolled(t, members...).Proof
	severities := func(cfg Config, known map[DomainID]Proofs) (errs, warnings string) {
		r, err := Examine(t.Context(), cfg, known)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range r.Findings {
			if f.Severity == SeverityError {
				errs += f.Text
			} else {
				warnings += f.Text
			}
		}
		return errs, warnings
	}
	proved, none := map[DomainID]Proofs{testDomain: {2: proof}}, map[DomainID]Proofs{testDomain: {}}
	for i, m := range members {
		cfg := m.t.cfg
		if errs, warnings := severities(cfg, proved); errs != "" || strings.Contains(warnings, "outside") || !strings.Contains(warnings, "generation 2 are of the locked profile") {
			t.Errorf("member %d, proved: errors %q, warnings %q", i, errs, warnings)
		}
		if errs, warnings := severities(cfg, nil); errs != "" || !strings.Contains(warnings, "`trent doctor` with the database's URL") {
			t.Errorf("member %d, without a database: errors %q, warnings %q", i, errs, warnings)
		}
	}
	b := members[1]
	if errs, _ := severities(b.t.cfg, none); !strings.Contains(errs, "not made by Trent") {
		t.Errorf("copies that the database does not know: errors %q", errs)
	}
	plant(t, b, domainKeyRole(classGeneric))
	if errs, _ := severities(b.t.cfg, proved); !strings.Contains(errs, "somebody put another in its place") {
		t.Errorf("a planted key: errors %q", errs)
	}
	plant(t, members[0], macRole)
	if errs, _ := severities(members[0].t.cfg, proved); !strings.Contains(errs, "generation 2: ") {
		t.Errorf("a planted key beside a generation that is whole: errors %q", errs)
	}
}

// plant replaces one key of the member by one whose maker could know it.
func plant(t *testing.T, m *Member, role string) Shared {
	t.Helper()
	public, err := m.EnrolmentKey(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	other, err := m.MakeShared(t.Context(), 2, [][]byte{public})
	if err != nil {
		t.Fatal(err)
	}
	replace(t, m, role, other.Parcels[0])
	return other
}

func replace(t *testing.T, m *Member, role string, by Parcel) {
	t.Helper()
	err := m.t.onKeeperRetrying(t.Context(), func(s *session) error {
		key, err := s.findOne(testDomain.label(role, 2))
		if err != nil {
			return err
		}
		return deviceError("destroying", s.t.module.p11.DestroyObject(s.handle, key))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.TakeShared(t.Context(), 2, by); err != nil {
		t.Fatal(err)
	}
}

// TestPlantedEnrolmentKey: a key whose private half somebody may know is not
// shown as the token's.
func TestPlantedEnrolmentKey(t *testing.T) {
	b := newMembers(t, 1)[0]
	err := b.t.onMakerRetrying(t.Context(), func(s *session) error {
		nested, free := nestedTemplate(carriedTemplate())
		defer free()
		_, _, err := s.t.module.p11.GenerateKeyPair(s.handle, mechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN),
			[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_MODULUS_BITS, 3072), attr(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent)},
			append(privateUsage(pkcs11.CKA_UNWRAP),
				attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_PRIVATE, true),
				attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true),
				attr(pkcs11.CKA_LABEL, testDomain.label(enrolmentRole, 2)), attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested)))
		return deviceError("planting", err)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.EnrolmentKey(t.Context(), 2); !errors.Is(err, ErrDomainConflict) {
		t.Errorf("an extractable enrolment key: %v", err)
	}
}

func TestFingerprint(t *testing.T) {
	f := Fingerprint([]byte("key"))
	if len(f) != 64+15 || !SameFingerprint(f, " "+string(bytes.ToUpper([]byte(f)))) || SameFingerprint(f, Fingerprint(nil)) {
		t.Error(f)
	}
	if !slices.Equal(slices.Sorted(maps.Keys(provedSpecs)), keyClasses) {
		t.Error("not every class is proved")
	}
}

// TestEnrolmentKeyIsMadeOnce: a device that made the key and then failed has it.
// A second one would make both useless.
func TestEnrolmentKeyIsMadeOnce(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	shim.Set("C_GenerateKeyPair", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_DEVICE_ERROR, After: true, Times: 1})
	first := must(d.EnrolmentKey(t.Context(), 2))(t)
	if again := must(d.EnrolmentKey(t.Context(), 2))(t); !bytes.Equal(first, again) {
		t.Error("there are two")
	}
	if err := d.DropEnrolmentKey(t.Context(), 2); err != nil {
		t.Error(err)
	}
}
