package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/trent-kms/trent/kms"
)

type initCmd struct {
	deploymentSettings
	hsmSettings
	databaseSettings
	logSettings
	adminSettings
	Host        string `env:"TRENT_HOST" default:"${hostname}" help:"Name of this process in the audit log."`
	Credentials string `env:"TRENT_CREDENTIALS" placeholder:"FILE" type:"path" help:"Write the administrator's access key to this file (mode 0600) and not to the terminal."`
	IfNeeded    bool   `env:"TRENT_IF_NEEDED" help:"Succeed, and do nothing but migrate the database, if it is set up already."`
}

// userNameForm is IAM's.
var userNameForm = regexp.MustCompile(`^[A-Za-z0-9+=,.@_-]{1,64}$`)

// adminSettings name the first administrator.
type adminSettings struct {
	Admin string `env:"TRENT_ADMIN" default:"admin" help:"User name of the first administrator."`
}

func (s adminSettings) Validate() error {
	if !userNameForm.MatchString(s.Admin) {
		return fmt.Errorf("--admin %q is not a user name: 1 to 64 letters, digits and +=,.@_-", s.Admin)
	}
	return nil
}

// Help implements kong.HelpProvider.
func (*initCmd) Help() string {
	return `It can be run again after an interruption at any point, and refuses a token or a database that is in use. The administrator's secret access key is shown once and is nowhere else in the clear. A later release's trent init migrates the database.

Example:

    trent init --account 111122223333 \
      --hsm-module /usr/lib/softhsm/libsofthsm2.so --hsm-token trent --pin-file /etc/trent/pin \
      --database-url-file /etc/trent/database-url`
}

// Validate is called by kong when all settings are known.
func (c *initCmd) Validate() error {
	err := errors.Join(c.deploymentSettings.Validate(), c.hsmSettings.Validate(), c.databaseSettings.Validate())
	if !hostForm.MatchString(c.Host) {
		err = errors.Join(err, fmt.Errorf("--host %q is not a host name", c.Host))
	}
	return errors.Join(err, c.adminSettings.Validate())
}

// Run sets up.
func (c *initCmd) Run(ctx context.Context) error {
	log := c.logger(os.Stderr, "text")
	harden(log)
	cfg := systemConfig{account: c.Account, partition: c.Partition, host: c.Host, log: log}
	var err error
	if cfg.hsm, err = c.hsmSettings.config(log, nil); err != nil {
		return err
	}
	if cfg.store, err = c.databaseSettings.config(log, nil); err != nil {
		return err
	}
	err = initialise(ctx, cfg, c.Admin, c.show)
	if c.IfNeeded && errors.Is(err, kms.ErrAlreadyInitialised) {
		log.Info("set up already")
		return nil
	}
	if err != nil {
		return err
	}
	log.Info("set up: trent serve can start")
	return nil
}

// show gives the access key to the administrator.
func (c *initCmd) show(accessKeyID string, secret []byte) error {
	return showAccessKey(accessKeyID, secret, c.Credentials)
}

// credentialLines are shell commands. The caller clears them.
func credentialLines(accessKeyID string, secret []byte) []byte {
	var lines strings.Builder
	lines.WriteString("export AWS_ACCESS_KEY_ID=" + accessKeyID + "\nexport AWS_SECRET_ACCESS_KEY=")
	text := make([]byte, 0, lines.Len()+len(secret)+1)
	return append(append(append(text, lines.String()...), secret...), '\n')
}
