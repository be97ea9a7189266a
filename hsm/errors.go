package hsm

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// What operations answer.
var (
	// ErrInvalidCiphertext: the ciphertext, IV or AAD is not what the HSM
	// sealed under this key. The device was probed and is healthy.
	ErrInvalidCiphertext = errors.New("ciphertext does not authenticate")
	// ErrInvalidEKT: an exported key token was altered, cut, or wrapped under
	// another domain.
	ErrInvalidEKT = errors.New("exported key token does not unwrap under this domain")
	// ErrBusy: the queue to the HSM is full, or every cached handle is in use.
	ErrBusy = errors.New("the HSM's queue is full")
	// ErrUnavailable: the device, token or login is gone.
	ErrUnavailable = errors.New("the HSM is unavailable")
	// ErrArgument: the caller's own argument cannot be used, such as a
	// zero-length IV.
	ErrArgument = errors.New("argument refused")
)

// What opening a token or a domain answers. The messages that wrap these name
// the next step.
var (
	ErrModule             = errors.New("PKCS#11 module cannot be loaded")
	ErrTokenNotFound      = errors.New("token not found")
	ErrTokenAmbiguous     = errors.New("more than one token matches")
	ErrTokenUninitialised = errors.New("token is not initialised")
	ErrPINIncorrect       = errors.New("the token refused the PIN")
	ErrPINLocked          = errors.New("the token's user PIN is locked or on its last try")
	ErrNoDomain           = errors.New("the token holds no complete domain of this deployment")
	ErrDomainConflict     = errors.New("the token's domain objects are not as Trent makes them")
)

// DeviceError is a PKCS#11 call that the device refused. errors.Is(err,
// ErrUnavailable) holds when its code says that device, token, session or
// login is gone.
type DeviceError struct {
	// Doing is what was tried, as a gerund phrase.
	Doing string
	// Code is the CKR_ value of PKCS#11 §11.1.
	Code uint
}

func (e *DeviceError) Error() string {
	return fmt.Sprintf("%s: %s (0x%X)", e.Doing, codeName(e.Code), e.Code)
}

// Is makes device, session and login losses match ErrUnavailable.
func (e *DeviceError) Is(target error) bool {
	if target != ErrUnavailable {
		return false
	}
	switch classify(e.Code) {
	case classDevice, classSession, classLogin, classHandle, classPIN:
		return true
	}
	return false
}

// deviceError turns miekg's error into ours; nil stays nil.
func deviceError(doing string, err error) error {
	if err == nil {
		return nil
	}
	if code, ok := codeOf(err); ok {
		return &DeviceError{Doing: doing, Code: code}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// codeOf finds the CKR_ value inside an error of miekg, crypto11 or ours.
func codeOf(err error) (uint, bool) {
	var p11 pkcs11.Error
	if errors.As(err, &p11) {
		return uint(p11), true
	}
	var device *DeviceError
	if errors.As(err, &device) {
		return device.Code, true
	}
	return 0, false
}

// class sorts return codes by what helps against them.
type class int

const (
	classOther   class = iota
	classDevice        // device or token gone: recover the module
	classSession       // session gone or spoilt: replace it
	classLogin         // logged out behind our back: log in once
	classHandle        // object handle stale: load it again once
	classPIN           // never try again
	classData          // the data may be bad, or the device: probe
	classForged        // the data is bad
)

func classify(code uint) class {
	switch code {
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:
		return classDevice
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_OPERATION_ACTIVE:
		return classSession
	case pkcs11.CKR_USER_NOT_LOGGED_IN:
		return classLogin
	case pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID:
		return classHandle
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE,
		pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED:
		return classPIN
	case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_FUNCTION_FAILED,
		pkcs11.CKR_WRAPPED_KEY_INVALID, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE:
		return classData
	case pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, pkcs11.CKR_SIGNATURE_INVALID,
		pkcs11.CKR_SIGNATURE_LEN_RANGE, ckrAEADDecryptFailed:
		return classForged
	}
	return classOther
}

// Return codes that miekg does not name. The second is PKCS#11 3.0's for a bad
// GCM tag; the last is Trent's own.
const (
	ckrActionProhibited  = 0x1B
	ckrAEADDecryptFailed = 0x42
	ckrBadIV             = pkcs11.CKR_VENDOR_DEFINED | 0x74726976 // "triv"
)

// codeName gives the CKR_ name that vendors' manuals index; miekg has the
// table but shows it only inside its error text.
func codeName(code uint) string {
	switch code {
	case ckrBadIV:
		return "an answer whose IV is zero, repeated, not told or not the given one"
	case ckrActionProhibited:
		return "CKR_ACTION_PROHIBITED"
	case ckrAEADDecryptFailed:
		return "CKR_AEAD_DECRYPT_FAILED"
	}
	text := pkcs11.Error(code).Error()
	if name := text[strings.LastIndex(text, " ")+1:]; name != "" {
		return name
	}
	return "unknown return code"
}
