package hsm

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"
)

// module is a loaded PKCS#11 library. There is one per path and process,
// because C_Initialize and C_Finalize act on the whole process. crypto11 calls
// both, counting its users.
type module struct {
	path   string
	p11    *pkcs11.Ctx
	native native

	// mu is held by whoever initialises, finalises or logs in.
	mu     sync.Mutex
	users  int                 // connections; guarded by mu
	tokens map[*Token]struct{} // open ones; guarded by mu
	// restarted: the library was ill once, and may not have been finalised when
	// its last connection ended, which crypto11 does not say; guarded by mu.
	restarted bool

	// asking guards these, and is never held during a call of the library.
	asking  sync.Mutex
	pleas   map[*Token]plea
	mending bool      // whether mend runs
	rests   time.Time // when the next recovery may begin
	strikes int       // recoveries that followed each other soon

	// moved is when the attempt to recover that runs last got on, in
	// nanoseconds; 0 = none runs, or it waits for calls.
	moved atomic.Int64
}

// modules is process-wide state because PKCS#11 libraries are.
var modules = struct {
	mu     sync.Mutex
	byPath map[string]*module
}{byPath: map[string]*module{}}

// load returns the library at path, loading it at most once.
func load(path string) (*module, error) {
	modules.mu.Lock()
	defer modules.mu.Unlock()
	if m, ok := modules.byPath[path]; ok {
		return m, nil
	}
	if path == "" {
		return nil, fmt.Errorf("%w: no path is configured; set the path of the vendor's PKCS#11 library", ErrModule)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%w: %w; install the vendor's library (Debian's SoftHSM: apt-get install softhsm2) and set its path", ErrModule, err)
	}
	functions, err := loadNative(path)
	if err != nil {
		return nil, err
	}
	p11 := pkcs11.New(path)
	if p11 == nil {
		return nil, fmt.Errorf("%w: %s: it loads but gives no function list", ErrModule, path)
	}
	m := &module{path: path, p11: p11, native: functions, tokens: map[*Token]struct{}{}}
	modules.byPath[path] = m
	return m, nil
}

// slot is a token as a scan found it.
type slot struct {
	id    uint
	token pkcs11.TokenInfo
}

// look runs f while the library is initialised. When no token is open it
// initialises and finalises around f, since crypto11 insists on being the one
// that initialises. The caller holds m.mu.
func (m *module) look(f func() error) error {
	if m.users > 0 {
		return f()
	}
	switch err := m.p11.Initialize(); {
	case err == nil:
		defer m.p11.Finalize() //nolint:errcheck // nothing was left open
	case errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)):
	default:
		return fmt.Errorf("%w: %w; check the library's own configuration and that its service runs", ErrModule, deviceError("initialising "+m.path, err))
	}
	return f()
}

// slots lists the tokens that are present.
func (m *module) slots() ([]slot, error) {
	ids, code := m.native.slots()
	if code != pkcs11.CKR_OK {
		return nil, &DeviceError{Doing: "listing slots", Code: code}
	}
	var found []slot
	for _, id := range ids {
		info, err := m.p11.GetTokenInfo(id)
		if err != nil {
			continue // taken out while we looked, or not a token for us
		}
		info.Label = strings.TrimRight(info.Label, " \x00")
		info.SerialNumber = strings.TrimRight(info.SerialNumber, " \x00")
		found = append(found, slot{id, info})
	}
	return found, nil
}

// choose returns the one slot that cfg names.
func choose(slots []slot, cfg Config) (slot, error) {
	if cfg.TokenLabel == "" && cfg.TokenSerial == "" {
		return slot{}, fmt.Errorf("%w: neither a token label nor a serial number is configured; %s", ErrTokenNotFound, present(slots))
	}
	var matches []slot
	for _, s := range slots {
		if cfg.TokenLabel != "" && s.token.Label != cfg.TokenLabel ||
			cfg.TokenSerial != "" && s.token.SerialNumber != cfg.TokenSerial {
			continue
		}
		matches = append(matches, s)
	}
	if len(matches) == 0 {
		return slot{}, fmt.Errorf("%w: %s; %s", ErrTokenNotFound, wanted(cfg), present(slots))
	}
	if len(matches) > 1 {
		return slot{}, fmt.Errorf("%w: %s is carried by %d tokens; name the serial number too, or relabel one of them; %s",
			ErrTokenAmbiguous, wanted(cfg), len(matches), present(slots))
	}
	if s := matches[0]; s.token.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
		return slot{}, fmt.Errorf("%w: %s; initialise it with the vendor's tool (SoftHSM: softhsm2-util --init-token)", ErrTokenUninitialised, wanted(cfg))
	}
	return matches[0], nil
}

