package hsm

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"
)

// onKeeper gives a test what a PIN holder has: a logged-in session.
func onKeeper(t *testing.T, d *Member, f func(s *session, keys *domainKeys) error) {
	t.Helper()
	if err := d.onKeeper(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, what string, err error, codes ...uint) {
	t.Helper()
	code, _ := codeOf(err)
	for _, c := range codes {
		if code == c {
			return
		}
	}
	t.Errorf("%s: %v, want a refusal", what, err)
}

func TestUseCopyStaysInside(t *testing.T) {
	d := newDomain(t, nil)
	aes := newAES(t, d)
	secret, err := d.ImportSecret(t.Context(), []byte("AWS4 and forty characters of an access key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, ekt := range []EKT{aes, secret} {
		h, err := d.cache.acquire(t.Context(), ekt)
		if err != nil {
			t.Fatal(err)
		}
		defer h.release()
		onKeeper(t, d, func(s *session, keys *domainKeys) error {
			p11, name := s.t.module.p11, ekt.class().String()
			_, err := s.attribute(h.object, pkcs11.CKA_VALUE)
			wantCode(t, name+": reading the value", err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
			for c, wrapper := range keys.wrap {
				_, err = s.wrap(keys.way(c), wrapper, h.object)
				wantCode(t, name+": wrapping", err, pkcs11.CKR_KEY_UNEXTRACTABLE)
			}
			for _, kind := range []uint{pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_WRAP, pkcs11.CKA_DERIVE, pkcs11.CKA_TOKEN, pkcs11.CKA_MODIFIABLE} {
				changed := []*pkcs11.Attribute{attr(kind, true)}
				wantCode(t, name+": changing", p11.SetAttributeValue(s.handle, h.object, changed),
					ckrActionProhibited, pkcs11.CKR_ATTRIBUTE_READ_ONLY)
				_, err = p11.CopyObject(s.handle, h.object, changed)
				wantCode(t, name+": copying", err, ckrActionProhibited, pkcs11.CKR_ATTRIBUTE_READ_ONLY)
			}
			_, err = p11.CopyObject(s.handle, h.object, []*pkcs11.Attribute{attr(pkcs11.CKA_SENSITIVE, false)})
			wantCode(t, name+": copying readable", err, ckrActionProhibited, pkcs11.CKR_ATTRIBUTE_READ_ONLY)
			return nil
		})
	}
}

func TestUnwrapTemplateIsEnforced(t *testing.T) {
	d := newDomain(t, nil)
	ekt := newAES(t, d)
	k, err := ekt.parse()
	if err != nil {
		t.Fatal(err)
	}
	aes := useTemplate(pkcs11.CKK_AES, pkcs11.CKA_ENCRYPT)
	generic := altered(aes, attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET))
	templates := map[string][]*pkcs11.Attribute{
		"readable":             altered(aes, attr(pkcs11.CKA_SENSITIVE, false)),
		"extractable":          altered(aes, attr(pkcs11.CKA_EXTRACTABLE, true)),
		"on the token":         altered(aes, attr(pkcs11.CKA_TOKEN, true)),
		"wrapping":             altered(aes, attr(pkcs11.CKA_WRAP, true)),
		"deriving":             altered(aes, attr(pkcs11.CKA_DERIVE, true)),
		"modifiable":           altered(aes, attr(pkcs11.CKA_MODIFIABLE, true)),
		"a generic secret":     generic,
		"a deriving secret":    altered(generic, attr(pkcs11.CKA_DERIVE, true)),
		"without restrictions": {attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES)},
	}
	onKeeper(t, d, func(s *session, keys *domainKeys) error {
		for name, template := range templates {
			if object, err := s.unwrap(keys.way(classAES), keys.wrap[classAES], k.wrapped, template); err == nil {
				t.Errorf("the AES domain key unwrapped %s key %d", name, object)
			}
		}
		for _, c := range []keyClass{classGeneric, classPrivate} { // another class's domain key
			if _, err := s.unwrap(keys.way(classAES), keys.wrap[c], k.wrapped, aes); err == nil {
				t.Errorf("the %s domain key unwrapped an AES key", c)
			}
		}
		for c, key := range keys.wrap {
			_, err := s.attribute(key, pkcs11.CKA_VALUE)
			wantCode(t, c.String()+" domain key: reading", err, pkcs11.CKR_ATTRIBUTE_SENSITIVE)
		}
		return nil
	})
}

// A domain key that someone planted under our label is found out.
func TestPlantedDomainKeyIsRefused(t *testing.T) {
	d := newDomain(t, nil)
	label := testDomain.label(domainKeyRole(classAES), 1)
	onKeeper(t, d, func(s *session, keys *domainKeys) error {
		s.destroy(keys.wrap[classAES])
		planted := tokenKeyTemplate(label, testDomain.object(1, 1), pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP)
		planted = append(planted, attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
			attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_VALUE_LEN, aesKeySize))
		_, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), planted)
		return deviceError("planting", err)
	})
	if _, err := d.t.OpenDomain(t.Context(), testDomain); !errors.Is(err, ErrDomainConflict) {
		t.Errorf("a domain key without unwrap template: %v", err)
	}
	if err := d.t.CreateDomain(t.Context(), testDomain); !errors.Is(err, ErrDomainConflict) {
		t.Errorf("initialising over it: %v", err)
	}
}

