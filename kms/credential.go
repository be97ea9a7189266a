package kms

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
	if accessKey.Status != store.AccessKeyActive {
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

// administrators alarms when one has a new access key: who has the secret has
// all rights, and nobody need have asked for it through the API.
type administrators struct {
	newest *prometheus.GaugeVec // has no labels, and shows nothing before it is known
	latest time.Time            // what newest shows; the cache's follower has it
}

func newAdministrators(metrics prometheus.Registerer) (*administrators, error) {
	a := &administrators{newest: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "trent_kms_administrator_access_key_created_seconds",
		Help: "When the newest access key of an administrator was made that this process has seen, in seconds since 1970.",
	}, nil)}
	if metrics == nil {
		return a, nil
	}
	if err := metrics.Register(a.newest); err != nil {
		return nil, fmt.Errorf("registering the metric of administrators: %w", err)
	}
	return a, nil
}

// noticeAdministrators looks for access keys of administrators that are newer
// than those seen before. One that is deleted again has been seen all the same.
// It is done once all have been looked at: what failed is to be found the next
// time.
func (s *Service) noticeAdministrators(ctx context.Context) error {
	found, err := s.administratorsAccessKeys(ctx)
	if err != nil {
		return fmt.Errorf("looking for new access keys of administrators: %w", err)
	}
	before := s.administrators.latest
	for user, all := range found {
		for _, k := range all {
			if !before.IsZero() && k.Created.After(before) {
				s.log.Warn("an administrator has a new access key", "user", user, "access_key", k.ID, "created", k.Created)
			}
			if k.Created.After(s.administrators.latest) {
				s.administrators.latest = k.Created
			}
		}
	}
	if !s.administrators.latest.IsZero() {
		s.administrators.newest.WithLabelValues().Set(float64(s.administrators.latest.UnixMilli()) / 1000)
	}
	return nil
}

// administratorsAccessKeys are by their users' ARNs. It passes over who has a
// row that is not as Trent wrote it: that has its own alarm, and is not asked
// for again and again.
func (s *Service) administratorsAccessKeys(ctx context.Context) (found map[string][]store.AccessKey, err error) {
	untampered := func(err error) error {
		if tampered := (*store.ErrTampered)(nil); errors.As(err, &tampered) {
			s.log.Error("looking for new access keys of administrators", "error", err)
			return nil
		}
		return err
	}
	users, err := s.db.Principals(ctx, s.cfg.Account)
	if err != nil {
		return nil, untampered(err)
	}
	found = map[string][]store.AccessKey{}
	for _, user := range users {
		if !user.Admin {
			continue
		}
		all, err := s.db.AccessKeys(ctx, user.Account, user.ID)
		if err := untampered(err); err != nil {
			return nil, fmt.Errorf("of %s: %w", user.Name, err)
		}
		found[user.ARN] = all
	}
	return found, nil
}
