package kms

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/trent-kms/trent/sigv4"
	"github.com/trent-kms/trent/store"
)

// credential is a verified access key with its principal and the signing keys
// derived from it. The secret itself stays in the HSM.
type credential struct {
	accessKey store.AccessKey
	principal store.Principal

	mu sync.Mutex
	// signing holds the day-scoped signing keys by region, of the last two
	// dates asked for. Guarded by mu.
	signing map[signingScope]*sigv4.Key
}

type signingScope struct{ date, region string }

// accessKeyForm is IAM's. What has another form names no access key, and need
// not be a text that a database could look for.
var accessKeyForm = regexp.MustCompile(`^[A-Za-z0-9_]{1,128}$`)

// maxSigningKeys bounds a credential's signing keys: yesterday, today and
// tomorrow (clock skew at midnight) in a handful of regions.
const maxSigningKeys = 64

// SigningKey returns the SigV4 signing key of an access key for one day
// ("20060102"), region and the service kms. The HSM computes
// HMAC-SHA-256("AWS4" ‖ secret, date); only what follows from that, which is
// worth nothing on another day, is in our memory. Unknown and inactive access
// keys give sigv4.ErrUnknownAccessKey.
func (s *Service) SigningKey(ctx context.Context, accessKeyID, date, region string) (*sigv4.Key, error) {
	cred, err := s.credential(ctx, accessKeyID)
	if err != nil {
		return nil, err
	}
	scope := signingScope{date, region}
	cred.mu.Lock()
	signingKey, ok := cred.signing[scope]
	cred.mu.Unlock()
	if ok {
		return signingKey, nil
	}
	if day, err := time.Parse("20060102", date); err != nil || time.Since(day).Abs() > 48*time.Hour {
		// The clock check will refuse it; the HSM need not be asked.
		return nil, sigv4.ErrUnknownAccessKey
	}
	dateKey, err := s.domain.HMAC(ctx, cred.accessKey.Secret, []byte(date))
	if err != nil {
		return nil, fmt.Errorf("deriving the signing key of %s: %w", accessKeyID, err)
	}
	signingKey = sigv4.DeriveSigningKey(dateKey, region, "kms")
	clear(dateKey)
	cred.mu.Lock()
	defer cred.mu.Unlock()
	if len(cred.signing) >= maxSigningKeys {
		clear(cred.signing)
	}
	cred.signing[scope] = signingKey
	return signingKey, nil
}

// credential returns the active access key of that id and its principal.
func (s *Service) credential(ctx context.Context, accessKeyID string) (*credential, error) {
	if cred, ok := s.cache.accessKeys.GetIfPresent(accessKeyID); ok {
		return cred, nil
	}
	if !accessKeyForm.MatchString(accessKeyID) {
		return nil, sigv4.ErrUnknownAccessKey
	}
	before := s.cache.head.Load()
	accessKey, err := s.db.AccessKey(ctx, accessKeyID)
	if errors.Is(err, store.ErrNotFound) {
		return nil, sigv4.ErrUnknownAccessKey
	}
	if err != nil {
		return nil, err
	}
	if accessKey.Status != statusActive {
		return nil, sigv4.ErrUnknownAccessKey
	}
	principal, err := s.db.Principal(ctx, accessKey.Account, accessKey.PrincipalID)
	if err != nil {
		return nil, fmt.Errorf("loading the principal of access key %s: %w", accessKeyID, orphan(err))
	}
	cred := &credential{accessKey: accessKey, principal: principal, signing: map[signingScope]*sigv4.Key{}}
	s.cache.insert(before, func() { s.cache.accessKeys.Set(accessKeyID, cred) })
	return cred, nil
}
