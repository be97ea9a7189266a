package hsm

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/testenv"
)

// generations fails the test unless the token holds these whole ones, of which
// the last argument is active.
func wantGenerations(t *testing.T, d *Member, active uint32, whole ...uint32) {
	t.Helper()
	all, err := d.Generations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []uint32
	for _, g := range all {
		if g.Whole {
			got = append(got, g.Number)
		}
		if g.Active != (g.Number == active) {
			t.Errorf("generation %d: active is %t", g.Number, g.Active)
		}
	}
	if len(got) != len(whole) {
		t.Fatalf("whole generations %v, want %v", got, whole)
	}
	for i := range whole {
		if got[i] != whole[i] {
			t.Errorf("whole generations %v, want %v", got, whole)
		}
	}
}

func encryptsAndDecrypts(t *testing.T, d *Member, ekt EKT) []byte {
	t.Helper()
	sealed, err := sealBlob(t.Context(), d, ekt, []byte("hoge_password"))
	if err != nil {
		t.Fatal(err)
	}
	opens(t, d, ekt, sealed)
	return sealed
}

func opens(t *testing.T, d *Member, ekt EKT, sealed []byte) {
	t.Helper()
	plain, err := openBlob(t.Context(), d, ekt, sealed)
	if err != nil || string(plain) != "hoge_password" {
		t.Fatalf("decrypted %q, %v", plain, err)
	}
}

