package hsm

import (
	"errors"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// TestUnusableIsDoubted: a generation that was not whole when it was looked at
// serves, and alarms no more, once another host has finished it: without a
// recovery, and without being made the active one.
func TestUnusableIsDoubted(t *testing.T) {
	cfg := testConfig(t)
	d := createDomain(t, openToken(t, cfg))
	ways := *d.t.wraps.Load()
	if err := d.t.makeDomainKey(testDomain, 2, classAES, classAES.pinned(ways[classAES])); err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, d, 1, 1)
	other := must(openToken(t, cfg).OpenDomain(t.Context(), testDomain))(t)
	if err := errors.Join(other.CreateGeneration(t.Context(), 2, Locked), other.SetActive(t.Context(), 2)); err != nil {
		t.Fatal(err)
	}
	ekt := newAES(t, other)
	blob := encryptsAndDecrypts(t, other, ekt)
	unusable := func() float64 {
		var m dto.Metric
		_ = d.t.stats.generations.WithLabelValues("unusable").Write(&m)
		return m.GetGauge().GetValue()
	}
	beat := func() {
		t.Helper()
		if err := d.SetActive(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openBlob(t.Context(), d, ekt, blob); !errors.Is(err, ErrNoGeneration) || unusable() != 1 {
		t.Fatalf("it was not looked at before it was whole: %v, %v are unusable", err, unusable())
	}
	d.mu.Lock()
	d.seen = d.seen.Add(-doubtAfter)
	d.mu.Unlock()
	beat()
	eventually(t, "the end of the alarm", func() bool { beat(); return unusable() == 0 })
	opens(t, d, ekt, blob)
	wantGenerations(t, d, 1, 1, 2)
}
