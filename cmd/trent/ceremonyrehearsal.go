package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/trent-kms/trent/store"
)

type ceremonyRehearsalCmd struct {
	transcriptFlag
	logSettings
}

// Help implements kong.HelpProvider.
func (*ceremonyRehearsalCmd) Help() string {
	return `It makes a SoftHSM token and a Postgres of its own in a temporary folder, holds set-up, backup and recovery on them, and removes them.

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
	if cfg.hsm, err = state.token(ctx, log); err != nil {
		return err
	}
	cfg.hsm.Logger = log
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
		if err := s.fact("THIS IS A REHEARSAL: token and database are removed when it ends"); err != nil {
			return err
		}
		if err := s.present(); err != nil {
			return err
		}
		deployment := deploymentSettings{Account: "111122223333", Partition: "aws"}
		if err := s.setup(ctx, deployment, devAdmin, filepath.Join(dir, "rehearsal.env")); err != nil {
			return err
		}
		return s.recovery(ctx)
	})
}
