package hsm

import (
	"os"
	"path/filepath"
	"strings"
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

// TestMarkOfLateMember: a member that was away while the others were marked gets
// its mark when it comes.
func TestMarkOfLateMember(t *testing.T) {
	cfg, _ := newDomainConfig(t, 2)
	folder := filepath.Dir(strings.TrimPrefix(cfg.Members[1].Environment[0], "SOFTHSM2_CONF="))
	objects := func() int {
		files, err := filepath.Glob(filepath.Join(folder, "tokens", "*", "*.object"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	before := objects()
	move := func(from, to string) {
		if err := os.Rename(filepath.Join(folder, from), filepath.Join(folder, to)); err != nil {
			t.Fatal(err)
		}
	}
	move("tokens", "away")
	d := openDomain(t, cfg)
	if err := d.MarkActive(t.Context()); err != nil {
		t.Fatal(err)
	}
	move("away", "tokens")
	eventually(t, "the late member", func() bool { return workerOf(d, 1) != 0 })
	eventually(t, "its mark", func() bool { return objects() == before+1 })
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
