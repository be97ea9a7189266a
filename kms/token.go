package kms

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// What callers bring back to us, import tokens and grant tokens, is
//
//	token = tokenVersion 4OCTET(MAC generation) OCTET(length of mac) mac body
//
// where body is JSON, and mac is made in the HSM over SHA-256 of a label, which
// sets the kinds of tokens apart, and body; the deployment's MAC key sets
// deployments apart.
const tokenVersion = 1

// tokenHeader is how many bytes stand before the MAC.
const tokenHeader = 1 + 4 + 1

func tokenDigest(label string, body []byte) []byte {
	sum := sha256.Sum256(append([]byte(label), body...))
	return sum[:]
}

// sealToken makes a token of what it says.
func (s *Service) sealToken(ctx context.Context, label string, says any) ([]byte, error) {
	body, err := json.Marshal(says)
	if err != nil {
		return nil, fmt.Errorf("encoding a token: %w", err)
	}
	generation, mac, err := s.domain.Sum(ctx, tokenDigest(label, body))
	if err != nil {
		return nil, fmt.Errorf("sealing a token: %w", err)
	}
	token := binary.BigEndian.AppendUint32([]byte{tokenVersion}, generation)
	token = append(append(token, byte(len(mac))), mac...)
	return append(token, body...), nil
}

// openToken reads into says what a token of ours says; false means that this
// deployment did not make it.
func (s *Service) openToken(ctx context.Context, label string, token []byte, says any) (bool, error) {
	if len(token) < tokenHeader || token[0] != tokenVersion || len(token) < tokenHeader+int(token[tokenHeader-1]) {
		return false, nil
	}
	bodyAt := tokenHeader + int(token[tokenHeader-1])
	mac, body := token[tokenHeader:bodyAt], token[bodyAt:]
	ok, err := s.domain.Verify(ctx, binary.BigEndian.Uint32(token[1:]), tokenDigest(label, body), mac)
	if err != nil {
		return false, fmt.Errorf("verifying a token: %w", err)
	}
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(body, says); err != nil {
		return false, fmt.Errorf("reading a token of our own: %w", err)
	}
	return true, nil
}
