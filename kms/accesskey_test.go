package kms

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// officer gives orders for the fleet's only member. Each order is committed when
// meet returns.
func (f *fleet) officer(t *testing.T, name string, meet func()) *DomainMembers {
	t.Helper()
	db := f.open(t)
	db.SetSealer(f.id, f.domain)
	m := &DomainMembers{Members: []MemberAtHand{{Name: "first", Info: f.token.Info(), Domain: f.domain}}}
	m.DB, m.Operator, m.Progress = db, name, func(string) {}
	m.Commit = func(ctx context.Context, r *audit.Record, c *store.Change) error {
		meet()
		writer, err := audit.Open(ctx, audit.Config{DB: db, Host: name})
		if err != nil {
			return err
		}
		_, err = writer.Commit(ctx, r, c)
		return errors.Join(err, writer.Close(ctx))
	}
	return m
}

// domainAdmin is what m does on the fleet's token.
func (f *fleet) domainAdmin(t *testing.T, m *DomainMembers) DomainAdmin {
	t.Helper()
	member, err := f.token.OpenDomain(t.Context(), f.id)
	if err != nil {
		t.Fatal(err)
	}
	a := m.DomainAdmin
	a.Member, a.Serial = member, f.token.Info().Serial
	return a
}

// atOnce has two officers each decide on what there is before either writes, and
// wants one to be refused.
func atOnce(t *testing.T, f *fleet, first, second func(*DomainMembers) error) {
	t.Helper()
	var decided sync.WaitGroup
	decided.Add(2)
	meet := func() { decided.Done(); decided.Wait() }
	errs := make(chan error, 2)
	for name, order := range map[string]func(*DomainMembers) error{"a": first, "b": second} {
		m := f.officer(t, name, meet)
		go func() { errs <- order(m) }()
	}
	var refused []error
	for range 2 {
		if err := <-errs; err != nil {
			refused = append(refused, err)
		}
	}
	if len(refused) != 1 || !strings.Contains(refused[0].Error(), "at the same time: run this again") {
		t.Errorf("of two at once these were refused: %v", refused)
	}
}

// TestAccessKeysAtOnce: two that are deleted at once do not each count on the
// other, nor are three made.
func TestAccessKeysAtOnce(t *testing.T) {
	f := newFleet(t)
	shown := func(string, []byte) error { return nil }
	renew := func(m *DomainMembers) error { return m.RenewAccessKey(t.Context(), m.Members[0], f.admin, shown) }
	atOnce(t, f, renew, renew)
	m := f.officer(t, "c", func() {})
	_, _, all, err := m.accessKey(t.Context(), f.admin)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d access keys, want 2: %v", len(all), err)
	}
	remove := func(id string) func(*DomainMembers) error {
		return func(m *DomainMembers) error { return m.DeleteAccessKey(t.Context(), id) }
	}
	atOnce(t, f, remove(all[0].ID), remove(all[1].ID))
	if all, err = m.DB.AccessKeys(t.Context(), all[0].Account, all[0].PrincipalID); err != nil || len(all) != 1 {
		t.Errorf("%d access keys are left, want 1: %v", len(all), err)
	}
}

