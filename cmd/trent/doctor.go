package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

type doctorCmd struct {
	hsmSettings
	databaseSettings
	logSettings
	JSON bool `name:"json" help:"Print JSON."`
}

// Help implements kong.HelpProvider.
func (*doctorCmd) Help() string {
	return `It changes nothing. Without a database URL only the token is examined. The exit code is 0 if Trent can run on what was found.

Example:

    trent doctor --hsm-module /usr/lib/softhsm/libsofthsm2.so --hsm-token trent --pin-file /etc/trent/pin`
}

// Validate is called by kong when all settings are known.
func (c *doctorCmd) Validate() error {
	return errors.Join(c.hsmSettings.Validate(), c.databaseSettings.Validate())
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
	cfg, err := c.hsmSettings.config(log, nil)
	if err != nil {
		return err
	}
	var d diagnosis
	if d.HSM, err = hsm.Examine(ctx, cfg); err != nil {
		return fmt.Errorf("examining the token: %w", err)
	}
	d.Usable = d.HSM.Usable()
	if url, err := c.databaseSettings.config(log, nil); err == nil {
		d.Database = examineDatabase(ctx, url)
		d.Usable = d.Usable && d.Database.Problem == ""
	} else if c.DatabaseURLFile != "" {
		return err
	}
	if err := c.print(os.Stdout, d); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	if !d.Usable {
		return errors.New("Trent cannot run on this: see above")
	}
	return nil
}

func examineDatabase(ctx context.Context, cfg store.Config) *databaseDiagnosis {
	db, err := store.Open(ctx, cfg)
	if err != nil {
		return &databaseDiagnosis{Problem: err.Error()}
	}
	defer db.Close()
	if err := db.CheckSchema(ctx); err != nil {
		return &databaseDiagnosis{Problem: err.Error()}
	}
	deployment, err := db.Deployment(ctx)
	if err != nil {
		return &databaseDiagnosis{Problem: fmt.Sprintf("reading the deployment: %v (an empty database needs trent init)", err)}
	}
	return &databaseDiagnosis{
		Deployment: uuid.UUID(deployment.ID).String(), Account: deployment.Account, State: deployment.State,
	}
}

func (c *doctorCmd) print(w io.Writer, d diagnosis) error {
	if c.JSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(d)
	}
	out := &printer{w: w}
	out.report(d.HSM)
	if d.Database != nil && d.Database.Problem != "" {
		out.printf("\nDatabase: %s\n", d.Database.Problem)
	} else if d.Database != nil {
		out.printf("\nDatabase: deployment %s of account %s, %s\n", d.Database.Deployment, d.Database.Account, d.Database.State)
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

func (p *printer) report(r hsm.Report) {
	p.printf("Module:   %s\n", r.Module)
	if r.Token != nil {
		p.printf("Token:    %q, serial %s, %s %s, firmware %s\n", r.Token.Label, r.Token.Serial, r.Token.Manufacturer, r.Token.Model, r.Token.Firmware)
		p.printf("Library:  %s %s, PKCS#11 %s\n", r.Token.Library, r.Token.LibraryVersion, r.Token.CryptokiVersion)
	} else {
		p.printf("Token:    not found; the module shows %d\n", len(r.Tokens))
		for _, token := range r.Tokens {
			p.printf("          %q, serial %s\n", token.Label, token.Serial)
		}
	}
	for _, domain := range r.Domains {
		p.printf("Domain:   %s\n", domain)
	}
	if len(r.Mechanisms) > 0 {
		p.printf("\nMechanisms:\n")
	}
	for _, m := range r.Mechanisms {
		state := "present"
		switch {
		case !m.Present && m.Required:
			state = "MISSING"
		case !m.Present:
			state = "absent"
		}
		p.printf("  %-8s %-28s %s\n", state, m.Name, m.Purpose)
	}
	if len(r.KeySpecs) > 0 {
		p.printf("\nKey specs:\n")
	}
	for _, s := range r.KeySpecs {
		state := "works"
		if !s.Supported {
			state = "absent"
		}
		p.printf("  %-8s %-28s %s\n", state, s.Spec, s.Missing)
	}
	if len(r.Findings) > 0 {
		p.printf("\nFindings:\n")
	}
	for _, f := range r.Findings {
		p.printf("  %s: %s\n", f.Severity, f.Text)
	}
}
