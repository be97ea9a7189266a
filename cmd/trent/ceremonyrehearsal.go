package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

type ceremonyRehearsalCmd struct {
	transcriptFlag
	logSettings
}

// Help implements kong.HelpProvider.
func (*ceremonyRehearsalCmd) Help() string {
	return `It makes two SoftHSM tokens and a Postgres of its own in a temporary folder, holds set-up with backup, the enrolment of the second token, and recovery on them, and removes them.

Example:

    trent ceremony rehearsal --transcript rehearsal.txt`
}

// Run holds the ceremonies, one after the other.
func (c *ceremonyRehearsalCmd) Run(ctx context.Context) error {
	log := c.logger(os.Stderr, "text")
	harden(log)
	dir, err := os.MkdirTemp("", "trent-rehearsal-")
	if err != nil {
		return fmt.Errorf("making a folder for the rehearsal: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // of no worth
	state, err := openDevState(dir)
	if err != nil {
		return err
	}
	defer state.close()
	if err := os.Chmod(dir, 0o711); err != nil { // #nosec G302 -- Postgres, as another user, passes through; see openDevState
		return fmt.Errorf("opening the rehearsal's folder to Postgres: %w", err)
	}
	cfg := domainConfig{log: log, host: "rehearsal", operator: "rehearsal"}
	if err := cfg.rehearse(ctx, state); err != nil {
		return err
	}
	cluster, err := state.postgres(ctx, log)
	if err != nil {
		return err
	}
	defer stopPostgres(cluster, log)
	cfg.store = store.Config{URL: cluster.URL(devDatabase), Logger: log}
	if err := createDatabase(ctx, cfg.store.URL); err != nil {
		return err
	}
	return c.conducted(ctx, ceremony{cfg: cfg, rehearsed: true}, func(s ceremony) error {
		if err := s.fact("THIS IS A REHEARSAL: tokens and database are removed when it ends"); err != nil {
			return err
		}
		if err := s.present(); err != nil {
			return err
		}
		deployment := deploymentSettings{Account: "111122223333", Partition: "aws"}
		if err := s.setup(ctx, deployment, devAdmin, filepath.Join(dir, "rehearsal.env")); err != nil {
			return err
		}
		if err := s.cfg.onMembers(ctx, func(m *membersSession) error { return s.enrol(ctx, m) }); err != nil {
			return err
		}
		return s.recovery(ctx)
	})
}

// rehearse makes the tokens, each in a folder of its own as on two devices. The
// first one works in this process too.
func (c *domainConfig) rehearse(ctx context.Context, state *devState) error {
	second, err := openDevState(state.path("second"))
	if err != nil {
		return err
	}
	defer second.close()
	for _, each := range []struct {
		name  string
		state *devState
	}{{"first", state}, {"second", second}} {
		token, err := each.state.token(ctx, c.log)
		if err != nil {
			return err
		}
		c.domain.Members = append(c.domain.Members, hsm.MemberConfig{
			Config: token, Name: each.name, Environment: []string{"SOFTHSM2_CONF=" + os.Getenv("SOFTHSM2_CONF")},
		})
	}
	c.domain.Logger = c.log
	c.hsm, c.environment = c.domain.Members[0].Config, c.domain.Members[0].Environment
	return nil
}
