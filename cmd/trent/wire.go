package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/api"
	"github.com/trent-kms/trent/attestation"
	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/store"
)

// systemConfig is what a serving process stands on.
type systemConfig struct {
	hsm                hsm.DomainConfig // without its ID, which the database knows
	store              store.Config
	account, partition string
	regions            []string
	roots              *attestation.Roots // nil: Recipient is refused
	host               string             // this process's name in the audit log
	log                *slog.Logger
	metrics            *prometheus.Registry
}

// system is all that is behind the listeners. Its parts are opened in the
// order of the fields and closed in the reverse order.
type system struct {
	db         *store.DB
	deployment store.Deployment
	token      *hsm.Token  // of trent init
	domain     *hsm.Domain // of a serving process
	audit      *audit.Writer
	service    *kms.Service
	handler    http.Handler
}

// closeTimeout bounds the flushing of the audit log at the end.
const closeTimeout = 10 * time.Second

// gcPercent trades memory for time: the live heap is some tens of MB with full
// caches, and collecting it at every doubling took a tenth of the CPU.
const gcPercent = 400

// openSystem opens database and HSM, checks that they belong together and
// to this configuration, and builds the service.
func openSystem(ctx context.Context, cfg systemConfig) (_ *system, err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	s := &system{}
	defer func() {
		if err != nil {
			s.close(ctx, cfg.log)
		}
	}()
	if s.db, err = openDatabase(ctx, cfg.store); err != nil {
		return nil, err
	}
	s.deployment, err = s.db.Deployment(ctx)
	if err := servable(s.deployment, err, cfg); err != nil {
		return nil, err
	}
	cfg.hsm.ID = s.deployment.ID
	if cfg.hsm.Proofs, err = proofs(ctx, s.db); err != nil {
		return nil, err
	}
	if s.domain, err = hsm.OpenDomain(ctx, cfg.hsm); err != nil {
		return nil, fmt.Errorf("opening the HSM for deployment %s: %w", uuid.UUID(s.deployment.ID), err)
	}
	if s.deployment, err = verify(ctx, s.domain, s.db, s.deployment); err != nil {
		return nil, err
	}
	if err = servable(s.deployment, nil, cfg); err != nil {
		return nil, err
	}
	// An init that was interrupted at its very end has not done it.
	if err := kms.MarkActive(ctx, s.domain, s.deployment); errors.Is(err, hsm.ErrUnavailable) {
		return nil, err //nolint:wrapcheck // says it all
	} else if err != nil {
		cfg.log.Warn("the token keeps no mark that this deployment is active (some devices have no data objects): "+
			"trent init could not tell if somebody set the database back", "error", err)
	}
	if err := s.build(ctx, cfg); err != nil {
		return nil, err
	}
	s.announce(cfg)
	return s, nil
}

// build makes the service on what has been opened.
func (s *system) build(ctx context.Context, cfg systemConfig) error {
	var err error
	s.audit, err = audit.Open(ctx, audit.Config{
		DB: s.db, Host: cfg.host, Logger: cfg.log, Metrics: cfg.metrics,
	})
	if errors.Is(err, store.ErrHostTaken) {
		return fmt.Errorf("opening the audit log: %w (--host)", err)
	}
	if err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	s.service, err = kms.New(kms.Config{
		Domain: s.domain, DB: s.db, Audit: s.audit,
		Account: cfg.account, Partition: cfg.partition, Regions: cfg.regions,
		AttestationRoots: cfg.roots, Logger: cfg.log, Metrics: cfg.metrics,
	})
	if err != nil {
		return fmt.Errorf("making the service: %w", err)
	}
	if err := s.service.FollowGenerations(ctx); err != nil {
		return fmt.Errorf("choosing the domain keys: %w", err)
	}
	s.handler, err = api.New(api.Config{Service: s.service, Regions: cfg.regions, Logger: cfg.log, Metrics: cfg.metrics})
	if err != nil {
		return fmt.Errorf("making the API: %w", err)
	}
	return nil
}

// proofs are those by which members open generations that they hold together,
// before the rows that have them can be verified: kms.Service.FollowGenerations
// and kms.DomainAdmin put the verified ones in their place.
func proofs(ctx context.Context, db *store.DB) (hsm.Proofs, error) {
	found, err := db.Proofs(ctx)
	if err != nil {
		return nil, err //nolint:wrapcheck // says it all
	}
	all := hsm.Proofs{}
	for number, proof := range found {
		all[number] = hsm.Proof(proof)
	}
	return all, nil
}

