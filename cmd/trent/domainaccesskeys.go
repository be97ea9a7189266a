package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/trent-kms/trent/hsm"
)

type accessKeyFlag struct {
	AccessKeyID string `name:"access-key-id" required:"" placeholder:"AKIA…" help:"Id of the access key."`
}

type domainRenewAccessKeyCmd struct {
	domainSettings
	memberFlag
	accessKeyFlag
	SOPINFile   string `name:"so-pin-file" env:"TRENT_SO_PIN_FILE" placeholder:"FILE" type:"path" help:"File that holds the security officer's PIN. Otherwise TRENT_SO_PIN."`
	Credentials string `env:"TRENT_CREDENTIALS" placeholder:"FILE" type:"path" help:"Write the new access key to this file (mode 0600) and not to the terminal."`
}

// Help implements kong.HelpProvider.
func (*domainRenewAccessKeyCmd) Help() string {
	return `An access key's secret is wrapped like any key, and what a generation of the locked profile wraps stays under it: after an enrolment the members that are new cannot admit the access keys of before ("trent domain status" lists them). This makes another access key for the same user, under the active generation. Its secret is shown once and is nowhere else in the clear. The old access key works until it is deleted; a user has at most two.

The security officer's PIN is tried, on the first member or that of --member, which then makes the access key and must hold the active generation: this command gives an administrator's rights to whoever sees the secret. The audit log has it as CreateAccessKey.

Example:

    trent domain renew-access-key --access-key-id AKIA… --so-pin-file so-pin --credentials admin.env --config /etc/trent/trent.toml`
}

// Run makes an access key.
func (c *domainRenewAccessKeyCmd) Run(ctx context.Context) error {
	cfg, err := c.config()
	if err != nil {
		return err
	}
	by, err := cfg.proveOfficer(ctx, c.Member, c.SOPINFile)
	if err != nil {
		return err
	}
	return cfg.onMembers(ctx, func(m *membersSession) error {
		return m.RenewAccessKey(ctx, m.Members[by], c.AccessKeyID, func(id string, secret []byte) error { return showAccessKey(id, secret, c.Credentials) })
	})
}

// proveOfficer demands the PIN of the security officer of a member's token. It
// returns which of the members that is.
func (c domainConfig) proveOfficer(ctx context.Context, name, pinFile string) (i int, err error) {
	i = slices.IndexFunc(c.domain.Members, func(m hsm.MemberConfig) bool {
		return name == "" || name == cmp.Or(m.Name, m.TokenLabel, m.TokenSerial)
	})
	if i < 0 {
		return i, fmt.Errorf("--member %q is the name of no [[hsm-member]] table", name)
	}
	pin, err := officerSecret(pinFile).read(c.log)
	if err != nil {
		return i, err
	}
	defer clear(pin)
	member := c.domain.Members[i]
	if err := setEnvironment(member.Environment); err != nil {
		return i, err
	}
	return i, hsm.ProveOfficer(ctx, member.Config, hsm.NewPIN(pin)) //nolint:wrapcheck // says it all
}

// showAccessKey writes it to a file, or without one to standard output.
func showAccessKey(id string, secret []byte, file string) error {
	text := credentialLines(id, secret)
	defer clear(text)
	if file != "" {
		return writeSecret(file, text)
	}
	if _, err := os.Stdout.Write(text); err != nil {
		return fmt.Errorf("showing the access key: %w", err)
	}
	return nil
}

type domainDeleteAccessKeyCmd struct {
	domainSettings
	accessKeyFlag
}

// Help implements kong.HelpProvider.
func (*domainDeleteAccessKeyCmd) Help() string {
	return `It refuses unless the user has another active access key. Every host follows within a second.

Example:

    trent domain delete-access-key --access-key-id AKIA… --config /etc/trent/trent.toml`
}

// Run deletes an access key.
func (c *domainDeleteAccessKeyCmd) Run(ctx context.Context) error {
	return c.onMembers(ctx, func(m *membersSession) error { return m.DeleteAccessKey(ctx, c.AccessKeyID) })
}
