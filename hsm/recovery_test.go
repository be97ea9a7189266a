package hsm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	dto "github.com/prometheus/client_model/go"

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
	for d.t.Ping(t.Context()) != nil || d.t.Health().State != StateReady {
		if h := d.t.Health(); time.Since(start) > 30*soon {
			t.Fatalf("after %s the token is %s: %s", time.Since(start), h.State, h.Reason)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

// A device that is gone altogether, for longer than calls wait, comes back
// without help.
func TestDeviceGoneAndBack(t *testing.T) {
	shim, d := newFaultyDomain(t, func(c *Config) { c.RecoveryWait = 50 * time.Millisecond })
	ekt := newAES(t, d)
	sealed, err := sealBlob(t.Context(), d, ekt, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range []uint{
		pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
	} {
		before := d.t.Health().Epoch
		shim.Set(faultshim.Every, faultshim.Fault{Action: faultshim.Fail, Code: code})
		if _, err := openBlob(t.Context(), d, ekt, sealed); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: decrypting without a device: %v", codeName(code), err)
		}
		time.Sleep(200 * time.Millisecond)
		if h := d.t.Health(); h.State != StateRecovering || h.Reason == "" || h.Since.IsZero() {
			t.Errorf("%s: health %+v", codeName(code), h)
		}
		shim.Clear()
		took := wantHealthy(t, d)
		t.Logf("%s: back after %s", codeName(code), took)
		if plain, err := openBlob(t.Context(), d, ekt, sealed); err != nil || string(plain) != "x" {
			t.Errorf("%s: decrypting afterwards: %q, %v", codeName(code), plain, err)
		}
		if d.t.Health().Epoch == before {
			t.Errorf("%s: no new epoch", codeName(code))
		}
	}
}

// A key is not called bad because the device refuses it once, of whatever
// generation it is.
func TestUnwrapRefusedOnce(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	old := newAES(t, d)
	if err := errors.Join(d.CreateGeneration(t.Context(), 2, Locked), d.SetActive(t.Context(), 2)); err != nil {
		t.Fatal(err)
	}
	for generation, ekt := range map[uint32]EKT{1: old, 2: newAES(t, d)} {
		shim.Set("C_UnwrapKey", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_GENERAL_ERROR, Times: 1})
		if _, err := sealBlob(t.Context(), d, ekt, []byte("x")); err != nil || ekt.Generation() != generation {
			t.Errorf("a key of generation %d: %v", generation, err)
		}
		if n := shim.Injected()["C_UnwrapKey"]; n == 0 {
			t.Errorf("generation %d: the fault did not happen", generation)
		}
		shim.Clear()
	}
}

// Where the PIN is refused when the login has to be renewed, it is tried once
// and never again, and everyone is told.
func TestPINRefusedDuringRecovery(t *testing.T) {
	for name, code := range map[string]uint{"wrong": pkcs11.CKR_PIN_INCORRECT, "locked": pkcs11.CKR_PIN_LOCKED} {
		t.Run(name, func(t *testing.T) {
			shim, d := newFaultyDomain(t, nil)
			ekt := newAES(t, d)
			shim.Set("C_Login", faultshim.Fault{Action: faultshim.Fail, Code: code})
			shim.Set("C_GetSessionInfo", faultshim.Fault{Action: faultshim.LoseAll, Times: 1})
			shim.Take("C_Login")
			if err := d.t.Ping(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "PIN") {
				t.Errorf("pinging: %v", err)
			}
			start := time.Now()
			if _, err := sealBlob(t.Context(), d, ekt, []byte("x")); !errors.Is(err, ErrUnavailable) {
				t.Errorf("encrypting: %v", err)
			}
			if took := time.Since(start); took > d.t.cfg.RecoveryWait/2 {
				t.Errorf("a call waited %s for what will not come", took)
			}
			time.Sleep(2 * longestPause)
			if tries := shim.Take("C_Login"); tries != 1 {
				t.Errorf("the PIN was tried %d times", tries)
			}
			if h := d.t.Health(); h.State != StateStopped || !strings.Contains(h.Reason, "PIN") {
				t.Errorf("health %+v", h)
			}
		})
	}
}

// Tokens of one library go down and come back together; one that stays away
// does not keep the other.
func TestTokensOfOneModule(t *testing.T) {
	shim, one := newFaultyDomain(t, nil)
	cfg := testConfig(t)
	cfg.Module = shim.Module
	two := createDomain(t, openToken(t, cfg))
	ekts := map[*Member]EKT{one: newAES(t, one), two: newAES(t, two)}
	for d, ekt := range ekts {
		before := map[*Member]uint64{one: one.t.Health().Epoch, two: two.t.Health().Epoch}
		shim.Set("C_GenerateRandom", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_DEVICE_REMOVED, Times: 1})
		if err := d.t.Ping(t.Context()); err != nil {
			t.Errorf("the call that met the fault: %v", err)
		}
		if _, err := sealBlob(t.Context(), d, ekt, []byte("x")); err != nil {
			t.Error(err)
		}
		for other, epoch := range before {
			// The second recovery waits a little.
			eventually(t, "the end of a token's handles at a restart of its module", func() bool { return other.t.Health().Epoch != epoch })
			wantHealthy(t, other)
		}
	}
	if err := two.t.Close(); err != nil {
		t.Error(err)
	}
	if _, err := sealBlob(t.Context(), one, ekts[one], []byte("x")); err != nil {
		t.Errorf("after the other was closed: %v", err)
	}
}

