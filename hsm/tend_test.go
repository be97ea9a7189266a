package hsm

import (
	"errors"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// newFaultyWorker is a domain whose first member's worker has the shim before
// its library.
func newFaultyWorker(t *testing.T, members int, change func(*DomainConfig)) (*faultshim.Shim, *Domain) {
	t.Helper()
	cfg, _ := newDomainConfig(t, members)
	first := &cfg.Members[0]
	shim := faultshim.ForOthers(t, first.Module)
	first.Module = shim.Module
	first.Environment = append(first.Environment, shim.Env...)
	if change != nil {
		change(&cfg)
	}
	return shim, openDomain(t, cfg)
}

// TestWorkerStopsAtRefusedPIN: where the PIN is refused when the login has to be
// renewed, no other worker tries it either.
func TestWorkerStopsAtRefusedPIN(t *testing.T) {
	for name, code := range map[string]uint{"wrong": pkcs11.CKR_PIN_INCORRECT, "locked": pkcs11.CKR_PIN_LOCKED} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			shim, d := newFaultyWorker(t, 1, nil)
			shim.Set("C_Login", faultshim.Fault{Action: faultshim.Fail, Code: code})
			shim.Set("C_GetSessionInfo", faultshim.Fault{Action: faultshim.LoseAll, Times: 1})
			shim.Take("C_Login")
			if err := d.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
				t.Errorf("pinging: %v", err)
			}
			eventually(t, "the member's end", func() bool { return d.Health()[0].Stopped })
			time.Sleep(replaceAfter / 2)
			if tries := shim.Take("C_Login"); tries != 1 {
				t.Errorf("the PIN was tried %d times", tries)
			}
		})
	}
}
