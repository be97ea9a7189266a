package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/store"
)

// ceremonyCmd leads the security officer through what happens seldom and must
// not go wrong.
type ceremonyCmd struct {
	Setup     ceremonySetupCmd     `cmd:"" help:"First set-up of a token and a database, with the HSM's first backup."`
	Enrol     ceremonyEnrolCmd     `cmd:"" help:"Add a member: make a generation of the domain keys that all configured tokens hold."`
	Backup    ceremonyBackupCmd    `cmd:"" help:"Back up the HSM and confirm it for the generations that need it."`
	Recovery  ceremonyRecoveryCmd  `cmd:"" help:"Check that a restored token and a restored database belong together and open what they hold."`
	Rehearsal ceremonyRehearsalCmd `cmd:"" help:"Rehearse set-up, backup, adding a member and recovery on throw-away tokens and a database."`
}

// Help implements kong.HelpProvider.
func (*ceremonyCmd) Help() string {
	return "Rehearse first: that changes nothing on this machine.\n\nExample:\n\n    trent ceremony rehearsal --transcript rehearsal.txt"
}

type transcriptFlag struct {
	Transcript string `required:"" placeholder:"FILE" type:"path" help:"Write the transcript to this new file. It has no secrets."`
}

// conducted runs a ceremony from the terminal.
func (f transcriptFlag) conducted(ctx context.Context, s ceremony, do func(s ceremony) error) error {
	t, err := openTranscript(ctx, f.Transcript, os.Stdin, os.Stdout)
	if err != nil {
		return err
	}
	s.transcript = t
	return t.close(do(s))
}

// ceremonySettings are those of every ceremony but a rehearsal.
type ceremonySettings struct {
	domainSettings
	transcriptFlag
}

// hold runs a ceremony, once it is written down who is there.
func (c *ceremonySettings) hold(ctx context.Context, do func(s ceremony) error) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	return c.conducted(ctx, ceremony{cfg: cfg}, func(s ceremony) error {
		if err := s.present(); err != nil {
			return err
		}
		return do(s)
	})
}

type ceremonySetupCmd struct {
	deploymentSettings
	ceremonySettings
	adminSettings
	Credentials string `required:"" env:"TRENT_CREDENTIALS" placeholder:"FILE" type:"path" help:"Write the administrator's access key to this file (mode 0600)."`
}

// Help implements kong.HelpProvider.
func (*ceremonySetupCmd) Help() string {
	return `It asks, does what trent init does, and writes down who answered what and when. Interrupted, it is run again with another transcript. Rehearse it first: trent ceremony rehearsal.

Example:

    trent ceremony setup --config /etc/trent/trent.toml --credentials admin.env --transcript setup.txt`
}

// Validate is called by kong when all settings are known.
func (c *ceremonySetupCmd) Validate() error {
	return errors.Join(c.deploymentSettings.Validate(), c.domainSettings.Validate(), c.adminSettings.Validate())
}

// Run holds the ceremony.
func (c *ceremonySetupCmd) Run(ctx context.Context) error {
	return c.hold(ctx, func(s ceremony) error {
		return s.setup(ctx, c.deploymentSettings, c.Admin, c.Credentials)
	})
}

type ceremonyBackupCmd struct{ ceremonySettings }

// Help implements kong.HelpProvider.
func (*ceremonyBackupCmd) Help() string {
	return `After trent domain rotate, and whenever the HSM's backup is made anew.

Example:

    trent ceremony backup --config /etc/trent/trent.toml --transcript backup.txt`
}

// Run holds the ceremony.
func (c *ceremonyBackupCmd) Run(ctx context.Context) error {
	return c.hold(ctx, func(s ceremony) error { return s.backup(ctx) })
}

type ceremonyRecoveryCmd struct{ ceremonySettings }

// Help implements kong.HelpProvider.
func (*ceremonyRecoveryCmd) Help() string {
	return `Restore the HSM's backup and the database first, by their vendors' means; then run this with the settings of the restored ones, before trent serve.

Example:

    trent ceremony recovery --config /etc/trent/trent.toml --transcript recovery.txt`
}

// Run holds the ceremony.
func (c *ceremonyRecoveryCmd) Run(ctx context.Context) error {
	return c.hold(ctx, func(s ceremony) error { return s.recovery(ctx) })
}

// ceremony is one in progress.
type ceremony struct {
	*transcript
	cfg domainConfig
	// rehearsed: what is to be read from elsewhere is shown here, since there
	// is no device with a display and no earlier transcript.
	rehearsed bool
}

// compared is compare, but for a rehearsal.
func (s ceremony) compared(what, value, source string, last int) error {
	if s.rehearsed {
		_, _ = fmt.Fprintf(s.out, "   (In this rehearsal: %s shows %s.)\n", source, value)
	}
	return s.compare(what, value, source, last)
}

