package main

import (
	"context"
	"fmt"
	"os"

	"github.com/trent-kms/trent/internal/softhsm"
)

// softhsmTokenCmd is packaging/container-setup's, and not in the help: a token
// for production is made by the HSM vendor's tools, by its security officer.
type softhsmTokenCmd struct {
	Folder    string `arg:"" type:"path" help:"Folder to make the token in."`
	Label     string `name:"hsm-token" env:"TRENT_HSM_TOKEN" required:"" placeholder:"LABEL" help:"Label of the token."`
	PINFile   string `name:"pin-file" env:"TRENT_PIN_FILE" required:"" placeholder:"FILE" type:"path" help:"File that holds the user PIN."`
	SOPINFile string `name:"so-pin-file" required:"" placeholder:"FILE" type:"path" help:"File that holds the security officer's PIN."`
	logSettings
}

// Help implements kong.HelpProvider.
func (*softhsmTokenCmd) Help() string {
	return `It makes a SoftHSM token and types the PINs to softhsm2-util: arguments can be read by everyone on the machine.

Example:

    trent softhsm-token --hsm-token trent --pin-file pin --so-pin-file so-pin ./softhsm`
}

// Run makes the token.
func (c *softhsmTokenCmd) Run(ctx context.Context) error {
	log := c.logger(os.Stderr, "text")
	harden(log)
	pin, err := pinSecret(c.PINFile).read(log)
	if err != nil {
		return err
	}
	defer clear(pin)
	soPIN, err := officerSecret(c.SOPINFile).read(log)
	if err != nil {
		return err
	}
	defer clear(soPIN)
	folder, err := softhsm.Open(c.Folder)
	if err != nil {
		return err
	}
	if err := folder.InitToken(ctx, c.Label, soPIN, pin); err != nil {
		return fmt.Errorf("making the token in %s: %w", c.Folder, err)
	}
	log.Info("token made", "label", c.Label, "folder", c.Folder)
	return nil
}
