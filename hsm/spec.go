package hsm

import "fmt"

// Use is what a backing key is for, AWS's KeyUsage.
type Use int

const (
	UseEncrypt Use = iota + 1 // ENCRYPT_DECRYPT
	UseSign                   // SIGN_VERIFY
	UseMAC                    // GENERATE_VERIFY_MAC
	UseAgree                  // KEY_AGREEMENT
)

// UnsupportedError says what this device lacks for a key spec. Nothing is done
// in this process's memory in its place.
type UnsupportedError struct {
	Spec      string // AWS's name, such as ML_DSA_44
	Mechanism string // the CKM_ name that is missing, or that refuses
	Why       string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("this HSM cannot do %s: %s: %s", e.Spec, e.Mechanism, e.Why)
}

// Supports says whether the device can make and use keys of an AWS key spec:
// nil, or *UnsupportedError, or ErrArgument for a spec and use that AWS has
// not. Its answer is found once by trying.
func (d *Domain) Supports(spec string, use Use) error {
	return &UnsupportedError{spec, "", "not built yet"}
}
