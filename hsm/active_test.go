package hsm

import (
	"testing"

	"github.com/miekg/pkcs11"
)

func TestMarkActive(t *testing.T) {
	cfg := testConfig(t)
	token := openToken(t, cfg)
	want := func(token *Token, id DomainID, want bool) {
		t.Helper()
		if active, err := token.Active(t.Context(), id); err != nil || active != want {
			t.Errorf("%s is active: %t, %v", id, active, err)
		}
	}
	want(token, testDomain, false)
	for range 2 {
		if err := token.MarkActive(t.Context(), testDomain); err != nil {
			t.Fatal(err)
		}
		want(token, testDomain, true)
	}
	want(token, DomainID{9}, false)
	want(openToken(t, cfg), testDomain, true)
	if ids, err := token.Domains(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("a mark without keys is no domain: %v, %v", ids, err)
	}
	if err := token.onKeeper(t.Context(), func(s *session) error {
		objects, err := s.find(activeMark(testDomain))
		if err != nil || len(objects) != 1 {
			t.Errorf("%d marks, %v", len(objects), err)
		}
		err = s.t.module.p11.SetAttributeValue(s.handle, objects[0], []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "another")})
		wantCode(t, "renaming the mark", err, ckrActionProhibited, pkcs11.CKR_ATTRIBUTE_READ_ONLY)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A mark that took no PIN to make counts for nothing.
func TestPublicMarkIsNoMark(t *testing.T) {
	token := openToken(t, testConfig(t))
	if err := token.onKeeper(t.Context(), func(s *session) error {
		_, err := s.t.module.p11.CreateObject(s.handle, altered(activeMark(testDomain), attr(pkcs11.CKA_PRIVATE, false)))
		return deviceError("planting", err)
	}); err != nil {
		t.Fatal(err)
	}
	if active, err := token.Active(t.Context(), testDomain); err != nil || active {
		t.Errorf("active: %t, %v", active, err)
	}
}
