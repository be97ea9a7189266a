package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

type doctorCmd struct {
	deploymentSettings
	hsmSettings
	databaseSettings
	logSettings
	JSON bool `name:"json" help:"Print JSON."`
}

// Help implements kong.HelpProvider.
func (*doctorCmd) Help() string {
	return `It leaves nothing on the token: what it tries, it tries with throw-away keys of its own session. Without a database URL only the token is examined, with one also whether the two belong together, and to --account if that is given. The exit code is 0 if Trent can run on what was found.

Example:

    trent doctor --hsm-module /usr/lib/softhsm/libsofthsm2.so --hsm-token trent --pin-file /etc/trent/pin`
}

// Validate is called by kong when all settings are known.
func (c *doctorCmd) Validate() error {
	err := errors.Join(c.hsmSettings.Validate(), c.databaseSettings.Validate())
	if c.Account != "" {
		err = errors.Join(err, c.deploymentSettings.Validate())
	}
	return err
}

// diagnosis is what doctor found.
type diagnosis struct {
	HSM      hsm.Report         `json:"hsm"`
	Database *databaseDiagnosis `json:"database,omitempty"`
	Usable   bool               `json:"usable"`
}

type databaseDiagnosis struct {
	Deployment string `json:"deployment,omitempty"`
	Account    string `json:"account,omitempty"`
	State      string `json:"state,omitempty"`
	Problem    string `json:"problem,omitempty"`
}

// Run examines and prints.
func (c *doctorCmd) Run(ctx context.Context) error {
	log := c.logger(os.Stderr, "text")
	harden(log)
	domain, err := c.hsmSettings.config(log, nil)
	if err != nil {
		return err
	}
	cfg := domain.Members[0].Config
	if err := setEnvironment(domain.Members[0].Environment); err != nil {
		return err
	}
	var d diagnosis
	if d.HSM, err = hsm.Examine(ctx, cfg); err != nil {
		return fmt.Errorf("examining the token: %w", err)
	}
	d.Usable = d.HSM.Usable()
	database, err := c.databaseSettings.config(log, nil)
	switch {
	case errors.Is(err, errNoSecret):
	case err != nil:
		return err
	default:
		d.Database = &databaseDiagnosis{}
		if err := c.examine(ctx, d.Database, database, cfg, d.HSM); err != nil {
			d.Database.Problem, d.Usable = err.Error(), false
		}
	}
	if err := c.print(os.Stdout, d); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	if !d.Usable {
		return errors.New("Trent cannot run on this: see above")
	}
	return nil
}

// examine describes the database's deployment in d, and returns what keeps
// trent serve from serving it from the token of cfg, of which report was made.
func (c *doctorCmd) examine(ctx context.Context, d *databaseDiagnosis, database store.Config, cfg hsm.Config, report hsm.Report) error {
	db, err := store.Open(ctx, database)
	if err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	defer db.Close()
	if err := db.CheckSchema(ctx); err != nil {
		return fmt.Errorf("checking the database: %w", err)
	}
	deployment, err := db.Deployment(ctx)
	if err == nil {
		d.Deployment, d.Account, d.State = uuid.UUID(deployment.ID).String(), deployment.Account, deployment.State
	}
	if err := finished(deployment, err); err != nil {
		return err
	}
	if !report.LoggedIn {
		return errors.New("whether it belongs to the token cannot be said before the token's errors are mended")
	}
	if !slices.Contains(report.Domains, hsm.DomainID(deployment.ID).String()) {
		return fmt.Errorf("token %q has no domain of deployment %s: name the token that trent init set up for this database, or the database of this token", report.Token.Label, d.Deployment)
	}
	// A second login, with a PIN that has just proved right.
	token, err := hsm.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("opening the HSM: %w", err)
	}
	defer token.Close() //nolint:errcheck // only read from
	deployment, err = openDomain(ctx, token, db, deployment)
	if err != nil {
		return err
	}
	if c.Account == "" {
		return finished(deployment, nil)
	}
	return servable(deployment, nil, systemConfig{account: c.Account, partition: c.Partition})
}

func (c *doctorCmd) print(w io.Writer, d diagnosis) error {
	if c.JSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(d)
	}
	out := &printer{w: w}
	out.report(d.HSM)
	if d.Database != nil {
		out.database(*d.Database)
	}
	return out.err
}

// printer keeps the first error of a series of prints.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) database(d databaseDiagnosis) {
	p.printf("\n")
	if d.Deployment != "" {
		p.printf("Database: deployment %s of account %s, %s\n", d.Deployment, d.Account, d.State)
	}
	if d.Problem != "" {
		p.printf("Database: error: %s\n", d.Problem)
	}
}
