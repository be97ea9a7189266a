package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/store"
)

type domainRotateCmd struct {
	domainSettings
	Profile   string        `enum:"locked,trusted," default:"" help:"locked or trusted. The default is that of the active generation."`
	SOPINFile string        `name:"so-pin-file" env:"TRENT_SO_PIN_FILE" placeholder:"FILE" type:"path" help:"File that holds the security officer's PIN, for the trusted profile. Otherwise TRENT_SO_PIN."`
	NoWait    bool          `help:"Do not wait for the backup: end, and go on when run again."`
	Every     time.Duration `name:"rotation-period" env:"TRENT_DOMAIN_ROTATION" default:"0" help:"Do nothing if the active generation is younger; 0 rotates in any case. For a timer."`
}

// Help implements kong.HelpProvider.
func (*domainRotateCmd) Help() string {
	return `It makes a generation of the domain keys and the MAC key, waits until somebody confirms that a backup holds it (trent domain confirm-backup, in another terminal), and activates it. It can be interrupted anywhere and run again.

Under the locked profile the new generation covers new keys and new versions of keys only: what the old one wraps can never be wrapped again, by nobody. Under the trusted profile the running service moves every key to the new generation, inside the HSM, in the background; the security officer's PIN is needed to mark its keys trusted. A move from one profile to the other covers new keys only.

Examples:

    trent domain rotate --config /etc/trent/trent.toml
    trent domain rotate --rotation-period 2160h --no-wait --config /etc/trent/trent.toml`
}

// Validate is called by kong when all settings are known.
func (c *domainRotateCmd) Validate() error {
	if c.Every < 0 {
		return errors.New("--rotation-period is 0 or more")
	}
	return c.domainSettings.Validate()
}

// Run rotates.
func (c *domainRotateCmd) Run(ctx context.Context) error {
	var made store.DomainGeneration
	cfg, err := c.config()
	if err != nil {
		return err
	}
	due, profile, err := c.prepare(ctx, cfg)
	if err != nil || !due {
		return err
	}
	err = cfg.on(ctx, func(d *domainSession) (err error) {
		if made, err = d.Create(ctx, profile); err != nil {
			return err
		}
		if err = kms.Safe(made); err != nil {
			d.log.Info("not activated yet: " + err.Error())
		}
		if err = c.wait(ctx, d, made.Number); err != nil {
			return err
		}
		if err = d.Activate(ctx, made.Number); err != nil {
			return err
		}
		d.log.Info(whatFollows(profile))
		return nil
	})
	if errors.Is(err, kms.ErrNotYet) && c.NoWait {
		return nil // said already
	}
	return err
}

func whatFollows(profile hsm.Profile) string {
	if profile == hsm.Trusted {
		return "the running service moves the keys of trusted generations to it: `trent domain status --watch` shows how far it is"
	}
	return "it covers new keys and new versions of keys; the locked profile leaves all others under their generation, which must stay"
}

// prepare says whether a rotation is due and of which profile, and has the
// security officer make trusted keys. He and the user cannot be logged in at
// the same time, so the token is opened, closed, and opened again by Run.
func (c *domainRotateCmd) prepare(ctx context.Context, cfg domainConfig) (due bool, profile hsm.Profile, err error) {
	err = cfg.on(ctx, func(d *domainSession) error {
		_, all, err := d.DB.DomainGenerations(ctx)
		if err != nil {
			return err //nolint:wrapcheck // says it all
		}
		pending := all[len(all)-1].State == store.GenerationCreated
		due = true
		for _, g := range all {
			if g.State != store.GenerationActive {
				continue
			}
			if profile = hsm.Profile(g.Profile); c.Profile != "" {
				profile = hsm.Profile(c.Profile)
			}
			if age := time.Since(*g.Activated); c.Every > 0 && age < c.Every && !pending {
				d.log.Info(fmt.Sprintf("nothing to do: generation %d is active since %s", g.Number, g.Activated.Format(time.DateTime)))
				due = false
			}
		}
		if due {
			_, err = d.Next(ctx, profile)
		}
		return err //nolint:wrapcheck // says it all
	})
	if err != nil || !due || profile != hsm.Trusted {
		return due, profile, err
	}
	pin, err := officerSecret(c.SOPINFile).read(cfg.log)
	if err != nil {
		return due, profile, err
	}
	defer clear(pin)
	return due, profile, cfg.makeTrustedKeys(ctx, hsm.NewPIN(pin))
}

// makeTrustedKeys has the security officer make the next generation's domain
// keys, while no other process makes or destroys any: which is the next may
// have changed since it was asked for first.
func (c domainConfig) makeTrustedKeys(ctx context.Context, pin hsm.PIN) error {
	db, err := openDatabase(ctx, c.store)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.WithDomainLock(ctx, func(ctx context.Context) error { //nolint:wrapcheck // says it all
		var next int64
		var id hsm.DomainID
		err := c.on(ctx, func(d *domainSession) (err error) {
			id = d.deployment.ID
			next, err = d.Next(ctx, hsm.Trusted)
			return err //nolint:wrapcheck // says it all
		})
		if err != nil {
			return err
		}
		return hsm.MakeTrustedKeys(ctx, c.hsm, pin, id, uint32(next)) // #nosec G115 -- counts up from 1
	})
}

// wait returns when the generation may be activated; with NoWait, ErrNotYet if
// it may not.
func (c *domainRotateCmd) wait(ctx context.Context, d *domainSession, number int64) error {
	for {
		_, all, err := d.DB.DomainGenerations(ctx)
		if err != nil {
			return err //nolint:wrapcheck // says it all
		}
		for _, g := range all {
			if g.Number != number {
				continue
			}
			if err := kms.Safe(g); err == nil || c.NoWait || !errors.Is(err, kms.ErrNotYet) {
				return err //nolint:wrapcheck // says it all
			}
			if g.State != store.GenerationCreated {
				return nil // somebody else has activated or discarded it: Activate says which
			}
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return errors.New("interrupted: run it again when the backup is confirmed")
		}
	}
}