func wanted(cfg Config) string {
	var parts []string
	if cfg.TokenLabel != "" {
		parts = append(parts, fmt.Sprintf("label %q", cfg.TokenLabel))
	}
	if cfg.TokenSerial != "" {
		parts = append(parts, fmt.Sprintf("serial %q", cfg.TokenSerial))
	}
	return strings.Join(parts, " and ")
}

func present(slots []slot) string {
	var tokens []string
	for _, s := range slots {
		if s.token.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			tokens = append(tokens, fmt.Sprintf("%q (serial %s)", s.token.Label, s.token.SerialNumber))
		}
	}
	if len(tokens) == 0 {
		return "the library shows no initialised token: initialise one with the vendor's tool, and check the library's configuration and the rights on its files"
	}
	return "the library shows " + strings.Join(tokens, ", ")
}

// loginAllowed refuses before the PIN is tried when a wrong try could lock the
// token, when there is no PIN to try, or when the login would serve nothing.
func loginAllowed(s slot, pin PIN) error {
	flags := s.token.Flags
	switch {
	case pin.empty():
		return fmt.Errorf("%w: no PIN is configured; give it by file or credential", ErrPINIncorrect)
	case pin.secret.refused.Load():
		return fmt.Errorf("%w when the worker that was to follow tried it, and it is not tried again: restart with the right PIN", ErrPINIncorrect)
	case flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return fmt.Errorf("%w: token %q has no user PIN yet; set one with the vendor's tool as security officer", ErrTokenUninitialised, s.token.Label)
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("%w: token %q is locked; the security officer must unlock it with the vendor's tool", ErrPINLocked, s.token.Label)
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return fmt.Errorf("%w: the next wrong PIN locks token %q, so none is tried; log in once with the vendor's tool and the right PIN", ErrPINLocked, s.token.Label)
	case s.token.MaxRwSessionCount == 1: // crypto11 would panic
		return fmt.Errorf("%w: token %q allows one session at a time; have the limit raised: trent doctor says how many Trent opens", ErrUnavailable, s.token.Label)
	}
	return nil
}

// connect lets crypto11 initialise the library and log in, trying the PIN
// exactly once. The caller holds m.mu.
func (m *module) connect(s slot, cfg Config, unique bool) (*crypto11.Context, error) {
	if cfg.loggingIn != nil {
		cfg.loggingIn()
	}
	settings := &crypto11.Config{Path: m.path, Pin: cfg.PIN.reveal(), MaxSessions: 2}
	if unique {
		settings.TokenSerial = s.token.SerialNumber
	} else {
		settings.TokenLabel = s.token.Label
	}
	context, err := crypto11.Configure(settings)
	settings.Pin = "" // crypto11 keeps its settings for as long as the connection
	if err == nil {
		m.users++
		return context, nil
	}
	if code, ok := codeOf(err); ok && classify(code) == classPIN {
		return nil, fmt.Errorf("%w of token %q: %s; it was tried once and will not be tried again: correct it, and mind that a few wrong tries lock the token",
			ErrPINIncorrect, s.token.Label, codeName(code))
	}
	return nil, fmt.Errorf("logging in to token %q: %w", s.token.Label, deviceError("connecting", err))
}

// dial finds the one token that cfg names, and connects to it. The caller
// holds m.mu.
func (m *module) dial(cfg Config) (slot, *crypto11.Context, error) {
	var chosen slot
	var unique bool
	find := func() error {
		slots, err := m.slots()
		if err != nil {
			return err
		}
		if chosen, err = choose(slots, cfg); err != nil {
			return err
		}
		unique = serialUnique(slots, chosen)
		return nil
	}
	if m.users == 0 && m.restarted {
		_ = m.p11.Finalize()
	}
	if err := m.look(find); err != nil {
		return slot{}, nil, err
	}
	m.getsOn()
	if err := loginAllowed(chosen, cfg.PIN); err != nil {
		return slot{}, nil, err
	}
	conn, err := m.connect(chosen, cfg, unique)
	if err != nil {
		return slot{}, nil, err
	}
	m.getsOn()
	// Slot numbers may have moved with the new initialisation.
	if err := find(); err != nil {
		m.users--
		return slot{}, nil, errors.Join(err, conn.Close())
	}
	return chosen, conn, nil
}

func serialUnique(slots []slot, chosen slot) bool {
	n := 0
	for _, s := range slots {
		if s.token.SerialNumber == chosen.token.SerialNumber {
			n++
		}
	}
	return n == 1 && chosen.token.SerialNumber != ""
}
