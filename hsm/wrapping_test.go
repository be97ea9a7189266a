package hsm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/testenv"
	"github.com/trent-kms/trent/internal/wrapshim"
)

// Devices that know AES key wrap as vendors do.
var (
	onlyKWP  = wrapshim.Device{KWP: ckmAESKeyWrapKWP}
	strict   = wrapshim.Device{KW: pkcs11.CKM_AES_KEY_WRAP, KWP: ckmAESKeyWrapKWP, Strict: true}
	likeLuna = wrapshim.Device{KW: ckmLunaKW, KWP: ckmLunaKWP}
	// Its PAD is not RFC 5649.
	padding   = wrapshim.Device{KW: pkcs11.CKM_AES_KEY_WRAP, Padded: pkcs11.CKM_AES_KEY_WRAP_PAD, KWP: ckmAESKeyWrapKWP}
	secretive = wrapshim.Device{KW: ckmCloudHSMNoPad, Padded: pkcs11.CKM_AES_KEY_WRAP_PAD, KWP: ckmCloudHSMZeroPad, Secretive: true}
)

// renumbered is testConfig before a library with other mechanisms.
func renumbered(t *testing.T, d wrapshim.Device) Config {
	t.Helper()
	cfg := testConfig(t)
	cfg.Module = wrapshim.New(t, cfg.Module, d)
	return cfg
}

