package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/internal/faultshim"
	"github.com/trent-kms/trent/internal/testenv"
)

// TestDoctorOfAHungDevice: doctor says of a device that hangs that it does,
// wherever it does, and can be interrupted.
func TestDoctorOfAHungDevice(t *testing.T) {
	token := testenv.SoftHSM(t)
	shim := faultshim.New(t, token.Module)
	cfg := hsm.Config{Module: shim.Module, TokenLabel: token.Label, PIN: hsm.NewPIN([]byte(token.PIN))}
	for _, function := range []string{"C_Initialize", "C_Sign"} {
		shim.Set(function, faultshim.Fault{Action: faultshim.Hang})
		start := time.Now()
		_, err := examine(t.Context(), cfg, nil, 5*time.Second) // in which it comes to the function
		if took := time.Since(start); err == nil || !strings.Contains(err.Error(), shim.Module) || took > lastCall+20*time.Second {
			t.Errorf("%s hangs: after %s %v", function, took, err)
		}
		interrupted, cancel := context.WithCancel(t.Context())
		if function == "C_Initialize" { // in which the examination above still is
			time.AfterFunc(time.Second, cancel)
			if _, err := examine(interrupted, cfg, nil, time.Minute); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), shim.Module) {
				t.Errorf("interrupted while it hangs: %v", err)
			}
		}
		cancel()
		shim.Clear()
		if _, err := examine(interrupted, cfg, nil, time.Minute); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
	}
	if r, err := examine(t.Context(), cfg, nil, time.Minute); err != nil || !r.Usable() {
		t.Errorf("of the same device when it does not hang: %v, %+v", err, r.Findings)
	}
}
