package main

import (
	"context"
	"errors"
	"os"
)

type serveCmd struct {
	deploymentSettings
	listenSettings
	tlsSettings
	hsmSettings
	databaseSettings
	attestationSettings
	logSettings
}

// Help implements kong.HelpProvider.
func (*serveCmd) Help() string {
	return `Set up token and database with trent init first. SIGTERM finishes the calls in flight and ends.

Example:

    trent serve --account 111122223333 --regions us-east-1 \
      --hsm-module /usr/lib/softhsm/libsofthsm2.so --hsm-token trent --pin-file /etc/trent/pin \
      --database-url-file /etc/trent/database-url \
      --listen :4600 --tls-cert /etc/trent/tls.crt --tls-key /etc/trent/tls.key`
}

// Validate is called by kong when all settings are known.
func (c *serveCmd) Validate() error {
	err := errors.Join(
		c.deploymentSettings.Validate(), c.listenSettings.Validate(), c.tlsSettings.Validate(),
		c.hsmSettings.Validate(), c.databaseSettings.Validate(),
	)
	if err == nil && c.TLSCert == "" && !loopback(c.Listen) {
		return errors.New("--listen " + c.Listen + " is not loopback: plain HTTP would show data keys to the network; set --tls-cert and --tls-key, or listen on 127.0.0.1")
	}
	return err
}

// Run serves until a signal comes.
func (c *serveCmd) Run(ctx context.Context) error {
	log := c.logger(os.Stderr, "json")
	harden(log)
	s := serving{system: systemConfig{
		account: c.Account, partition: c.Partition, regions: c.Regions, host: c.Host, log: log, metrics: newMetrics(),
	}}
	var err error
	if s.system.hsm, err = c.hsmSettings.config(log, s.system.metrics); err != nil {
		return err
	}
	if s.system.store, err = c.databaseSettings.config(log, s.system.metrics); err != nil {
		return err
	}
	if s.system.roots, err = c.roots(); err != nil {
		return err
	}
	if c.TLSCert != "" {
		if s.tls, err = tlsConfig(c.tlsSettings, log); err != nil {
			return err
		}
	}
	if s.api, err = listen(ctx, "--listen", c.Listen); err != nil {
		return err
	}
	if s.admin, err = listen(ctx, "--admin-listen", c.AdminListen); err != nil {
		return err
	}
	return serve(ctx, s)
}
