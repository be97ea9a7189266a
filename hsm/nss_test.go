package hsm

import (
	"errors"
	"slices"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/nss"
)

// TestNSS examines an implementation that shares no code with SoftHSM. It
// computes all that Trent asks for, its CKM_AES_KEY_WRAP_PAD is not RFC 5649,
// and its attributes protect nothing: doctor says so, and no domain is opened
// on it.
func TestNSS(t *testing.T) {
	token := nss.New(t)
	cfg := Config{Module: token.Module, TokenLabel: token.Label, PIN: NewPIN([]byte(token.PIN))}
	r, err := Examine(t.Context(), cfg, nil)
	if err != nil || !r.LoggedIn || r.RecoveredIn == "" {
		t.Fatalf("got %v, %+v", err, r)
	}
	if r.Usable() {
		t.Error("it will do")
	}
	for _, a := range r.Answers {
		if a.Result != AnswerRight {
			t.Errorf("%s: %s, %s", a.Name, a.Result, a.Detail)
		}
	}
	for name, want := range map[string][]string{
		"CKM_AES_KEY_WRAP": {"aes"}, "CKM_AES_KEY_WRAP_PAD": nil, "CKM_AES_KEY_WRAP_KWP": {"generic", "private"},
	} {
		if i := slices.IndexFunc(r.Wraps, func(w WrapCheck) bool { return w.Mechanism == name }); i < 0 ||
			!slices.Equal(r.Wraps[i].Chosen, want) || r.Wraps[i].Works != (want != nil) {
			t.Errorf("%s: %+v, want it chosen for %v", name, r.Wraps, want)
		}
	}
	broken := map[string]bool{}
	for _, rule := range r.Rules {
		broken[rule.Name] = rule.Result == RuleBroken
	}
	for _, name := range []string{"keys that are not EXTRACTABLE cannot be wrapped", "EXTRACTABLE cannot be turned on again", "unwrap templates bind whoever unwraps"} {
		if !broken[name] {
			t.Errorf("%q holds now: this page of docs/hsm-vendors.md is out of date", name)
		}
	}
	opened := openToken(t, cfg)
	if err := opened.CreateDomain(t.Context(), testDomain); err == nil {
		t.Error("a domain is made")
	}
	plantDomain(t, opened)
	if _, err := opened.OpenDomain(t.Context(), testDomain); !errors.Is(err, ErrDomainConflict) {
		t.Errorf("a domain is opened where unwrap templates bind nobody: %v", err)
	}
}

// plantDomain makes the keys of a domain without CKA_ALLOWED_MECHANISMS, with
// which NSS keeps no key.
func plantDomain(t *testing.T, token *Token) {
	t.Helper()
	err := token.onKeeper(t.Context(), func(s *session) error {
		for _, c := range keyClasses {
			nested, free := nestedTemplate(unwrapTemplate(c, Locked))
			defer free()
			template := append(without(domainKeyTemplate(testDomain, 1, c, nil), pkcs11.CKA_ALLOWED_MECHANISMS),
				attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
				attr(pkcs11.CKA_VALUE_LEN, aesKeySize), attr(pkcs11.CKA_UNWRAP_TEMPLATE, nested))
			if _, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_AES_KEY_GEN), template); err != nil {
				return deviceError("planting", err)
			}
		}
		template := append(without(macKeyTemplate(testDomain, 1), pkcs11.CKA_ALLOWED_MECHANISMS),
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attr(pkcs11.CKA_VALUE_LEN, aesKeySize))
		_, err := s.t.module.p11.GenerateKey(s.handle, mechanism(pkcs11.CKM_GENERIC_SECRET_KEY_GEN), template)
		return deviceError("planting", err)
	})
	if err != nil {
		t.Fatal(err)
	}
}
