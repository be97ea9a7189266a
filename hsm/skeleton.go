package hsm

import (
	"context"
	"time"
)

type Token struct{}

func Open(ctx context.Context, cfg Config) (*Token, error) { return nil, ErrUnavailable }
func (t *Token) Close() error                              { return nil }
func (t *Token) Info() Info                                { return Info{} }
func (t *Token) Ping(ctx context.Context) error            { return ErrUnavailable }

// Report is what doctor shows about a token.
type Report struct {
	Module     string           `json:"module"`
	Info       *Info            `json:"token,omitempty"`
	Tokens     []Info           `json:"tokens"`
	LoggedIn   bool             `json:"loggedIn"`
	Mechanisms []MechanismCheck `json:"mechanisms"`
	Findings   []Finding        `json:"findings"`
	Domains    []string         `json:"domains"`
}

// MechanismCheck says whether the token has a mechanism that Trent uses.
type MechanismCheck struct {
	Name     string `json:"name"`
	Purpose  string `json:"purpose"`
	Required bool   `json:"required"`
	Present  bool   `json:"present"`
}

// Finding is one thing that doctor has to say, with the next step.
type Finding struct {
	Severity string `json:"severity"`
	Text     string `json:"text"`
}

// Usable reports whether nothing that Trent needs is missing.
func (r Report) Usable() bool { return false }

func Examine(ctx context.Context, cfg Config) (Report, error) { return Report{}, ErrUnavailable }

type DomainID [16]byte

func (t *Token) Domains(ctx context.Context) ([]DomainID, error)     { return nil, ErrUnavailable }
func (t *Token) CreateDomain(ctx context.Context, id DomainID) error { return ErrUnavailable }
func (t *Token) OpenDomain(ctx context.Context, id DomainID) (*Domain, error) {
	return nil, ErrUnavailable
}

type Domain struct{}

type EKT []byte

// Provenance says where a backing key was made and what the device attests
// about it.
type Provenance struct {
	Mechanism        string `json:"mechanism"`
	Local            bool   `json:"local"`
	NeverExtractable bool   `json:"neverExtractable"`
	Device           Info   `json:"device"`
	Generation       uint32 `json:"domainKeyGeneration"`
	Profile          string `json:"profile"`
}

func (d *Domain) GenerateAES(ctx context.Context) (EKT, Provenance, error) {
	return nil, Provenance{}, ErrUnavailable
}
func (d *Domain) ImportSecret(ctx context.Context, secret []byte) (EKT, error) {
	return nil, ErrUnavailable
}
func (d *Domain) Encrypt(ctx context.Context, ekt EKT, iv, aad, plaintext []byte) ([]byte, error) {
	return nil, ErrUnavailable
}
func (d *Domain) Decrypt(ctx context.Context, ekt EKT, iv, aad, ciphertext []byte) ([]byte, error) {
	return nil, ErrUnavailable
}
func (d *Domain) HMAC(ctx context.Context, ekt EKT, message []byte) ([]byte, error) {
	return nil, ErrUnavailable
}
func (d *Domain) CheckValue(ctx context.Context, ekt EKT) ([]byte, error) {
	return nil, ErrUnavailable
}
func (d *Domain) Random(ctx context.Context, p []byte) error { return ErrUnavailable }
func (d *Domain) Sum(ctx context.Context, message []byte) (generation uint32, mac []byte, err error) {
	return 0, nil, ErrUnavailable
}
func (d *Domain) Verify(ctx context.Context, generation uint32, message, mac []byte) error {
	return ErrUnavailable
}

func RawBench(cfg Config, d time.Duration, sessions int, decrypt bool) (opsPerSec float64, err error) {
	return 0, ErrUnavailable
}
