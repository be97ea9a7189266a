package hsm

import (
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// TestIVsOfAnIllDevice: what a device answers while it is ill does not change
// how IVs are made, nor is it said to take none.
func TestIVsOfAnIllDevice(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	for _, test := range []struct {
		function string
		code     uint
		fails    bool // the try: another follows
	}{
		{"C_OpenSession", pkcs11.CKR_GENERAL_ERROR, true},
		{"C_OpenSession", pkcs11.CKR_ARGUMENTS_BAD, true}, // AWS CloudHSM at its limit of sessions
		{"C_GenerateKey", pkcs11.CKR_DEVICE_ERROR, true},
		{"C_GenerateKey", pkcs11.CKR_FUNCTION_FAILED, true},
		{"C_EncryptInit", pkcs11.CKR_DEVICE_ERROR, true},
		{"C_EncryptInit", pkcs11.CKR_GENERAL_ERROR, false},
		{"C_Encrypt", pkcs11.CKR_FUNCTION_FAILED, false},
		{"C_DecryptInit", pkcs11.CKR_SESSION_HANDLE_INVALID, true},
		{"C_Decrypt", pkcs11.CKR_DEVICE_ERROR, true},
		{"C_Decrypt", pkcs11.CKR_GENERAL_ERROR, false},
	} {
		before := shim.Injected()[test.function]
		var err error
		_ = d.t.onKeeper(t.Context(), func(s *session) error {
			shim.Set(test.function, faultshim.Fault{Action: faultshim.Fail, Code: test.code, Times: 1})
			defer shim.Clear()
			err = s.chooseIVs()
			return nil // nothing is to be recovered
		})
		if shim.Injected()[test.function] == before {
			t.Errorf("%s was not called", test.function)
		}
		said := codeName(test.code)
		switch {
		case test.fails != (err != nil):
			t.Errorf("%s once answers %s: %v", test.function, said, err)
		case err != nil && strings.Contains(err.Error(), "takes no IVs"):
			t.Errorf("%s once answers %s, and the device is said to be another: %v", test.function, said, err)
		}
		if got := d.t.ivs(); got != ivOurs {
			t.Fatalf("%s once answers %s: from then on IVs are %s", test.function, said, got)
		}
	}
}
