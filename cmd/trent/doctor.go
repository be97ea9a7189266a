package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
)

type doctorCmd struct {
	deploymentSettings
	hsmSettings
	databaseSettings
	logSettings
	memberFlag
	JSON bool `name:"json" help:"Print JSON."`
}

// Help implements kong.HelpProvider.
func (*doctorCmd) Help() string {
	return `It leaves nothing on the token: what it tries, it tries with throw-away keys of its own session. Without a database URL only the token is examined, with one also whether the two belong together, and to --account if that is given; and only with one can keys be proved that came here by enrolment. Of several [[hsm-member]] tables it is the first's token, or that of --member. The exit code is 0 if Trent can run on what was found.

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
	// Dependences are what not all members can use.
	Dependences []kms.Dependence `json:"dependences,omitempty"`
}

// Run examines and prints.
func (c *doctorCmd) Run(ctx context.Context) error {
	log := c.logger(os.Stderr, "text")
	harden(log)
	if err := c.choose(c.Member); err != nil {
		return err
	}
	domain, err := c.hsmSettings.config(log, nil)
	if err != nil {
		return err
	}
	cfg := domain.Members[0].Config
	if err := setEnvironment(domain.Members[0].Environment); err != nil {
		return err
	}
	var d diagnosis
	db := &doctorsDatabase{account: c.deploymentSettings}
	database, err := c.databaseSettings.config(log, nil)
	switch {
	case errors.Is(err, errNoSecret):
	case err != nil:
		return err
	default:
		d.Database = &db.databaseDiagnosis
		db.fault = db.open(ctx, database)
		defer db.close()
	}
	if d.HSM, err = examine(ctx, cfg, db.known, examinationTime); err != nil {
		return fmt.Errorf("examining the token: %w", err)
	}
	d.Usable = d.HSM.Usable()
	if d.Database != nil {
		if err := db.examine(ctx, cfg, d.HSM); err != nil {
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

// examinationTime is enough for slow devices, of which one that hangs cannot be
// told before; lastCall is for how long the call that runs as the examination is
// given up may go on.
const (
	examinationTime = 5 * time.Minute
	lastCall        = 5 * time.Second
)

// examine is hsm.Examine, which runs in this process: what hangs in the vendor's
// library is left behind, and ends with the process.
func examine(ctx context.Context, cfg hsm.Config, known map[hsm.DomainID]hsm.Proofs, within time.Duration) (report hsm.Report, err error) {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	done := make(chan hsm.Report, 1)
	go func() {
		r, _ := hsm.Examine(limited, cfg, known) // limited's own error
		done <- r
	}()
	select {
	case report = <-done:
	case <-limited.Done():
		select {
		case report = <-done:
		case <-time.After(lastCall):
			err = fmt.Errorf("a call into %s does not come back: see the vendor's own log and whether its service and the device run, then run doctor again", cfg.Module)
		}
	}
	if ctx.Err() == nil && limited.Err() != nil {
		return report, errors.Join(fmt.Errorf("it is not done after %s", within), err)
	}
	return report, errors.Join(ctx.Err(), err)
}

func (c *doctorCmd) print(w io.Writer, d diagnosis) error {
	if c.JSON {
		return printJSON(w, d)
	}
	out := &printer{w: w}
	out.report(d.HSM)
	if d.Database != nil {
		out.database(*d.Database)
	}
	return out.err
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v) //nolint:wrapcheck // standard output's
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
	for _, dependence := range d.Dependences {
		p.printf("Database: warning: %s\n", dependence)
	}
	if d.Problem != "" {
		p.printf("Database: error: %s\n", d.Problem)
	}
}
