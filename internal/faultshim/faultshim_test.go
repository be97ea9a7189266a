package faultshim

import (
	"errors"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/testenv"
)

// device is a session through the shim, logged in.
func device(t *testing.T) (*Shim, *pkcs11.Ctx, pkcs11.SessionHandle) {
	t.Helper()
	token := testenv.SoftHSM(t)
	s := New(t, token.Module)
	p11 := pkcs11.New(s.Module)
	if p11 == nil {
		t.Fatal("the shim does not load")
	}
	if err := p11.Initialize(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p11.Finalize() })
	slots, err := p11.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := p11.GetTokenInfo(slot); err != nil || info.Label != token.Label {
			continue
		}
		session, err := p11.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		if err := p11.Login(session, pkcs11.CKU_USER, token.PIN); err != nil {
			t.Fatal(err)
		}
		return s, p11, session
	}
	t.Fatal("no token")
	return nil, nil, 0
}

func newKey(p11 *pkcs11.Ctx, session pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
	return p11.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
	})
}

func wantLive(t *testing.T, s *Shim, sessions, objects int) {
	t.Helper()
	if gotSessions, gotObjects := s.Live(); gotSessions != sessions || gotObjects != objects {
		t.Errorf("%d sessions and %d objects live, want %d and %d", gotSessions, gotObjects, sessions, objects)
	}
}

func TestCountsWhatLives(t *testing.T) {
	s, p11, session := device(t)
	wantLive(t, s, 1, 0)
	var keys [3]pkcs11.ObjectHandle
	for i := range keys {
		var err error
		if keys[i], err = newKey(p11, session); err != nil {
			t.Fatal(err)
		}
	}
	wantLive(t, s, 1, 3)
	if err := p11.DestroyObject(session, keys[0]); err != nil {
		t.Fatal(err)
	}
	wantLive(t, s, 1, 2)
	if err := p11.Logout(session); err != nil {
		t.Fatal(err)
	}
	wantLive(t, s, 1, 0)
	if err := p11.CloseSession(session); err != nil {
		t.Fatal(err)
	}
	wantLive(t, s, 0, 0)
}

func TestFaults(t *testing.T) {
	s, p11, session := device(t)
	mac := func(key pkcs11.ObjectHandle) ([]byte, error) {
		if err := p11.SignInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_CMAC, nil)}, key); err != nil {
			return nil, err
		}
		return p11.Sign(session, []byte("x"))
	}
	one, err := newKey(p11, session)
	if err != nil {
		t.Fatal(err)
	}
	two, err := newKey(p11, session)
	if err != nil {
		t.Fatal(err)
	}
	good := map[pkcs11.ObjectHandle]string{}
	for _, key := range []pkcs11.ObjectHandle{one, two} {
		sum, err := mac(key)
		if err != nil {
			t.Fatal(err)
		}
		good[key] = string(sum)
	}

	s.Set("C_Sign", Fault{Action: Fail, Code: pkcs11.CKR_DEVICE_ERROR, Times: 1})
	if _, err := mac(one); !errors.Is(err, pkcs11.Error(pkcs11.CKR_DEVICE_ERROR)) {
		t.Errorf("Fail: %v", err)
	}
	_, _ = p11.Sign(session, []byte("x")) // ends what Fail left begun
	s.Set("C_SignInit", Fault{Action: Misdirect, Times: 1})
	if sum, err := mac(one); err != nil || string(sum) != good[two] {
		t.Errorf("Misdirect: %x, %v", sum, err)
	}
	s.Set("C_Sign", Fault{Action: Shorten, Times: 2})
	if sum, err := mac(one); err == nil && len(sum) != len(good[one])-1 {
		t.Errorf("Shorten: %d bytes, %v", len(sum), err)
	}
	s.Clear()
	if sum, err := mac(one); err != nil || string(sum) != good[one] {
		t.Errorf("after the faults: %x, %v", sum, err)
	}

	s.Set("C_GenerateKey", Fault{Action: Fail, Code: pkcs11.CKR_DEVICE_ERROR, After: true, Times: 1})
	if _, err := newKey(p11, session); err == nil {
		t.Error("Fail after the call: no error")
	}
	wantLive(t, s, 1, 3)
	s.Set("C_GetSessionInfo", Fault{Action: LoseAll, Times: 1})
	if _, err := p11.GetSessionInfo(session); !errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)) {
		t.Errorf("LoseAll: %v", err)
	}
	wantLive(t, s, 0, 0)
	if n := s.Injected()["C_Sign"]; n < 2 {
		t.Errorf("%d faults of C_Sign counted", n)
	}
}
