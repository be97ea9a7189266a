// Package kms implements the operations of AWS KMS on keys that live in an
// HSM. Each operation reads the same way: authorize (which resolves the key),
// check the key's state and usage, make one HSM call, and have the audit
// record committed before the answer leaves (Service.Do, Service.change).
//
// Its vocabulary is the AWS SDK's: inputs, outputs and error types are those
// of github.com/aws/aws-sdk-go-v2/service/kms.
package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/attestation"
	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// Config is what a Service stands on. All fields but AttestationRoots,
// Now, Logger and Metrics are required.
type Config struct {
	Domain *hsm.Domain
	DB     *store.DB
	Audit  *audit.Writer

	// Account is the 12-digit account id, Partition the ARN partition ("aws").
	Account   string
	Partition string

	// Regions are the region names served; a request's signature scope says
	// which one it means.
	Regions []string

	// AttestationRoots vouch for the attestation documents of Recipient. Nil
	// means that Recipient is refused.
	AttestationRoots *attestation.Roots

	// Now is the clock of key states (deletion dates, creation dates).
	// Nil means time.Now.
	Now func() time.Time

	// Logger receives what operators must see. Nil means slog.Default.
	Logger *slog.Logger

	// Metrics is where collectors are registered. Nil means none.
	Metrics prometheus.Registerer
}

// Service answers KMS operations. It is safe for concurrent use.
type Service struct {
	cfg     Config
	domain  *hsm.Domain
	db      *store.DB
	audit   *audit.Writer
	log     *slog.Logger
	now     func() time.Time
	cache   *cache
	budgets *budgets
	usages  *usages

	succession     *succession
	administrators *administrators
	cursors        cursors
	grantLanes     [grantLaneCount]chan struct{}
}

// New returns a Service. It starts nothing; see Run.
func New(cfg Config) (*Service, error) {
	if cfg.Domain == nil || cfg.DB == nil || cfg.Audit == nil {
		return nil, errors.New("kms: Domain, DB and Audit are required")
	}
	if len(cfg.Regions) == 0 {
		return nil, errors.New("kms: at least one region is required")
	}
	if cfg.Now == nil {
		cfg.Now = clock
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	succession, err := newSuccession(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	administrators, err := newAdministrators(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	cache, err := newCache(cfg.DB, cfg.Domain, cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("making caches: %w", err)
	}
	s := &Service{
		cfg:     cfg,
		domain:  cfg.Domain,
		db:      cfg.DB,
		audit:   cfg.Audit,
		log:     cfg.Logger,
		now:     cfg.Now,
		cache:   cache,
		budgets: newBudgets(cfg.DB, cfg.Logger, cfg.Metrics),
		usages:  newUsages(cfg.DB),

		succession:     succession,
		administrators: administrators,
	}
	s.cache.regenerate = s.FollowGenerations
	s.cache.newAccessKeys = s.noticeAdministrators
	s.budgets.renew = s.renew
	for i := range s.grantLanes {
		s.grantLanes[i] = make(chan struct{}, 1)
	}
	return s, nil
}

// Ready reports whether the service can do its work: one operation in the HSM
// and one round trip to the database; and the audit log goes on.
func (s *Service) Ready(ctx context.Context) error {
	for _, part := range []struct {
		name string
		ask  func(context.Context) error
	}{
		{"the HSM", s.domain.Ping},
		{"the audit log", func(context.Context) error { return s.audit.Err() }},
		{"the database", s.db.Ping},
		{"the audit log", func(context.Context) error { return s.audit.Failing() }},
	} {
		if err := part.ask(ctx); err != nil {
			return &NotReadyError{part.name, err}
		}
	}
	return nil
}

// NotReadyError names the part without which no call can be answered.
type NotReadyError struct {
	Part string // "the HSM", "the database" or "the audit log"
	Err  error
}

func (e *NotReadyError) Error() string { return "asking " + e.Part + ": " + e.Err.Error() }

// Unwrap returns the part's own error.
func (e *NotReadyError) Unwrap() error { return e.Err }