func TestGenerations(t *testing.T) {
	d := newDomain(t, nil)
	ctx := t.Context()
	first := newAES(t, d)
	sealed := encryptsAndDecrypts(t, d, first)
	_, oldMAC, err := d.Sum(ctx, []byte("row"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetActive(ctx, 2); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("activating what is not there: %v", err)
	}
	// Another host sees what this one makes without being told.
	other, err := d.t.OpenDomain(ctx, testDomain)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.CreateGeneration(ctx, 2, Locked); err != nil {
		t.Fatal(err)
	}
	if err := d.CreateGeneration(ctx, 2, Locked); err != nil { // nothing left to do
		t.Fatal(err)
	}
	wantGenerations(t, d, 1, 1, 2)
	if newAES(t, d).Generation() != 1 {
		t.Error("a generation that is not active wraps")
	}
	if err := d.SetActive(ctx, 2); err != nil {
		t.Fatal(err)
	}
	ekt, made, err := d.GenerateAES(ctx)
	if err != nil || ekt.Generation() != 2 || made.Generation != 2 {
		t.Fatalf("generation %d, provenance %+v, %v", ekt.Generation(), made, err)
	}
	opens(t, d, first, sealed)
	blob := encryptsAndDecrypts(t, d, ekt)
	opens(t, other, ekt, blob)
	generation, mac, err := d.Sum(ctx, []byte("row"))
	if err != nil || generation != 2 || bytes.Equal(mac, oldMAC) {
		t.Fatalf("MAC of generation %d, %v", generation, err)
	}
	for _, row := range []struct {
		generation uint32
		mac        []byte
		want       bool
	}{{1, oldMAC, true}, {2, mac, true}, {1, mac, false}, {2, oldMAC, false}, {3, mac, false}} {
		for _, m := range []*Member{d, other} {
			if ok, err := m.Verify(ctx, row.generation, []byte("row"), row.mac); ok != row.want || err != nil {
				t.Errorf("verifying under %d: %t, %v", row.generation, ok, err)
			}
		}
	}
	if _, err := d.Rewrap(ctx, first, 2); !errors.Is(err, ErrLocked) {
		t.Errorf("wrapping a locked key again: %v", err)
	}
	// A lost login finds all again, and the same one active.
	wantGenerations(t, d, 2, 1, 2)
	before := d.t.epoch.Load()
	d.t.ask(before, remedyRestart, errors.New("the test asks"))
	for start := time.Now(); d.t.epoch.Load() == before && time.Since(start) < 5*time.Second; {
		time.Sleep(time.Millisecond)
	}
	opens(t, d, first, sealed)
	if !d.inUse(2) {
		t.Error("after a lost login generation 2 is not the active one")
	}
}

func TestDestroyGeneration(t *testing.T) {
	d := newDomain(t, nil)
	ctx := t.Context()
	first := newAES(t, d)
	_, mac, err := d.Sum(ctx, []byte("row"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.CreateGeneration(ctx, 2, Locked); err != nil {
		t.Fatal(err)
	}
	if err := d.DestroyGeneration(ctx, 1, true); !errors.Is(err, ErrArgument) {
		t.Errorf("destroying the active generation: %v", err)
	}
	if err := d.SetActive(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if err := d.DestroyGeneration(ctx, 1, true); err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, d, 2, 2)
	if _, err := sealBlob(ctx, d, first, nil); !errors.Is(err, ErrNoGeneration) || !errors.Is(err, ErrInvalidEKT) {
		t.Errorf("using a key of a destroyed generation: %v", err)
	}
	reopened, err := d.t.OpenDomain(ctx, testDomain) // knows nothing of what is active
	if err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, reopened, 2, 2)
	for _, m := range []*Member{d, reopened} {
		if ok, err := m.Verify(ctx, 1, []byte("row"), mac); !ok || err != nil {
			t.Errorf("a MAC of the retired generation: %t, %v", ok, err)
		}
	}
	if err := d.DestroyGeneration(ctx, 1, false); err != nil {
		t.Fatal(err)
	}
	if ok, err := d.Verify(ctx, 1, []byte("row"), mac); ok || err != nil {
		t.Errorf("a MAC of a generation that is gone: %t, %v", ok, err)
	}
}

// TestHalfAGeneration: what an interrupted rotation left is no generation, does
// not keep the others from working, and can be finished.
func TestHalfAGeneration(t *testing.T) {
	d := newDomain(t, nil)
	ctx := t.Context()
	if err := d.t.makeDomainKey(testDomain, 2, classAES, []uint{pkcs11.CKM_AES_KEY_WRAP}); err != nil {
		t.Fatal(err)
	}
	reopened, err := d.t.OpenDomain(ctx, testDomain)
	if err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, reopened, 1, 1)
	if err := reopened.SetActive(ctx, 2); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("activating half a generation: %v", err)
	}
	if err := reopened.CreateGeneration(ctx, 2, Locked); err != nil {
		t.Fatal(err)
	}
	if err := reopened.SetActive(ctx, 2); err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, reopened, 2, 1, 2)
}

// TestWeakSecondGeneration: a generation that a PIN holder plants is not used.
func TestWeakSecondGeneration(t *testing.T) {
	d := newDomain(t, nil)
	ctx := t.Context()
	if err := d.CreateGeneration(ctx, 2, Locked); err != nil {
		t.Fatal(err)
	}
	onKeeper(t, d, func(s *session, keys *domainKeys) error {
		s.destroy(keys.generations[2].wrap[classAES])
		planted := append(tokenKeyTemplate(testDomain.label(domainKeyRole(classAES), 2), testDomain.object(1, 2), pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP),
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_VALUE_LEN, aesKeySize))
		_, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), planted)
		return deviceError("planting", err)
	})
	if err := d.SetActive(ctx, 2); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("activating a planted generation: %v", err)
	}
	if err := d.CreateGeneration(ctx, 2, Locked); !errors.Is(err, ErrDomainConflict) {
		t.Errorf("finishing a planted generation: %v", err)
	}
	wantGenerations(t, d, 1, 1)
}

// newTrusted makes a domain with the trusted generations 2 and 3; 2 is active.
func newTrusted(t *testing.T) *Member {
	t.Helper()
	return trustedOn(t, testenv.SoftHSM(t))
}

