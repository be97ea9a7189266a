package kms

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// trusted makes the next generation the active one, of the trusted profile. The
// security officer makes its keys while nobody is logged in: hosts are anew.
func (f *fleet) trusted(t *testing.T, number int64) {
	t.Helper()
	if err := f.token.Close(); err != nil {
		t.Fatal(err)
	}
	if err := hsm.MakeTrustedKeys(t.Context(), f.config(), hsm.NewPIN([]byte(f.device.SOPIN)), f.id, uint32(number)); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.token, err = hsm.Open(t.Context(), f.config()); err != nil {
		t.Fatal(err)
	}
	member, err := f.token.OpenDomain(t.Context(), f.id)
	if err != nil {
		t.Fatal(err)
	}
	f.domain = hsm.DomainOf(member)
	a := f.officer(t, "officer", func() {}).DomainAdmin
	a.Member, a.Serial = member, f.token.Info().Serial
	_, err = a.Create(t.Context(), hsm.Trusted)
	for _, order := range []func(context.Context, int64) error{a.ConfirmBackup, a.Activate} {
		if err == nil {
			err = order(t.Context(), number)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestMoveWhatOpens: material that no member can open is told, and keeps no
// other of its key from being moved.
func TestMoveWhatOpens(t *testing.T) {
	f := newFleet(t)
	f.trusted(t, 2)
	s := f.host(t, "before")
	id := createKey(t, f, s)
	if _, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	k, set, all := materialRows(t, s, id)
	lost := all[0]
	lost.EKT = bytes.Clone(lost.EKT)
	lost.EKT[len(lost.EKT)-1] ^= 1
	change := s.db.NewChange()
	if err := change.ChangeMaterial(t.Context(), k, set, lost); err != nil {
		t.Fatal(err)
	}
	event := s.serviceEvent("RewrapKeyMaterial", k.Account, k.Region, "", nil, s.now())
	if _, err := s.audit.Commit(t.Context(), event, change); err != nil {
		t.Fatal(err)
	}

	f.trusted(t, 3)
	s = f.host(t, "after")
	if err := s.succeed(t.Context()); !errors.Is(err, hsm.ErrInvalidEKT) {
		t.Errorf("moved what does not open: %v", err)
	}
	_, _, all = materialRows(t, s, id)
	if got := hsm.EKT(all[1].EKT).Generation(); len(all) != 2 || got != 3 || !bytes.Equal(all[0].EKT, lost.EKT) {
		t.Errorf("of %d materials the one that opens is under generation %d", len(all), got)
	}
}

// TestSuccessionRests: when all is under the active generation, the host does not
// read every row again and again to see it, until another is active.
func TestSuccessionRests(t *testing.T) {
	f := newFleet(t)
	f.trusted(t, 2)
	s := f.host(t, "a")
	for range 2 { // does it, and finds nothing left
		if err := s.succeed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s.succession.idle != 2 || s.succession.wakeAt.IsZero() {
		t.Fatal("it does not rest")
	}
	s.succession.wakeAt = time.Now().Add(time.Hour)
	if _, err := s.db.Pool().Exec(t.Context(), "UPDATE principals SET mac_generation = 1"); err != nil {
		t.Fatal(err)
	}
	if err := s.succeed(t.Context()); err != nil {
		t.Errorf("it reads rows: %v", err)
	}
	s.succession.idle = 1 // as when generation 2 has just become the active one
	if err := s.succeed(t.Context()); err == nil {
		t.Error("it reads no rows of earlier generations")
	}
	if s.succession.idle == 2 {
		t.Error("it rests although a row was refused")
	}
}

// materialRows are the rows of a key, verified.
func materialRows(t *testing.T, s *Service, id string) (store.Key, store.BackingKeySet, []store.BackingKey) {
	t.Helper()
	k, set, err := s.db.KeyWithSet(t.Context(), testAccount, testRegion, id)
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.db.BackingKeys(t.Context(), k, set)
	if err != nil {
		t.Fatal(err)
	}
	return k, set, all
}