// openDatabase opens a database that has this release's tables.
func openDatabase(ctx context.Context, cfg store.Config) (*store.DB, error) {
	db, err := store.Open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	if err := db.CheckSchema(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("checking the database: %w", err)
	}
	return db, nil
}

// verify reads the deployment again, and verifies its seal.
func verify(ctx context.Context, sealer store.Sealer, db *store.DB, d store.Deployment) (store.Deployment, error) {
	db.SetSealer(d.ID, sealer)
	verified, err := db.Deployment(ctx)
	var tampered *store.ErrTampered
	if errors.As(err, &tampered) {
		return d, fmt.Errorf("verifying the deployment row: %w: it was changed outside of Trent; restore the database from a backup", err)
	}
	if err != nil {
		return d, fmt.Errorf("verifying the deployment row: %w", err)
	}
	return verified, nil
}

// finished reports whether trent init has ended; err is that of reading d.
func finished(d store.Deployment, err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return errors.New("the database holds no deployment yet: run trent init with the same settings")
	case err != nil:
		return fmt.Errorf("reading the deployment: %w", err)
	case d.State != store.StateActive:
		return errors.New("the deployment is only half set up: run trent init again, with the same settings, to finish it")
	}
	return nil
}

// servable reports whether d can be served under this configuration.
func servable(d store.Deployment, err error, cfg systemConfig) error {
	if err := finished(d, err); err != nil {
		return err
	}
	if d.Account != cfg.account || d.Partition != cfg.partition {
		return fmt.Errorf("the deployment's account is %s in partition %s, which cannot change, but the settings say %s in %s: correct --account and --partition, or the database URL",
			d.Account, d.Partition, cfg.account, cfg.partition)
	}
	return nil
}

// announce logs what was found.
func (s *system) announce(cfg systemConfig) {
	for i, member := range s.domain.Health() {
		if token := member.Token; member.Serves {
			cfg.log.Info("token opened", "member", member.Name,
				"label", token.Label, "serial", token.Serial, "manufacturer", token.Manufacturer, "model", token.Model,
				"module", cfg.hsm.Members[i].Module, "library", token.Library, "library_version", token.LibraryVersion,
				"isolation", cfg.hsm.Isolation)
		}
	}
	cfg.log.Info("deployment opened",
		"deployment", uuid.UUID(s.deployment.ID).String(), "account", s.deployment.Account,
		"partition", s.deployment.Partition, "regions", cfg.regions, "host", cfg.host)
}

// close ends what was opened. What it cannot end in order it logs: the
// process is about to end anyway.
func (s *system) close(ctx context.Context, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if s.audit != nil {
		if err := s.audit.Close(ctx); err != nil {
			log.Error("closing the audit log", "error", err)
		}
	}
	if s.domain != nil {
		s.domain.Close()
	}
	if s.token != nil {
		if err := s.token.Close(); err != nil {
			log.Error("closing the token", "error", err)
		}
	}
	if s.db != nil {
		s.db.Close()
	}
}

// initialise makes a deployment on the first member, in this process, or
// finishes one that was interrupted.
func initialise(ctx context.Context, cfg systemConfig, admin string, show func(string, []byte) error) (err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if err := setEnvironment(cfg.hsm.Members[0].Environment); err != nil {
		return err
	}
	s := &system{}
	defer func() { s.close(ctx, cfg.log) }()
	if s.token, err = hsm.Open(ctx, cfg.hsm.Members[0].Config); err != nil {
		return fmt.Errorf("opening the HSM: %w", err)
	}
	if s.db, err = store.Open(ctx, cfg.store); err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	if err := s.db.Migrate(ctx); err != nil {
		return fmt.Errorf("migrating the database: %w", err)
	}
	err = kms.Initialise(ctx, kms.InitConfig{
		Token: s.token, DB: s.db, Account: cfg.account, Partition: cfg.partition, Admin: admin, Host: cfg.host,
		Show: show, Progress: func(step string) { cfg.log.Info(step) },
	})
	if err != nil {
		return fmt.Errorf("initialising: %w", err)
	}
	return nil
}