func trustedOn(t *testing.T, token testenv.Token) *Member {
	t.Helper()
	cfg := Config{Module: token.Module, TokenLabel: token.Label, PIN: NewPIN([]byte(token.PIN))}
	for _, number := range []uint32{2, 3} {
		if err := MakeTrustedKeys(t.Context(), cfg, NewPIN([]byte(token.SOPIN)), testDomain, number); err != nil {
			t.Fatal(err)
		}
	}
	d := createDomain(t, openToken(t, cfg))
	for _, number := range []uint32{2, 3} {
		if err := d.CreateGeneration(t.Context(), number, Trusted); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.SetActive(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTrustedProfile(t *testing.T) {
	d := newTrusted(t)
	ctx := t.Context()
	all, err := d.Generations(ctx)
	if err != nil || len(all) != 3 || all[0].Profile != Locked || all[1].Profile != Trusted || !all[1].Public {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, kind := range []struct {
		spec string
		use  Use
	}{
		{"SYMMETRIC_DEFAULT", UseEncrypt}, {"HMAC_224", UseMAC}, {"HMAC_256", UseMAC}, {"HMAC_512", UseMAC},
		{"ECC_NIST_P256", UseSign}, {"ECC_NIST_P384", UseAgree}, {"RSA_2048", UseSign},
	} {
		made, err := d.Generate(ctx, kind.spec, kind.use)
		if err != nil {
			t.Fatalf("%s: %v", kind.spec, err)
		}
		if made.Provenance.Profile != "trusted" || made.EKT.Generation() != 2 {
			t.Errorf("%s: provenance %+v", kind.spec, made.Provenance)
		}
		moved, err := d.Rewrap(ctx, made.EKT, 3)
		if err != nil || moved.Generation() != 3 || bytes.Equal(moved[ektHeader:], made.EKT[ektHeader:]) {
			t.Fatalf("%s: moved to %d, %v", kind.spec, moved.Generation(), err)
		}
		wantNoWayOut(t, d, kind.spec, moved)
	}
	ekt := newAES(t, d)
	sealed := encryptsAndDecrypts(t, d, ekt)
	moved, err := d.Rewrap(ctx, ekt, 3)
	if err != nil {
		t.Fatal(err)
	}
	opens(t, d, moved, sealed)
	if _, err := d.Rewrap(ctx, ekt, 1); !errors.Is(err, ErrLocked) {
		t.Errorf("moving a key to a locked generation: %v", err)
	}
	if _, err := d.Rewrap(ctx, ekt, 9); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("moving a key to a generation that is not there: %v", err)
	}
	secret, err := d.ImportSecret(ctx, []byte("a secret that is just long enough"))
	if err != nil {
		t.Fatal(err)
	}
	before, err := d.HMAC(ctx, secret, []byte("date"))
	if err != nil {
		t.Fatal(err)
	}
	if secret, err = d.Rewrap(ctx, secret, 3); err != nil {
		t.Fatal(err)
	}
	if after, err := d.HMAC(ctx, secret, []byte("date")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a secret's HMAC changed: %v", err)
	}
}

// wantNoWayOut demands that whoever has the PIN cannot take a key of the
// trusted profile out of the HSM.
func wantNoWayOut(t *testing.T, d *Member, name string, ekt EKT) {
	t.Helper()
	k, err := ekt.parse()
	if err != nil {
		t.Fatal(err)
	}
	onKeeper(t, d, func(s *session, keys *domainKeys) error {
		g, err := keys.of(k.generation)
		if err != nil {
			return err
		}
		p11 := s.t.module.p11
		own, err := p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN),
			sessionKeyTemplate(pkcs11.CKK_AES, aesKeySize, false, pkcs11.CKA_WRAP))
		if err != nil {
			return err
		}
		defer s.destroy(own)
		moving, err := s.unwrap(g.way(k.class), g.wrap[k.class], k.wrapped, g.protected(movingTemplate(k.class, k.keyType)))
		if err != nil {
			return err
		}
		defer s.destroy(moving)
		_, err = s.wrap(g.way(k.class), own, moving)
		wantCode(t, name+": wrapping by an own key", err, pkcs11.CKR_KEY_NOT_WRAPPABLE)
		for what, change := range map[string][]*pkcs11.Attribute{
			"free":     {attr(pkcs11.CKA_WRAP_WITH_TRUSTED, false)},
			"readable": {attr(pkcs11.CKA_SENSITIVE, false)},
		} {
			if p11.SetAttributeValue(s.handle, moving, change) == nil {
				t.Errorf("%s: made %s", name, what)
			}
			if s.copied(moving, change) == nil {
				t.Errorf("%s: copied %s", name, what)
			}
		}
		use, err := s.unwrapFor(keys, k)
		if err != nil {
			return err
		}
		defer s.destroy(use)
		for _, by := range keys.generations { // not even by trusted keys
			if by.wrap[k.class] != 0 {
				if _, err := s.wrap(by.way(k.class), by.wrap[k.class], use); err == nil {
					t.Errorf("%s: a copy in use can be wrapped again", name)
				}
			}
		}
		return nil
	})
}

// TestWeakTrustedKeyIsRefused: domain keys marked trusted whose unwrap template
// lacks the restriction are found out.
func TestWeakTrustedKeyIsRefused(t *testing.T) {
	token := testenv.SoftHSM(t)
	cfg := Config{Module: token.Module, TokenLabel: token.Label, PIN: NewPIN([]byte(token.PIN))}
	err := asOfficer(t.Context(), cfg, NewPIN([]byte(token.SOPIN)), func(s *session) error {
		for _, c := range keyClasses {
			template := unwrapTemplate(c, Trusted)
			if c == classGeneric { // says neither EXTRACTABLE=false nor WRAP_WITH_TRUSTED
				template = append(template[:3:3], template[4:]...)
			}
			nested, free := nestedTemplate(template)
			defer free()
			_, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), append(
				altered(domainKeyTemplate(testDomain, 2, c, []uint{pkcs11.CKM_AES_KEY_WRAP, pkcs11.CKM_AES_KEY_WRAP_PAD}), attr(pkcs11.CKA_PRIVATE, false)),
				attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
				attr(pkcs11.CKA_VALUE_LEN, aesKeySize), attr(pkcs11.CKA_TRUSTED, true), attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested)))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	d := createDomain(t, openToken(t, cfg))
	if err := d.CreateGeneration(t.Context(), 2, Trusted); !errors.Is(err, ErrDomainConflict) {
		t.Errorf("trusted domain keys without the restriction: %v", err)
	}
	wantGenerations(t, d, 1, 1)
}

func TestOfficer(t *testing.T) {
	token := testenv.SoftHSM(t)
	cfg := Config{Module: token.Module, TokenLabel: token.Label, PIN: NewPIN([]byte(token.PIN))}
	if err := MakeTrustedKeys(t.Context(), cfg, NewPIN([]byte("not-the-pin")), testDomain, 2); !errors.Is(err, ErrPINIncorrect) {
		t.Errorf("a wrong PIN: %v", err)
	}
	d := newDomain(t, nil)
	if err := MakeTrustedKeys(t.Context(), cfg, NewPIN([]byte(token.SOPIN)), testDomain, 2); !errors.Is(err, ErrArgument) {
		t.Errorf("beside a user who is logged in: %v", err)
	}
	if err := d.CreateGeneration(t.Context(), 2, Trusted); !errors.Is(err, ErrNoDomain) {
		t.Errorf("a trusted generation without the officer's keys: %v", err)
	}
	if err := d.CreateGeneration(t.Context(), 1, Locked); !errors.Is(err, ErrArgument) {
		t.Errorf("making generation 1 again: %v", err)
	}
}
