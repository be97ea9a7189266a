package hsm

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
)

// sentinels are the errors that keep their identity between processes. The
// order is the encoding.
var sentinels = []error{
	ErrInvalidCiphertext, ErrInvalidEKT, ErrBusy, ErrUnavailable, ErrArgument, ErrSignature, ErrMaterial,
	ErrModule, ErrTokenNotFound, ErrTokenAmbiguous, ErrTokenUninitialised, ErrPINIncorrect, ErrPINLocked,
	ErrNoDomain, ErrDomainConflict, context.Canceled, context.DeadlineExceeded, ErrNoGeneration, ErrLocked,
}

// wireError is an error as it crosses to another process: its text, and what
// errors.Is and errors.As find in it.
type wireError struct {
	Text        string            `json:"text"`
	Sentinels   uint32            `json:"is,omitempty"` // bits, by place in sentinels
	Device      *DeviceError      `json:"device,omitempty"`
	Unsupported *UnsupportedError `json:"unsupported,omitempty"`
}

func (e *wireError) Error() string { return e.Text }

// Unwrap gives what the error was made of.
func (e *wireError) Unwrap() []error {
	var made []error
	if e.Device != nil {
		made = append(made, e.Device)
	}
	if e.Unsupported != nil {
		made = append(made, e.Unsupported)
	}
	for i, sentinel := range sentinels {
		if e.Sentinels&(1<<i) != 0 {
			made = append(made, sentinel)
		}
	}
	return made
}

func encodeError(err error) []byte {
	w := wireError{Text: strings.ToValidUTF8(err.Error(), "?")}
	for i, sentinel := range sentinels {
		if errors.Is(err, sentinel) {
			w.Sentinels |= 1 << i
		}
	}
	if code, ok := codeOf(err); ok {
		w.Device = &DeviceError{Doing: "calling", Code: code}
		_ = errors.As(err, &w.Device)
	}
	_ = errors.As(err, &w.Unsupported)
	b, _ := json.Marshal(w) // strings and numbers only
	return b
}

func decodeError(b []byte) error {
	w := new(wireError)
	if err := json.Unmarshal(b, w); err != nil {
		return errors.Join(ErrUnavailable, errFrame)
	}
	return w
}
