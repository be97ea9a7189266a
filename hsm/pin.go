package hsm

import (
	"fmt"
	"log/slog"
	"sync/atomic"
)

const redacted = "[redacted]"

// PIN is a token's user PIN. It prints as "[redacted]" by every route.
type PIN struct{ secret *pinSecret }

// pinSecret is behind a pointer so that reflection-based printers meet its
// Format method or an address, never the bytes.
type pinSecret struct {
	value   []byte
	refused atomic.Bool // elsewhere: it must not be tried
}

// NewPIN copies pin; the caller may clear its own bytes afterwards.
func NewPIN(pin []byte) PIN {
	return PIN{&pinSecret{value: append([]byte(nil), pin...)}}
}

func (p PIN) empty() bool { return p.secret == nil || len(p.secret.value) == 0 }

// reveal returns the PIN for the one call that needs it.
func (p PIN) reveal() string {
	if p.secret == nil {
		return ""
	}
	return string(p.secret.value)
}

// Format implements fmt.Formatter.
func (p PIN) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redacted)) }

// String implements fmt.Stringer for callers that do not go through fmt.
func (p PIN) String() string { return redacted }

// LogValue implements slog.LogValuer.
func (p PIN) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and with it JSON and YAML.
func (p PIN) MarshalText() ([]byte, error) { return []byte(redacted), nil }

func (s *pinSecret) Format(st fmt.State, _ rune) { _, _ = st.Write([]byte(redacted)) }

// refuse has loginAllowed say no from now on.
func (p PIN) refuse() {
	if p.secret != nil {
		p.secret.refused.Store(true)
	}
}

// wipe forgets the PIN if *err is set.
func (p PIN) wipe(err *error) {
	if *err != nil && p.secret != nil {
		clear(p.secret.value)
	}
}
