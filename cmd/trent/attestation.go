package main

import (
	"fmt"
	"os"

	"github.com/trent-kms/trent/attestation"
)

// attestationSettings say whose attestation documents are believed.
type attestationSettings struct {
	AttestationRoots string `name:"attestation-roots" env:"TRENT_ATTESTATION_ROOTS" placeholder:"FILE" type:"path" help:"Root certificates (PEM) that vouch for the attestation documents of Recipient. Without it Recipient is refused."`
}

// roots reads the certificates, nil if no file is named.
func (s attestationSettings) roots() (*attestation.Roots, error) {
	if s.AttestationRoots == "" {
		return nil, nil
	}
	text, err := os.ReadFile(s.AttestationRoots)
	if err != nil {
		return nil, fmt.Errorf("reading attestation roots: %w", err)
	}
	roots, err := attestation.ParseRoots(text)
	if err != nil {
		return nil, fmt.Errorf("reading attestation roots from %s: %w: the file holds root certificates as PEM and nothing else", s.AttestationRoots, err)
	}
	return roots, nil
}
