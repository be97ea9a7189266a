package kms

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// grantTokenVersion begins every grant token:
//
//	token = base64url(grantTokenVersion 4OCTET(MAC generation) OCTET(length of mac) mac body)
//
// body is JSON of grantToken. The MAC is made in the HSM over SHA-256 of
// "trent grant token\x00" and body; the deployment's MAC key sets deployments
// apart. With this version in front no token begins with "-", which the AWS
// CLI would take for an option.
const grantTokenVersion = 1

// grantToken names a grant. Whoever has the token may not do more than without
// it: it is no secret. Salt makes the tokens of one grant differ, as AWS's do.
type grantToken struct {
	Account, Region, Key, Grant string
	Salt                        []byte
}

func grantTokenDigest(body []byte) []byte {
	sum := sha256.Sum256(append([]byte("trent grant token\x00"), body...))
	return sum[:]
}

// newGrantToken makes a token of a grant.
func (s *Service) newGrantToken(ctx context.Context, k *key, grantID string) (string, error) {
	t := grantToken{k.Account, k.Region, k.ID, grantID, make([]byte, 8)}
	if _, err := rand.Read(t.Salt); err != nil {
		return "", fmt.Errorf("making a grant token: %w", err)
	}
	body, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("encoding a grant token: %w", err)
	}
	generation, mac, err := s.domain.Sum(ctx, grantTokenDigest(body))
	if err != nil {
		return "", fmt.Errorf("sealing a grant token: %w", err)
	}
	token := binary.BigEndian.AppendUint32([]byte{grantTokenVersion}, generation)
	token = append(append(token, byte(len(mac))), mac...)
	return base64.RawURLEncoding.EncodeToString(append(token, body...)), nil
}

// openGrantToken returns what a token of ours says.
func (s *Service) openGrantToken(ctx context.Context, text string) (grantToken, error) {
	var t grantToken
	token, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(token) < 6 || token[0] != grantTokenVersion || len(token) < 6+int(token[5]) {
		return t, &types.InvalidGrantTokenException{}
	}
	mac, body := token[6:6+int(token[5])], token[6+int(token[5]):]
	ok, err := s.domain.Verify(ctx, binary.BigEndian.Uint32(token[1:]), grantTokenDigest(body), mac)
	if err != nil {
		return t, fmt.Errorf("verifying a grant token: %w", err)
	}
	if !ok {
		return t, &types.InvalidGrantTokenException{}
	}
	if err := json.Unmarshal(body, &t); err != nil {
		return t, fmt.Errorf("reading a grant token of our own: %w", err)
	}
	return t, nil
}

// checkGrantTokens refuses tokens that this deployment did not make. Those
// that it did make change nothing: grants have no effect yet.
func (s *Service) checkGrantTokens(ctx context.Context, tokens []string) error {
	for _, token := range tokens {
		if _, err := s.openGrantToken(ctx, token); err != nil {
			return err
		}
	}
	return nil
}
