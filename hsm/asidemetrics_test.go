package hsm

import (
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// TestMetricsWhileAside: while a device is away the metrics say so, and by what
// codes it went.
func TestMetricsWhileAside(t *testing.T) {
	cfg, registry := newDomainConfig(t, 1)
	cfg.Patience = time.Second
	m := &cfg.Members[0]
	shim := faultshim.ForOthers(t, m.Module)
	m.Module, m.Environment = shim.Module, append(m.Environment, shim.Env...)
	d := openDomain(t, cfg)
	values := func(name, label string) map[string]float64 {
		t.Helper()
		found := map[string]float64{}
		for _, family := range must(registry.Gather())(t) {
			for _, m := range family.GetMetric() {
				for _, l := range m.GetLabel() {
					if family.GetName() == name && l.GetName() == label {
						found[l.GetValue()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
					}
				}
			}
		}
		return found
	}
	fail := faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_DEVICE_REMOVED}
	shim.Set("C_Initialize", fail)
	shim.Set("C_GenerateRandom", fail)
	defer shim.Clear()
	if err := d.Random(t.Context(), make([]byte, 8)); err == nil {
		t.Fatal("it serves")
	}
	// There is none while its worker is replaced.
	eventually(t, "the health of a worker that recovers", func() bool {
		now := values("trent_hsm_health", "state")
		return now[string(StateRecovering)] == 1 && now[string(StateReady)] == 0
	})
	eventually(t, "the error", func() bool { return values("trent_hsm_errors_total", "code")["CKR_DEVICE_REMOVED"] > 0 })
	if up := values("trent_hsm_member_up", "member"); up["m0"] != 0 {
		t.Errorf("up: %v", up)
	}
}
