package kms

import (
	"testing"
	"time"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/hsm"
)

// TestForgetsCopies: a host has the unwrapped copy of a key destroyed that
// somebody has scheduled for deletion, also when it has not used the key for
// long, has used many others since, or has missed more changes than it reads.
func TestForgetsCopies(t *testing.T) {
	f := newFleet(t)
	if err := f.token.Close(); err != nil {
		t.Fatal(err)
	}
	cfg, registry := f.config(), prometheus.NewRegistry()
	cfg.Metrics = registry
	var err error
	if f.token, err = hsm.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	member, err := f.token.OpenDomain(t.Context(), f.id)
	if err != nil {
		t.Fatal(err)
	}
	f.domain = hsm.DomainOf(member)
	copies := func() (n float64) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "trent_hsm_handle_cache_size" {
				n += family.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return n
	}
	user, other := f.host(t, "user"), f.host(t, "other")
	for name, meanwhile := range map[string]func(ref keyRef){
		"a minute passes": func(ref keyRef) {
			user.cache.keys.SetExpiresAfter(ref, time.Nanosecond)
			user.cache.keys.CleanUp()
		},
		"there are other keys": func(keyRef) {
			user.cache.keys.SetMaximum(0)
			user.cache.keys.CleanUp()
			user.cache.keys.SetMaximum(cacheEntries)
		},
		"there are too many changes": func(keyRef) {
			if _, err := user.db.Pool().Exec(t.Context(), "UPDATE change_sequence SET seq = seq + 20000"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		id := createKey(t, f, user)
		if _, err := do(f, user, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		if n := copies(); n != 1 {
			t.Fatalf("%v copies of the key that was used", n)
		}
		meanwhile(keyRef{account: testAccount, region: testRegion, id: id})
		// As another host does, whose HSM is not this one's.
		k, err := other.db.Key(t.Context(), testAccount, testRegion, id)
		if err != nil {
			t.Fatal(err)
		}
		other.awaitDeletion(&k, minPendingWindow)
		change := other.db.NewChange()
		if err := change.UpdateKey(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		event := other.serviceEvent("ScheduleKeyDeletion", k.Account, k.Region, "", nil, f.now())
		if _, err := other.audit.Commit(t.Context(), event, change); err != nil {
			t.Fatal(err)
		}
		if err := user.cache.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); copies() > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: its unwrapped copy is still there", name)
			}
		}
	}
}

// TestBackingKeyOfALostTime: after a failover that lost a change of a backing key,
// a host that had read that change serves the key again once it reads its row,
// also if so much was committed since that the sequence does not show the loss.
func TestBackingKeyOfALostTime(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	encrypts := func() error {
		_, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		return err
	}
	if err := encrypts(); err != nil {
		t.Fatal(err)
	}
	ref := keyRef{account: testAccount, region: testRegion, id: id}
	k, held := s.cache.keys.GetIfPresent(ref)
	if !held {
		t.Fatal("a key that was used is not in the cache")
	}
	lost := k.backing
	lost.Version++
	s.cache.backing.Set(backingRef{testAccount, testRegion, lost.ID}, lost)
	s.cache.outdate(ref) // as a minute does
	if err := encrypts(); err != nil {
		t.Error(err)
	}
}