// present records who is there and what does the work.
func (s ceremony) present() error {
	if err := s.begin("Those present"); err != nil {
		return err
	}
	if _, err := s.ask("Who is present? Names and roles, with commas between."); err != nil {
		return err
	}
	if err := s.agree("At least two people are present, and both can see this screen."); err != nil {
		return err
	}
	if err := s.fact("in the audit log this process is %s and the operator is %s", s.cfg.host, s.cfg.operator); err != nil {
		return err
	}
	if err := s.begin("The programs"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the program: %w", err)
	}
	paths := []string{self, s.cfg.hsm.Module}
	for _, m := range s.cfg.domain.Members {
		if !slices.Contains(paths, m.Module) {
			paths = append(paths, m.Module)
		}
	}
	for _, path := range paths {
		sum, err := fileDigest(path)
		if err != nil {
			return err
		}
		if err := s.fact("SHA-256 of %s: %s", path, sum); err != nil {
			return err
		}
	}
	return nil
}

func fileDigest(path string) (string, error) {
	file, err := os.Open(path) // #nosec G304 -- the operator's own program and library
	if err != nil {
		return "", fmt.Errorf("reading a program: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read from
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", fmt.Errorf("reading a program: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func (s ceremony) setup(ctx context.Context, d deploymentSettings, admin, credentials string) error {
	if err := setEnvironment(s.cfg.environment); err != nil {
		return err
	}
	if err := s.token(ctx); err != nil {
		return err
	}
	if err := s.begin("The domain keys"); err != nil {
		return err
	}
	if err := s.agree(fmt.Sprintf("Domain keys for account %s in partition %s, which cannot change later, are to be made on this token now.", d.Account, d.Partition)); err != nil {
		return err
	}
	cfg := systemConfig{hsm: hsm.DomainConfig{Members: []hsm.MemberConfig{{Config: s.cfg.hsm}}, Logger: s.cfg.log}, store: s.cfg.store, account: d.Account, partition: d.Partition, host: s.cfg.host, log: s.cfg.log}
	err := initialise(ctx, cfg, admin, func(id string, secret []byte) error {
		text := credentialLines(id, secret)
		defer clear(text)
		return errors.Join(writeSecret(credentials, text), s.fact("the access key %s of administrator %s is in %s", id, admin, credentials))
	})
	if errors.Is(err, kms.ErrAlreadyInitialised) {
		err = s.fact("they were made before: going on")
	}
	if err != nil {
		return err
	}
	return s.backup(ctx)
}

// token has the token recognised and examined.
func (s ceremony) token(ctx context.Context) error {
	if err := s.begin("The token"); err != nil {
		return err
	}
	report, err := hsm.Examine(ctx, s.cfg.hsm, nil)
	if err != nil {
		return fmt.Errorf("examining the token: %w", err)
	}
	for _, finding := range report.Findings {
		if err := s.fact("%s: %s", finding.Severity, finding.Text); err != nil {
			return err
		}
	}
	if !report.Usable() || report.Token == nil {
		return errors.New("this token will not do: the findings say why")
	}
	if err := s.fact("token %q, %s %s, firmware %s", report.Token.Label, report.Token.Manufacturer, report.Token.Model, report.Token.Firmware); err != nil {
		return err
	}
	return s.compared("the token's serial number", report.Token.Serial, "the device or the vendor's tool", ends)
}

func (s ceremony) backup(ctx context.Context) error {
	return s.cfg.on(ctx, func(d *domainSession) error {
		if err := s.begin("The generations of the domain keys"); err != nil {
			return err
		}
		all, err := s.generations(ctx, d)
		if err != nil {
			return err
		}
		if err := s.begin("The backup"); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(s.out, "   Back the token up now, by the vendor's means. Without it the database is worth nothing.")
		backup, err := s.ask("What is the backup called, on which medium is it, and where is it kept?")
		if err != nil {
			return err
		}
		if _, err := s.ask("How was it checked that it can be restored?"); err != nil {
			return err
		}
		for _, g := range all {
			if g.BackupConfirmed != nil || g.OnToken == "" || g.State != store.GenerationCreated && g.State != store.GenerationActive {
				continue
			}
			if !strings.HasPrefix(g.OnToken, "whole") {
				return fmt.Errorf("generation %d is not whole on this token (%s), so a backup of it is worth nothing: finish it with `trent domain rotate`, or restore the token", g.Number, g.OnToken)
			}
			if err := s.agree(fmt.Sprintf("The backup holds generation %d of the domain keys, made at %s.", g.Number, g.Created.UTC().Format(time.DateTime))); err != nil {
				return err
			}
			if err := d.ConfirmBackup(ctx, g.Number); err != nil {
				return err //nolint:wrapcheck // says it all
			}
			if err := s.fact("confirmed for generation %d: %s", g.Number, backup); err != nil {
				return err
			}
		}
		return nil
	})
}

// generations records what there is.
func (s ceremony) generations(ctx context.Context, d *domainSession) ([]kms.GenerationStatus, error) {
	if err := s.fact("deployment %s, account %s, token serial %s", uuid.UUID(d.deployment.ID), d.deployment.Account, d.Serial); err != nil {
		return nil, err
	}
	all, err := d.Status(ctx)
	if err != nil {
		return nil, err //nolint:wrapcheck // says it all
	}
	for _, g := range all {
		if err := s.fact("generation %d: %s, %s; on this token: %s; %d keys and %d rows under it", g.Number, g.State, g.Profile,
			cmp.Or(g.OnToken, "nothing"), g.WrappedKeys, g.SealedRows); err != nil {
			return nil, err
		}
	}
	return all, nil
}
