package hsm

import (
	"errors"
	"syscall"
	"testing"
)

// TestActiveGenerationOutlivesWorkers: a worker that replaces another makes
// new keys under the generation that is active, not under its first.
func TestActiveGenerationOutlivesWorkers(t *testing.T) {
	cfg, _ := newDomainConfig(t, 1)
	// A second generation, made by a process of its own as trent domain is.
	t.Setenv("SOFTHSM2_CONF", cfg.Members[0].Environment[0][len("SOFTHSM2_CONF="):])
	token, err := Open(t.Context(), cfg.Members[0].Config)
	if err != nil {
		t.Fatal(err)
	}
	m, err := token.OpenDomain(t.Context(), testDomain)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.CreateGeneration(t.Context(), 2, Locked), token.Close()); err != nil {
		t.Fatal(err)
	}
	d := openDomain(t, cfg)
	old := newDomainKey(t, d)
	if err := d.SetActive(t.Context(), 3); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("a generation that no member holds: %v", err)
	}
	if err := d.SetActive(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, made, err := d.GenerateAES(t.Context())
		if err != nil || made.Generation != 2 {
			t.Errorf("a new key is of generation %d, %v", made.Generation, err)
		}
		if _, err := sealBlob(t.Context(), d, old, []byte("x")); err != nil {
			t.Errorf("a key of generation 1: %v", err)
		}
		was := signalWorker(t, d, 0, syscall.SIGKILL)
		eventually(t, "a new worker", func() bool { pid := workerOf(d, 0); return pid != 0 && pid != was })
	}
}
