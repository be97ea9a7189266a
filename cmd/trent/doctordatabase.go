package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/store"
)

// doctorsDatabase is what doctor asks of the database.
type doctorsDatabase struct {
	databaseDiagnosis
	account    deploymentSettings
	db         *store.DB
	deployment store.Deployment
	// known are the proofs that the token is examined with, before the rows
	// that have them can be verified; nil if they could not be read.
	known map[hsm.DomainID]hsm.Proofs
	fault error // of open
}

// open reads which domain to look for and the proofs of what it shares.
func (d *doctorsDatabase) open(ctx context.Context, cfg store.Config) (err error) {
	if d.db, err = openDatabase(ctx, cfg); err != nil {
		return err
	}
	d.deployment, err = d.db.Deployment(ctx)
	if err == nil {
		d.Deployment, d.Account, d.State = uuid.UUID(d.deployment.ID).String(), d.deployment.Account, d.deployment.State
	}
	if err := finished(d.deployment, err); err != nil {
		return err
	}
	known, err := proofs(ctx, d.db)
	if err != nil {
		return err
	}
	d.known = map[hsm.DomainID]hsm.Proofs{d.deployment.ID: known}
	return nil
}

func (d *doctorsDatabase) close() {
	if d.db != nil {
		d.db.Close()
	}
}

// examine returns what keeps trent serve from serving the deployment from the
// token of cfg, of which report was made.
func (d *doctorsDatabase) examine(ctx context.Context, cfg hsm.Config, report hsm.Report) error {
	if d.fault != nil {
		return d.fault
	}
	if !report.LoggedIn {
		return errors.New("whether it belongs to the token cannot be said before the token's errors are mended")
	}
	if !slices.Contains(report.Domains, hsm.DomainID(d.deployment.ID).String()) {
		return fmt.Errorf("token %q has no domain of deployment %s: name the token that trent init set up for this database, or the database of this token; one that is to be a further member has none before trent domain enrol", report.Token.Label, d.Deployment)
	}
	// A second login, with a PIN that has just proved right.
	token, err := hsm.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("opening the HSM: %w", err)
	}
	defer token.Close() //nolint:errcheck // only read from
	domain, err := token.OpenProved(ctx, d.deployment.ID, d.known[d.deployment.ID])
	if err != nil {
		return fmt.Errorf("opening the domain of deployment %s on token %q: %w", d.Deployment, token.Info().Label, err)
	}
	if d.deployment, err = verify(ctx, domain, d.db, d.deployment); err != nil {
		return err
	}
	if err := d.proved(ctx, domain); err != nil {
		return err
	}
	if d.account.Account == "" {
		return finished(d.deployment, nil)
	}
	return servable(d.deployment, nil, systemConfig{account: d.account.Account, partition: d.account.Partition})
}

// proved demands that the proofs that the token was examined with are those of
// the sealed rows, and that it holds what these say is active.
func (d *doctorsDatabase) proved(ctx context.Context, domain *hsm.Member) error {
	_, all, err := d.db.DomainGenerations(ctx)
	if err != nil {
		return fmt.Errorf("verifying the generations of the domain keys: %w", err)
	}
	if !maps.Equal(kms.ProofsOf(all), d.known[d.deployment.ID]) {
		return errors.New("the generations of the domain keys were changed meanwhile: run this again")
	}
	if d.Dependences, err = kms.Dependences(ctx, d.db, all); err != nil {
		return err //nolint:wrapcheck // says it all
	}
	for _, g := range all {
		if g.State != store.GenerationActive {
			continue
		}
		if err := domain.SetActive(ctx, uint32(g.Number)); err != nil { // #nosec G115 -- ours
			return fmt.Errorf("the active generation of the domain keys is %d, which this token cannot serve: restore the token that holds it, or enrol this one (docs/domain.md): %w", g.Number, err)
		}
	}
	return nil
}