// TestWrapMechanisms: whatever numbers a device has for AES key wrap, Trent
// finds the right ones, writes them into EKTs and lives with them.
func TestWrapMechanisms(t *testing.T) {
	for name, test := range map[string]struct {
		device *wrapshim.Device // nil = SoftHSM as it is
		want   wrapWays
	}{
		"SoftHSM":  {nil, wrapWays{classAES: {pkcs11.CKM_AES_KEY_WRAP, pkcs11.CKM_AES_KEY_WRAP_PAD}, classGeneric: {pkcs11.CKM_AES_KEY_WRAP_PAD}}},
		"KWP only": {&onlyKWP, wrapWays{classAES: {ckmAESKeyWrapKWP}, classGeneric: {ckmAESKeyWrapKWP}}},
		"Luna":     {&likeLuna, wrapWays{classAES: {ckmLunaKW, ckmLunaKWP}, classGeneric: {ckmLunaKWP}}},
		"another meaning of PAD": {&padding, wrapWays{classAES: {pkcs11.CKM_AES_KEY_WRAP, ckmAESKeyWrapKWP},
			classGeneric: {ckmAESKeyWrapKWP}}},
		"uses kept apart": {&strict, wrapWays{classAES: {pkcs11.CKM_AES_KEY_WRAP, ckmAESKeyWrapKWP}, classGeneric: {ckmAESKeyWrapKWP}}},
		"CloudHSM, no vectors, another meaning of PAD": {&secretive, wrapWays{classAES: {ckmCloudHSMNoPad, ckmCloudHSMZeroPad},
			classGeneric: {ckmCloudHSMZeroPad}}},
	} {
		t.Run(name, func(t *testing.T) {
			test.want[classPrivate] = test.want[classGeneric]
			cfg := testConfig(t)
			if test.device != nil {
				cfg = renumbered(t, *test.device)
			}
			token := openToken(t, cfg)
			if err := token.CreateDomain(t.Context(), testDomain); err != nil {
				t.Fatal(err)
			}
			d, err := token.OpenDomain(t.Context(), testDomain)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.CreateGeneration(t.Context(), 2, Locked); err != nil {
				t.Fatal(err)
			}
			old := newAES(t, d)
			oldBlob := encryptsAndDecrypts(t, d, old)
			if err := d.SetActive(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			uses := liveUnder(t, d, test.want)
			onKeeper(t, d, func(s *session, keys *domainKeys) error {
				for c, key := range keys.wrap { // a domain key serves for what it was made for
					allowed, err := s.allowedMechanisms(key)
					if err != nil || !slices.Equal(allowed, c.pinned(test.want[c])) {
						t.Errorf("the %s key serves by %x, want %x (%v)", c, allowed, c.pinned(test.want[c]), err)
					}
				}
				return nil
			})
			if err := token.Close(); err != nil {
				t.Fatal(err)
			}
			if d, err = openToken(t, cfg).OpenDomain(t.Context(), testDomain); err != nil {
				t.Fatal(err)
			}
			opens(t, d, old, oldBlob)
			uses(d)
		})
	}
}

// liveUnder makes keys of all classes and returns what uses them.
func liveUnder(t *testing.T, d *Member, want wrapWays) (uses func(*Member)) {
	t.Helper()
	ctx := t.Context()
	i := newImporter(t, d, "RSA_2048")
	imported, err := i.do("RSA_AES_KEY_WRAP_SHA_1", "HMAC_224", UseMAC, bytes.Repeat([]byte{9}, 28))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := d.ImportSecret(ctx, []byte("a secret that is just long enough"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := d.Generate(ctx, "ECC_NIST_P256", UseSign)
	if err != nil {
		t.Fatal(err)
	}
	aes := newAES(t, d)
	blob := encryptsAndDecrypts(t, d, aes)
	for _, ekt := range []EKT{aes, secret, imported.EKT, pair.EKT} {
		if got := uint(binary.BigEndian.Uint32(ekt[6:])); got != want[ekt.class()][0] {
			t.Errorf("%s EKT: mechanism 0x%X, want 0x%X", ekt.class(), got, want[ekt.class()][0])
		}
	}
	uses = func(d *Member) {
		t.Helper()
		opens(t, d, aes, blob)
		if _, err := d.HMAC(ctx, secret, []byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := d.MAC(ctx, imported.EKT, "HMAC_SHA_224", []byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := d.Sign(ctx, pair.EKT, "ECDSA_SHA_256", make([]byte, 32)); err != nil {
			t.Error(err)
		}
	}
	uses(d)
	return uses
}

// TestRewrapByOtherMechanisms: the security officer's keys, and what they are
// for.
func TestRewrapByOtherMechanisms(t *testing.T) {
	token := testenv.SoftHSM(t)
	token.Module = wrapshim.New(t, token.Module, onlyKWP)
	d := trustedOn(t, token)
	ekt := newAES(t, d)
	blob := encryptsAndDecrypts(t, d, ekt)
	moved, err := d.Rewrap(t.Context(), ekt, 3)
	if err != nil {
		t.Fatal(err)
	}
	opens(t, d, moved, blob)
	if k, err := moved.parse(); err != nil || k.generation != 3 || k.mechanism != ckmAESKeyWrapKWP {
		t.Errorf("%+v, %v", k, err)
	}
}

// TestNoWrapMechanism: a device without RFC 5649 makes no domain, and doctor
// says what is missing.
func TestNoWrapMechanism(t *testing.T) {
	for name, device := range map[string]wrapshim.Device{
		"none":               {},
		"PAD is another":     {KW: pkcs11.CKM_AES_KEY_WRAP, Padded: pkcs11.CKM_AES_KEY_WRAP_PAD},
		"KWP number pads":    {KW: pkcs11.CKM_AES_KEY_WRAP, Padded: ckmAESKeyWrapKWP, Secretive: true},
		"unknown to anybody": {KW: pkcs11.CKM_VENDOR_DEFINED | 0x77, KWP: pkcs11.CKM_VENDOR_DEFINED | 0x78},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := renumbered(t, device)
			r, err := Examine(t.Context(), cfg, nil)
			if err != nil || r.Usable() || !slices.ContainsFunc(r.Findings, func(f Finding) bool {
				return f.Severity == SeverityError && strings.Contains(f.Text, "choose another device")
			}) {
				t.Errorf("doctor says %+v, %v", r.Findings, err)
			}
			for _, w := range r.Wraps {
				if slices.Contains(w.Chosen, classGeneric.String()) || w.Works && w.Form != formKW.String() {
					t.Errorf("it is said to work: %+v", w)
				}
			}
			err = openToken(t, cfg).CreateDomain(t.Context(), testDomain)
			if !errors.Is(err, errNoWrap) || !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "choose another device") {
				t.Errorf("a domain is made: %v", err)
			}
		})
	}
}

// TestExamineWraps: doctor says what is chosen for what.
func TestExamineWraps(t *testing.T) {
	r, err := Examine(t.Context(), renumbered(t, padding), nil)
	if err != nil || !r.Usable() {
		t.Fatalf("%v, %+v", err, r.Findings)
	}
	want := []WrapCheck{
		{Mechanism: "CKM_AES_KEY_WRAP", Form: "RFC 3394", Works: true, Chosen: []string{"aes"}},
		{Mechanism: "CKM_AES_KEY_WRAP_PAD", Form: "RFC 5649"},
		{Mechanism: "CKM_AES_KEY_WRAP_KWP", Form: "RFC 5649", Works: true, Chosen: []string{"generic", "private"}},
	}
	if len(r.Wraps) != len(want) {
		t.Fatalf("%+v", r.Wraps)
	}
	for i, w := range want {
		got := r.Wraps[i]
		if got.Mechanism != w.Mechanism || got.Form != w.Form || got.Works != w.Works || !slices.Equal(got.Chosen, w.Chosen) || (got.Detail == "") != w.Works {
			t.Errorf("%+v, want %+v", got, w)
		}
	}
}

// TestForeignMechanisms: an EKT opens by its own mechanism or by one that does
// the same, and by no other.
func TestForeignMechanisms(t *testing.T) {
	d := newDomain(t, nil)
	aes := newAES(t, d)
	secret, err := d.ImportSecret(t.Context(), []byte("a secret that is just long enough"))
	if err != nil {
		t.Fatal(err)
	}
	as := func(ekt EKT, mechanism uint) EKT {
		other := bytes.Clone(ekt)
		binary.BigEndian.PutUint32(other[6:], uint32(mechanism))
		return other
	}
	use := map[keyClass]func(EKT) error{
		classAES:     func(e EKT) error { _, _, err := d.Encrypt(t.Context(), e, nil, []byte("x")); return err },
		classGeneric: func(e EKT) error { _, err := d.HMAC(t.Context(), e, []byte("x")); return err },
	}
	for _, test := range []struct {
		ekt       EKT
		mechanism uint
		opens     bool
	}{
		{aes, ckmLunaKW, true}, {aes, ckmCloudHSMNoPad, true},
		{aes, pkcs11.CKM_AES_KEY_WRAP_PAD, false}, {aes, ckmAESKeyWrapKWP, false}, {aes, 0, false}, {aes, pkcs11.CKM_AES_CBC_PAD, false},
		{secret, ckmAESKeyWrapKWP, true}, {secret, ckmLunaKWP, true},
		{secret, pkcs11.CKM_AES_KEY_WRAP, false}, {secret, ckmLunaKW, false}, {secret, pkcs11.CKM_VENDOR_DEFINED | 0x210A, false},
	} {
		err := use[test.ekt.class()](as(test.ekt, test.mechanism))
		if test.opens && err != nil || !test.opens && !errors.Is(err, ErrInvalidEKT) {
			t.Errorf("%s EKT of 0x%X: %v", test.ekt.class(), test.mechanism, err)
		}
	}
}

// TestMixedMembers: members that have other numbers for the same, and members
// one of which makes what the other can open, open each other's keys.
func TestMixedMembers(t *testing.T) {
	for name, test := range map[string]struct {
		maker, other *wrapshim.Device
		want         [2]uint // mechanisms of AES keys that each makes
	}{
		"SoftHSM and Luna":     {nil, &likeLuna, [2]uint{pkcs11.CKM_AES_KEY_WRAP, ckmLunaKW}},
		"KWP only and SoftHSM": {&onlyKWP, nil, [2]uint{ckmAESKeyWrapKWP, pkcs11.CKM_AES_KEY_WRAP_PAD}},
	} {
		t.Run(name, func(t *testing.T) {
			var configs []Config
			for _, device := range []*wrapshim.Device{test.maker, test.other} {
				cfg := testConfig(t)
				if device != nil {
					cfg.Module = wrapshim.New(t, cfg.Module, *device)
				}
				configs = append(configs, cfg)
			}
			members := newMembersOn(t, configs...)
			made := enrolled(t, members...)
			for i, m := range members {
				if err := m.SetProofs(t.Context(), Proofs{2: made.Proof}); err != nil {
					t.Fatal(err)
				}
				if err := m.SetActive(t.Context(), 2); err != nil {
					t.Fatalf("member %d: %v", i, err)
				}
			}
			for i, m := range members {
				ekt := newAES(t, m)
				if k, err := ekt.parse(); err != nil || k.mechanism != test.want[i] {
					t.Errorf("member %d wraps by 0x%X, want 0x%X", i, k.mechanism, test.want[i])
				}
				opens(t, members[1-i], ekt, encryptsAndDecrypts(t, m, ekt))
				pair, err := m.Generate(t.Context(), "ECC_NIST_P256", UseSign)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := members[1-i].Sign(t.Context(), pair.EKT, "ECDSA_SHA_256", make([]byte, 32)); err != nil {
					t.Errorf("key pair of member %d: %v", i, err)
				}
			}
		})
	}
}

// TestMemberWithoutTheForm: a token that could not open what the others make
// is not enrolled, and not opened if somebody enrols it all the same.
func TestMemberWithoutTheForm(t *testing.T) {
	plain, other := testConfig(t), testConfig(t)
	other.Module = wrapshim.New(t, other.Module, onlyKWP)
	members := newMembersOn(t, plain, other)
	made, err := members[0].MakeShared(t.Context(), 2, enrolmentKeys(t, members...))
	if err != nil {
		t.Fatal(err)
	}
	lacking := members[1]
	if err := lacking.TakeShared(t.Context(), 2, made.Parcels[1]); !errors.Is(err, errNoWrap) || !strings.Contains(err.Error(), "RFC 3394") {
		t.Fatalf("taking what it cannot open: %v", err)
	}
	var text parcelText
	if err := json.Unmarshal(made.Parcels[1], &text); err != nil {
		t.Fatal(err)
	}
	text[formsRole] = wrapWays{classAES: {ckmAESKeyWrapKWP}, classGeneric: {ckmAESKeyWrapKWP}, classPrivate: {ckmAESKeyWrapKWP}}.pack()
	forged, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := lacking.TakeShared(t.Context(), 2, forged); err != nil {
		t.Fatal(err)
	}
	if err := lacking.SetProofs(t.Context(), Proofs{2: made.Proof}); err != nil {
		t.Fatal(err)
	}
	if err := lacking.SetActive(t.Context(), 2); !errors.Is(err, ErrNoGeneration) || !strings.Contains(err.Error(), "RFC 3394") {
		t.Errorf("serving what it cannot open: %v", err)
	}
	text[formsRole][classAES.String()] = []byte{0, 0, 0, 1}
	if forged, err = json.Marshal(text); err != nil {
		t.Fatal(err)
	}
	if err := lacking.DestroyGeneration(t.Context(), 2, false); err != nil {
		t.Fatal(err)
	}
	if err := lacking.TakeShared(t.Context(), 2, forged); !errors.Is(err, ErrArgument) {
		t.Errorf("a parcel that names no mechanism: %v", err)
	}
}
