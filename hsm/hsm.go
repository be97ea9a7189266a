// Package hsm keeps keys inside a PKCS#11 token and uses them there. A domain
// (one deployment's wrapping and MAC keys) lives on the token; backing keys
// are made in it, leave it only wrapped as exported key tokens (EKTs), and come
// back as sensitive, non-extractable session objects in a bounded cache. No
// plaintext of a domain key or backing key is ever in this process's memory.
// crypto11 connects, logs in and makes token objects; miekg/pkcs11 handles
// session objects; the hot calls are one fused C call each (native.go).
package hsm

import (
	"log/slog"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config says which token to use and how hard.
type Config struct {
	// Module is the path of the vendor's PKCS#11 library.
	Module string

	// TokenLabel and TokenSerial choose the token. One is required; if both
	// are given both must match. Slot numbers move and are never used.
	TokenLabel, TokenSerial string

	// PIN is the token's user PIN. It is tried once.
	PIN PIN `json:"-"`

	// Sessions is the number of sessions that symmetric operations share.
	// 0 = 1, which measures best on SoftHSM, whose allocator is one lock.
	Sessions int

	// AsymmetricSessions is the number of sessions that use private keys, and
	// of those that make and import keys. 0 = one for each processor.
	AsymmetricSessions int

	// Queue is how many operations may wait for a session before callers get
	// ErrBusy. 0 = 1024.
	Queue int

	// HandleCache is how many unwrapped session objects may live on the token
	// at once: as many secret keys, and as many private ones. 0 = 1024.
	HandleCache int

	// RecoveryWait is how long a call waits for a device that is being recovered
	// before it gets ErrUnavailable. 0 = 2 s.
	RecoveryWait time.Duration

	// HungAfter is how long one PKCS#11 call may take before the token counts
	// as hung. 0 = 30 s, more than any device takes for a key of RSA_4096.
	HungAfter time.Duration

	// IVSource says who makes the IVs of AES-GCM. "" = IVAuto.
	IVSource IVSource

	// Logger hears of lost sessions and other faults. nil = discard.
	Logger *slog.Logger `json:"-"`

	// Metrics is where trent_hsm_* metrics are registered. nil = none.
	Metrics prometheus.Registerer `json:"-"`

	// loggingIn is called before a connection is made, in which the PIN is tried.
	loggingIn func()
}

// Info describes the token and its library.
type Info struct {
	Label           string `json:"label"`
	Serial          string `json:"serial"`
	Manufacturer    string `json:"manufacturer"`
	Model           string `json:"model"`
	Firmware        string `json:"firmware"`
	Library         string `json:"library"`
	LibraryVersion  string `json:"libraryVersion"`
	CryptokiVersion string `json:"cryptokiVersion"`
}

func (cfg Config) withDefaults() Config {
	if cfg.Sessions <= 0 {
		cfg.Sessions = 1
	}
	if cfg.AsymmetricSessions <= 0 {
		cfg.AsymmetricSessions = runtime.NumCPU()
	}
	if cfg.Queue <= 0 {
		cfg.Queue = 1024
	}
	if cfg.HandleCache <= 0 {
		cfg.HandleCache = 1024
	}
	if cfg.RecoveryWait <= 0 {
		cfg.RecoveryWait = 2 * time.Second
	}
	if cfg.HungAfter <= 0 {
		cfg.HungAfter = 30 * time.Second
	}
	if cfg.IVSource == "" {
		cfg.IVSource = IVAuto
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}