func TestDoubleDomainKeyIsRefused(t *testing.T) {
	d := newDomain(t, nil)
	if err := d.t.makeMACKey(testDomain, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := d.t.OpenDomain(t.Context(), testDomain); !errors.Is(err, ErrDomainConflict) {
		t.Errorf("two MAC keys: %v", err)
	}
}

func TestCreateDomainResumes(t *testing.T) {
	d := newDomain(t, nil)
	ekt := newAES(t, d)
	onKeeper(t, d, func(s *session, keys *domainKeys) error {
		s.destroy(keys.wrap[classPrivate])
		s.destroy(keys.mac)
		return nil
	})
	if _, err := d.t.OpenDomain(t.Context(), testDomain); !errors.Is(err, ErrNoDomain) {
		t.Errorf("opening half a domain: %v", err)
	}
	ids, err := d.t.Domains(t.Context())
	if err != nil || !cmp.Equal(ids, []DomainID{testDomain}) {
		t.Errorf("domains %v, %v", ids, err)
	}
	for range 2 {
		if err := d.t.CreateDomain(t.Context(), testDomain); err != nil {
			t.Fatal(err)
		}
	}
	again, err := d.t.OpenDomain(t.Context(), testDomain)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := again.Encrypt(t.Context(), ekt, nil, []byte("x")); err != nil {
		t.Errorf("a key of before: %v", err)
	}
}

func TestHMAC(t *testing.T) {
	d := newDomain(t, nil)
	for _, size := range []int{minSecret, 33, 44, 56, 63, maxSecret} {
		secret := bytes.Repeat([]byte{0xA5}, size)
		ekt, err := d.ImportSecret(t.Context(), secret)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		message := []byte("20261122")
		got, err := d.HMAC(t.Context(), ekt, message)
		want := hmac.New(sha256.New, secret)
		want.Write(message)
		if err != nil || !bytes.Equal(got, want.Sum(nil)) {
			t.Errorf("%d bytes: %x, %v", size, got, err)
		}
	}
	for _, size := range []int{0, minSecret - 1, maxSecret + 1} {
		if _, err := d.ImportSecret(t.Context(), make([]byte, size)); !errors.Is(err, ErrArgument) {
			t.Errorf("importing %d bytes: %v", size, err)
		}
	}
}

func TestCheckValue(t *testing.T) {
	d := newDomain(t, nil)
	one, two := newAES(t, d), newAES(t, d)
	secret, err := d.ImportSecret(t.Context(), []byte("a secret that is just long enough"))
	if err != nil {
		t.Fatal(err)
	}
	same, err := d.ImportSecret(t.Context(), []byte("a secret that is just long enough"))
	if err != nil {
		t.Fatal(err)
	}
	value := func(ekt EKT) string {
		v, err := d.CheckValue(t.Context(), ekt)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", v)
	}
	first := value(one)
	if value(one) != first || value(one) == value(two) || value(secret) != value(same) {
		t.Error("check values do not identify keys")
	}
}

func TestSumVerify(t *testing.T) {
	d := newDomain(t, nil)
	message := []byte("a row")
	generation, mac, err := d.Sum(t.Context(), message)
	if err != nil || generation != 1 || len(mac) != 32 {
		t.Fatal(generation, mac, err)
	}
	bad := bytes.Clone(mac)
	bad[31] ^= 1
	for _, c := range []struct {
		what         string
		generation   uint32
		message, mac string
		want         bool
	}{
		{"nothing", generation, "a row", string(mac), true},
		{"message", generation, "a roe", string(mac), false},
		{"MAC", generation, "a row", string(bad), false},
		{"MAC's length", generation, "a row", string(mac[:16]), false},
		{"MAC's presence", generation, "a row", "", false},
		{"generation", 2, "a row", string(mac), false},
	} {
		if ok, err := d.Verify(t.Context(), c.generation, []byte(c.message), []byte(c.mac)); ok != c.want || err != nil {
			t.Errorf("altered %s: %v, %v", c.what, ok, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if ok, err := d.Verify(gone, generation, message, bad); ok || !errors.Is(err, context.Canceled) {
		t.Errorf("not asked: %v, %v", ok, err)
	}
	random := make([]byte, 10_000)
	if err := d.Random(t.Context(), random); err != nil || bytes.Count(random, []byte{0}) > 200 {
		t.Error("random bytes", err)
	}
}
