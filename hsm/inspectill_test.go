package hsm

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// TestIllDeviceProvesNothing: that a device is ill just then is no reason to do
// without the proof of what a domain key for private keys enforces. That it
// makes no pairs at all is one.
func TestIllDeviceProvesNothing(t *testing.T) {
	for _, test := range []struct {
		code  uint
		times int // 0 = each time
		opens bool
	}{
		{pkcs11.CKR_DEVICE_ERROR, 0, false},
		{pkcs11.CKR_SESSION_COUNT, 0, false},
		{pkcs11.CKR_MECHANISM_INVALID, 0, true},
		{pkcs11.CKR_ARGUMENTS_BAD, 0, true},
		{pkcs11.CKR_FUNCTION_FAILED, 0, true},
		{pkcs11.CKR_VENDOR_DEFINED | 7, 0, true},
		{pkcs11.CKR_VENDOR_DEFINED | 7, 1, true},
		{pkcs11.CKR_DEVICE_ERROR, 1, true}, // after a recovery
	} {
		t.Run(fmt.Sprintf("%s %d times", codeName(test.code), test.times), func(t *testing.T) {
			shim, d := newFaultyDomain(t, func(c *Config) {
				if !test.opens { // which shows when the wait is over
					c.RecoveryWait = time.Second
				}
			})
			pairs := shim.Calls()["C_GenerateKeyPair"]
			shim.Set("C_GenerateKeyPair", faultshim.Fault{Action: faultshim.Fail, Code: test.code, Times: test.times})
			_, err := d.t.OpenDomain(t.Context(), testDomain)
			shim.Clear()
			if test.opens != (err == nil) || err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrBusy) {
				t.Error(err)
			}
			if made := shim.Calls()["C_GenerateKeyPair"] - pairs; test.times == 1 && made < 2 {
				t.Error("it is not asked again")
			}
		})
	}
}

// TestSearchWithoutEnd: a device that finds more whenever it is asked is not
// asked for ever.
func TestSearchWithoutEnd(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	shim.Set("C_FindObjects", faultshim.Fault{Action: faultshim.Repeat, Times: mostFound})
	defer shim.Clear()
	err := d.t.onKeeper(t.Context(), func(s *session) error {
		found, err := s.find(nil)
		if err == nil {
			err = wrong("%d objects", len(found))
		}
		return err
	})
	if code, _ := codeOf(err); code != ckrWrongLength {
		t.Errorf("got %v", err)
	}
}