// A token that is closed while it is down does not keep the module.
func TestCloseWhileDown(t *testing.T) {
	cfg := testConfig(t)
	shim := faultshim.New(t, cfg.Module)
	cfg.Module, cfg.RecoveryWait = shim.Module, 10*time.Millisecond
	token := must(Open(t.Context(), cfg))(t)
	shim.Set(faultshim.Every, faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_DEVICE_ERROR})
	if err := token.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("pinging: %v", err)
	}
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	if h := token.Health(); h.State != StateClosed {
		t.Errorf("health %+v", h)
	}
	shim.Clear()
	again := openToken(t, cfg)
	if err := again.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// A call that hangs cannot be ended in this process: health says so, callers
// get their deadlines, and what comes back late is served again.
func TestHang(t *testing.T) {
	shim, d := newFaultyDomain(t, func(c *Config) { c.HungAfter, c.RecoveryWait = 100*time.Millisecond, 100*time.Millisecond })
	ekt := newAES(t, d)
	if _, err := sealBlob(t.Context(), d, ekt, []byte("x")); err != nil {
		t.Fatal(err)
	}
	shim.Set("C_Encrypt", faultshim.Fault{Action: faultshim.Hang})
	ctx, leave := context.WithCancel(t.Context())
	called := make(chan error)
	go func() { _, err := sealBlob(ctx, d, ekt, []byte("x")); called <- err }()
	eventually(t, "health telling", func() bool { return d.t.Health().State == StateHung })
	if h := d.t.Health(); !strings.Contains(h.Reason, "worker") {
		t.Errorf("health %+v", h)
	}
	leave()
	if err := <-called; !errors.Is(err, context.Canceled) {
		t.Errorf("a call that hangs: %v", err)
	}
	// Recovery must not finalise the library under the call.
	shim.Take("C_Finalize")
	d.t.ask(d.t.epoch.Load(), remedyRestart, errors.New("the test asks"))
	if err := d.t.Ping(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("pinging meanwhile: %v", err)
	}
	if n := shim.Take("C_Finalize"); n > 0 {
		t.Error("the library was finalised under a call")
	}
	shim.Clear()
	wantHealthy(t, d)
	if _, err := sealBlob(t.Context(), d, ekt, []byte("x")); err != nil {
		t.Error(err)
	}
}

// A token that carries the label but is another one is not taken.
func TestAnotherTokenInItsPlace(t *testing.T) {
	cfg := testConfig(t)
	token := openToken(t, cfg)
	other := cfg
	other.TokenSerial = "0000"
	token.module.mu.Lock()
	defer token.module.mu.Unlock()
	if _, _, err := token.module.dial(other); !errors.Is(err, ErrTokenNotFound) {
		t.Errorf("a token of another serial number: %v", err)
	}
}

// TestHashThatIsMissing: that a device has not OAEP's hash is no fault of what
// is imported, whichever of its codes says so.
func TestHashThatIsMissing(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	for _, code := range lacksHash {
		err := d.onMaker(t.Context(), func(s *session, keys *domainKeys) error {
			shim.Set("C_UnwrapKey", faultshim.Fault{Action: faultshim.Fail, Code: code, Times: 1})
			_, err := s.unwrapStrange(keys, byOAEP("RSAES_OAEP_SHA_256"), keys.wrap[classAES], make([]byte, 256), useTemplate(pkcs11.CKK_AES))
			return err
		})
		if !isCode(err, code) || errors.Is(err, ErrMaterial) {
			t.Errorf("%s: %v", codeName(code), err)
		}
	}
}

// Keys that no one uses any more count as live no longer than they live.
func TestHandlesOfAnEarlierEpoch(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	cached := func() float64 {
		var m dto.Metric
		_ = d.t.stats.handles.Write(&m)
		return m.GetGauge().GetValue()
	}
	pair := must(d.Generate(t.Context(), "ECC_NIST_P256", UseSign))(t)
	must(d.Sign(t.Context(), pair.EKT, "ECDSA_SHA_256", make([]byte, 32)))(t)
	if _, _, err := d.Encrypt(t.Context(), newAES(t, d), nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n := cached(); n != 2 {
		t.Fatalf("%v keys are cached, want one of each kind", n)
	}
	shim.Set("C_GenerateRandom", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_DEVICE_ERROR, Times: 1})
	_ = d.t.Ping(t.Context())
	wantHealthy(t, d)
	if n := cached(); n != 0 {
		t.Errorf("%v keys count as live after their epoch", n)
	}
}
