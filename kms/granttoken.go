package kms

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

const grantTokenLabel = "trent grant token\x00"

// grantToken names a grant: base64url of a sealed token. With tokenVersion in
// front none begins with "-", which the AWS CLI would take for an option.
// Whoever has the token may not do more than without it: it is no secret. Salt
// makes the tokens of one grant differ, as AWS's do.
type grantToken struct {
	Account, Region, Key, Grant string
	Salt                        []byte
}

// newGrantToken makes a token of a grant.
func (s *Service) newGrantToken(ctx context.Context, k *key, grantID string) (string, error) {
	t := grantToken{k.Account, k.Region, k.ID, grantID, make([]byte, 8)}
	if _, err := rand.Read(t.Salt); err != nil {
		return "", fmt.Errorf("making a grant token: %w", err)
	}
	token, err := s.sealToken(ctx, grantTokenLabel, t)
	return base64.RawURLEncoding.EncodeToString(token), err
}

// openGrantToken returns what a token of ours says.
func (s *Service) openGrantToken(ctx context.Context, text string) (grantToken, error) {
	var t grantToken
	token, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return t, &types.InvalidGrantTokenException{}
	}
	ok, err := s.openToken(ctx, grantTokenLabel, token, &t)
	if err == nil && !ok {
		err = &types.InvalidGrantTokenException{}
	}
	return t, err
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
