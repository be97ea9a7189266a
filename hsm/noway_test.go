package hsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// TestGenerationThatCannotServe: a generation whose keys the device has no
// mechanism for takes nothing else down. The security officer can make such a
// one, who cannot try what the device says of itself.
func TestGenerationThatCannotServe(t *testing.T) {
	cfg := renumbered(t, onlyKWP)
	token := openToken(t, cfg)
	if err := token.CreateDomain(t.Context(), testDomain); err != nil {
		t.Fatal(err)
	}
	d, err := token.OpenDomain(t.Context(), testDomain)
	if err != nil {
		t.Fatal(err)
	}
	ekt := newAES(t, d)
	blob := encryptsAndDecrypts(t, d, ekt)
	for _, c := range keyClasses {
		if err := token.makeDomainKey(testDomain, 2, c, []uint{pkcs11.CKM_AES_ECB}); err != nil {
			t.Fatal(err)
		}
	}
	if err := token.makeMACKey(testDomain, 2); err != nil {
		t.Fatal(err)
	}
	if err := token.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Metrics = prometheus.NewRegistry()
	if d, err = openToken(t, cfg).OpenDomain(t.Context(), testDomain); err != nil {
		t.Fatal(err)
	}
	opens(t, d, ekt, blob)
	all, err := d.Generations(t.Context())
	if err != nil || len(all) != 2 || !all[0].Whole || all[1].Whole || !strings.Contains(all[1].Why, "generation 2 serves by ([1081]") {
		t.Errorf("it says %+v, %v", all, err)
	}
	for state, want := range map[string]float64{"whole": 1, "MAC key": 0, "unusable": 1} {
		var m dto.Metric
		_ = d.t.stats.generations.WithLabelValues(state).Write(&m)
		if got := m.GetGauge().GetValue(); got != want {
			t.Errorf("%v generations are counted as %s, want %v", got, state, want)
		}
	}
	gone := bytes.Clone(ekt) // as if a key had been made under it before the device changed
	binary.BigEndian.PutUint32(gone[1:], 2)
	if _, _, err := d.Encrypt(t.Context(), gone, nil, []byte("x")); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("a key of that generation: %v", err)
	}
	if err := d.SetActive(t.Context(), 2); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("what cannot wrap is made active: %v", err)
	}
	if err := d.DestroyGeneration(t.Context(), 2, false); err != nil {
		t.Error(err)
	}
}
