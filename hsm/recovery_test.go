package hsm

import (
	"errors"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// soon is how long recovery may take once the device is back.
const soon = time.Second

// newFaultyDomain is newDomain on a device that misbehaves on demand.
func newFaultyDomain(t testing.TB, change func(*Config)) (*faultshim.Shim, *Member) {
	t.Helper()
	var shim *faultshim.Shim
	d := newDomain(t, func(c *Config) {
		shim = faultshim.New(t, c.Module)
		c.Module = shim.Module
		if change != nil {
			change(c)
		}
	})
	return shim, d
}

// wantHealthy waits until the token serves, and returns how long that took.
func wantHealthy(t testing.TB, d *Member) time.Duration {
	t.Helper()
	start := time.Now()
	for d.t.Ping(t.Context()) != nil && time.Since(start) < 10*soon {
		time.Sleep(time.Millisecond)
	}
	took := time.Since(start)
	if h := d.t.Health(); h.State != StateReady || took > soon {
		t.Errorf("after %s the token is %s: %s", took, h.State, h.Reason)
	}
	return took
}

// A device that is gone altogether, for longer than calls wait, comes back
// without help.
func TestDeviceGoneAndBack(t *testing.T) {
	shim, d := newFaultyDomain(t, func(c *Config) { c.RecoveryWait = 50 * time.Millisecond })
	ekt := newAES(t, d)
	sealed, err := d.Encrypt(t.Context(), ekt, testIV, nil, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range []uint{
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
	} {
		before := d.t.Health().Epoch
		shim.Set(faultshim.Every, faultshim.Fault{Action: faultshim.Fail, Code: code})
		if _, err := d.Decrypt(t.Context(), ekt, testIV, nil, sealed); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: decrypting without a device: %v", codeName(code), err)
		}
		time.Sleep(200 * time.Millisecond)
		if h := d.t.Health(); h.State != StateRecovering || h.Reason == "" || h.Since.IsZero() {
			t.Errorf("%s: health %+v", codeName(code), h)
		}
		shim.Clear()
		took := wantHealthy(t, d)
		t.Logf("%s: back after %s", codeName(code), took)
		if plain, err := d.Decrypt(t.Context(), ekt, testIV, nil, sealed); err != nil || string(plain) != "x" {
			t.Errorf("%s: decrypting afterwards: %q, %v", codeName(code), plain, err)
		}
		if d.t.Health().Epoch == before {
			t.Errorf("%s: no new epoch", codeName(code))
		}
	}
}