// TestLastUsefulAccessKey: one that no member can use does not count.
func TestLastUsefulAccessKey(t *testing.T) {
	f := newFleet(t)
	m := f.officer(t, "a", func() {})
	lost, _, _, err := m.accessKey(t.Context(), f.admin)
	if err != nil {
		t.Fatal(err)
	}
	lost.ID, lost.Version, lost.Secret = "AKIALOST", 0, append(hsm.EKT{}, lost.Secret...)
	lost.Secret[4] = 7 // the generation
	c := m.DB.NewChange()
	if err := c.InsertAccessKey(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	if _, err := m.DB.Commit(t.Context(), c, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.DeleteAccessKey(t.Context(), f.admin); !errors.Is(err, ErrNotYet) || !strings.Contains(err.Error(), "no member at hand can use") {
		t.Errorf("the last one of use was deleted: %v", err)
	}
	if err := m.DeleteAccessKey(t.Context(), lost.ID); err != nil {
		t.Error(err)
	}
}

// TestAccessKeysOfNoUse: of a user's two access keys that were lost with their
// member one can be deleted, to make room for a new one, but not both.
func TestAccessKeysOfNoUse(t *testing.T) {
	f := newFleet(t)
	m := f.officer(t, "a", func() {})
	first, _, _, err := m.accessKey(t.Context(), f.admin)
	if err != nil {
		t.Fatal(err)
	}
	first.Secret[4] = 7 // the generation
	second := first
	second.ID, second.Version = "AKIALOST", 0
	c := m.DB.NewChange()
	if err := errors.Join(c.UpdateAccessKey(t.Context(), first), c.InsertAccessKey(t.Context(), second)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.DB.Commit(t.Context(), c, nil); err != nil {
		t.Fatal(err)
	}
	shown := func(string, []byte) error { return nil }
	if err := m.RenewAccessKey(t.Context(), m.Members[0], first.ID, shown); err == nil {
		t.Fatal("a third access key was made")
	}
	if err := m.DeleteAccessKey(t.Context(), second.ID); err != nil {
		t.Fatalf("there is no way back for this user: %v", err)
	}
	if err := m.DeleteAccessKey(t.Context(), first.ID); !errors.Is(err, ErrNotYet) {
		t.Errorf("the last one was deleted: %v", err)
	}
	if err := m.RenewAccessKey(t.Context(), m.Members[0], first.ID, shown); err != nil {
		t.Error(err)
	}
}

// TestAdministratorsNewAccessKey: a host that serves shows that one was made,
// whoever made it.
func TestAdministratorsNewAccessKey(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { s.cache.follow(ctx, 10*time.Millisecond, func(err error) { t.Error(err) }) })
	defer following.Wait()
	defer stop()
	newest := func() float64 {
		var m dto.Metric
		if err := s.administrators.newest.WithLabelValues().Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetGauge().GetValue()
	}
	shows := func(since float64) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); newest() <= since; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the newest access key of an administrator is still of %f", since)
			}
		}
	}
	shows(0)
	first := newest()
	m := f.officer(t, "b", func() {})
	made := ""
	show := func(id string, _ []byte) error { made = id; return nil }
	if err := m.RenewAccessKey(t.Context(), m.Members[0], f.admin, show); err != nil {
		t.Fatal(err)
	}
	shows(first)
	if err := m.DeleteAccessKey(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if newest() <= first {
		t.Error("one that was made and deleted is forgotten")
	}
}

// TestAdministratorsBesideForgedRows: a row of one administrator's that is not
// as Trent wrote it hides no other's new access key.
func TestAdministratorsBesideForgedRows(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	registry := prometheus.NewRegistry()
	registry.MustRegister(s.administrators.newest)
	newest := func() float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		if len(families) == 0 {
			return 0
		}
		return families[0].GetMetric()[0].GetGauge().GetValue()
	}
	notice := func() {
		t.Helper()
		if err := s.noticeAdministrators(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	notice()
	first := newest()
	m := f.officer(t, "b", func() {})
	k, user, _, err := m.accessKey(t.Context(), f.admin)
	if err != nil {
		t.Fatal(err)
	}
	user.ID, user.Name, user.ARN, user.Version = "AIDAZOE", "zoe", user.ARN+"-zoe", 0
	k.ID, k.PrincipalID, k.Version, k.Created = "AKIAZOE", user.ID, 0, k.Created.Add(time.Hour)
	c := m.DB.NewChange()
	if err := errors.Join(c.InsertPrincipal(t.Context(), user), c.InsertAccessKey(t.Context(), k)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.DB.Commit(t.Context(), c, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := m.DB.Pool().Exec(t.Context(), "UPDATE access_keys SET status = 'Inactive' WHERE id = $1", f.admin); err != nil {
		t.Fatal(err)
	}
	if notice(); newest() <= first {
		t.Errorf("the newest access key of an administrator is still of %f", first)
	}
}
