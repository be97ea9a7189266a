package hsm

import (
	"errors"
	"fmt"
	"slices"
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

// Is makes losses of device, session and login match ErrUnavailable, and a
// device that has too much to do ErrBusy.
func (e *DeviceError) Is(target error) bool {
	switch classify(e.Code) {
	case classDevice, classToken, classSession, classLogin, classHandle, classPIN, classStrange:
		return target == ErrUnavailable
	case classBusy:
		return target == ErrBusy
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

// codeError is the error of a native call; CKR_OK is none.
func codeError(doing string, code uint) error {
	if code == pkcs11.CKR_OK {
		return nil
	}
	return &DeviceError{Doing: doing, Code: code}
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

// isCode says whether the device refused, by one of the codes.
func isCode(err error, codes ...uint) bool {
	code, ok := codeOf(err)
	return ok && slices.Contains(codes, code)
}

// isClass says whether the device refused, by a code of the class.
func isClass(err error, c class) bool {
	code, ok := codeOf(err)
	return ok && classify(code) == c
}

// class sorts return codes by what helps against them.
type class int

const (
	classOther   class = iota // the device cannot do it, or Trent asks wrongly
	classDevice               // device gone: restart the module
	classToken                // token gone: restart the module
	classSession              // session gone or spoilt: replace it
	classLogin                // logged out behind our back: log in again
	classHandle               // object handle stale: load it again once
	classBusy                 // wait and try again
	classPIN                  // never try again
	classData                 // the data may be bad, or the device: probe
	classForged               // the data is bad
	classStrange              // an answer that cannot be: try once more on another session
)

// String is the class's name in metrics.
func (c class) String() string {
	return [...]string{"fatal", "device", "token", "session", "login", "object", "busy", "pin", "doubtful", "caller", "strange"}[c]
}

// ckrVendor is where the codes begin that vendors make up.
const ckrVendor = pkcs11.CKR_VENDOR_DEFINED

func classify(code uint) class {
	switch code {
	case pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_MEMORY, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:
		return classDevice
	case pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_SLOT_ID_INVALID:
		return classToken
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED,
		pkcs11.CKR_OPERATION_ACTIVE, pkcs11.CKR_OPERATION_NOT_INITIALIZED:
		return classSession
	case pkcs11.CKR_USER_NOT_LOGGED_IN:
		return classLogin
	case pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_KEY_HANDLE_INVALID,
		pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID, pkcs11.CKR_UNWRAPPING_KEY_HANDLE_INVALID:
		return classHandle
	case pkcs11.CKR_SESSION_COUNT, pkcs11.CKR_HOST_MEMORY, pkcs11.CKR_FUNCTION_CANCELED, ckrTokenResourceExceeded:
		return classBusy
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
	if code >= ckrVendor {
		return classStrange
	}
	return classOther
}

// otherKey are the answers of a device to a handle of another kind of key.
// Where a handle was good before, it may have come to mean another object.
var otherKey = []uint{
	pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_SIZE_RANGE,
}

// Return codes that miekg does not name. The second is PKCS#11 3.0's for a bad
// GCM tag; the last three are Trent's own.
const (
	ckrActionProhibited      = 0x1B
	ckrAEADDecryptFailed     = 0x42
	ckrTokenResourceExceeded = 0x201
	ckrWrongLength           = ckrVendor | 0x74726e74 // "trnt"
	ckrChanging              = ckrWrongLength + 1
	ckrBadIV                 = ckrWrongLength + 2
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
	case ckrTokenResourceExceeded:
		return "CKR_TOKEN_RESOURCE_EXCEEDED"
	case ckrWrongLength:
		return "output of the wrong length"
	case ckrChanging:
		return "two answers to one question"
	}
	if code >= ckrVendor {
		return "CKR_VENDOR_DEFINED" // one name for all, or metrics would grow
	}
	text := pkcs11.Error(code).Error()
	if name := text[strings.LastIndex(text, " ")+1:]; name != "" {
		return name
	}
	return "unknown return code"
}
