package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/store"
)

// domainCmd is the security officer's.
type domainCmd struct {
	Status        domainStatusCmd   `cmd:"" help:"List the generations of the domain keys, and what still needs each."`
	Rotate        domainRotateCmd   `cmd:"" help:"Make a new generation, and activate it once a backup is confirmed or a second HSM holds it."`
	ConfirmBackup domainConfirmCmd  `cmd:"" help:"Record that a backup of the HSM holds a generation."`
	Activate      domainActivateCmd `cmd:"" help:"Make a generation the one that new keys are wrapped under."`
	Retire        domainRetireCmd   `cmd:"" help:"Destroy a generation on all members that nothing needs any more."`

	Members      domainMembersCmd      `cmd:"" help:"List the members of the domain, and what each holds."`
	Enrol        domainEnrolCmd        `cmd:"" help:"Make a generation that all configured members hold, new ones too, and activate it."`
	Fingerprint  domainFingerprintCmd  `cmd:"" help:"Show the fingerprint of one member's enrolment key, to compare it."`
	RemoveMember domainRemoveMemberCmd `cmd:"" help:"Take a member out of the domain and destroy what it holds."`

	RenewAccessKey  domainRenewAccessKeyCmd  `cmd:"" help:"Make another access key for a user, which all members can use."`
	DeleteAccessKey domainDeleteAccessKeyCmd `cmd:"" help:"Delete an access key of a user who has another."`
}

// Help implements kong.HelpProvider.
func (*domainCmd) Help() string {
	return "Each generation of the domain keys has a number, which status shows.\n\nExample:\n\n    trent domain status --config /etc/trent/trent.toml"
}

// domainSettings name the token and the database.
type domainSettings struct {
	hsmSettings
	databaseSettings
	logSettings
	AdminHost string `name:"admin-host" env:"TRENT_ADMIN_HOST" default:"${hostname}-admin" help:"Name of this process in the audit log; not that of a running service."`
	Operator  string `env:"TRENT_OPERATOR" placeholder:"NAME" help:"Who gives the order, for the audit log. The default is the user name."`
}

// Validate is called by the commands' own.
func (s domainSettings) Validate() error {
	err := errors.Join(s.hsmSettings.Validate(), s.databaseSettings.Validate())
	if !hostForm.MatchString(s.AdminHost) {
		err = errors.Join(err, fmt.Errorf("--admin-host %q is not a host name", s.AdminHost))
	}
	return err
}

// domainConfig is what a session is opened with. Secrets are read once: what
// the environment holds of them is removed then.
type domainConfig struct {
	hsm            hsm.Config // the member that works in this process
	environment    []string   // its
	domain         hsm.DomainConfig
	store          store.Config
	host, operator string
	log            *slog.Logger
}

func (s domainSettings) config() (c domainConfig, err error) {
	c = domainConfig{log: s.logger(os.Stderr, "text"), host: s.AdminHost, operator: s.operator()}
	harden(c.log)
	domain, err := s.hsmSettings.config(c.log, nil)
	if err != nil {
		return c, err
	}
	c.domain, c.hsm, c.environment = domain, domain.Members[0].Config, domain.Members[0].Environment
	c.store, err = s.databaseSettings.config(c.log, nil)
	return c, err
}

// domainSession is an open token and database.
type domainSession struct {
	kms.DomainAdmin
	domainConfig
	token      *hsm.Token
	own        *hsm.Member // is Member
	deployment store.Deployment
}

// open checks that token and database belong together.
func (c domainConfig) open(ctx context.Context) (_ *domainSession, err error) {
	d := &domainSession{domainConfig: c}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if err := setEnvironment(c.environment); err != nil {
		return nil, err
	}
	if d.token, err = hsm.Open(ctx, d.hsm); err != nil {
		return nil, fmt.Errorf("opening the HSM: %w", err)
	}
	if d.DomainAdmin, err = c.admin(ctx); err != nil {
		return nil, err
	}
	if d.deployment, err = d.DB.Deployment(ctx); finished(d.deployment, err) != nil {
		return nil, finished(d.deployment, err)
	}
	known, err := proofs(ctx, d.DB)
	if err != nil {
		return nil, err
	}
	if d.own, err = d.token.OpenProved(ctx, d.deployment.ID, known); err != nil {
		return nil, err //nolint:wrapcheck // says it all
	}
	d.Member = d.own
	if d.deployment, err = verify(ctx, d.Member, d.DB, d.deployment); err != nil {
		return nil, err
	}
	d.Serial = d.token.Info().Serial
	return d, nil
}

// admin opens the database for orders that are written to its audit log.
func (c domainConfig) admin(ctx context.Context) (kms.DomainAdmin, error) {
	db, err := openDatabase(ctx, c.store)
	return kms.DomainAdmin{
		DB: db,
		Commit: func(ctx context.Context, r *audit.Record, change *store.Change) error {
			return c.commit(ctx, db, r, change)
		},
		Operator: c.operator,
		Progress: func(step string) { c.log.Info(step) },
	}, err
}

func (s domainSettings) operator() string {
	if s.Operator != "" {
		return s.Operator
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "unknown"
}

// commit holds the audit log's lock only for as long as it writes: an officer
// may run one of these commands while another one waits.
func (c domainConfig) commit(ctx context.Context, db *store.DB, r *audit.Record, change *store.Change) error {
	writer, err := audit.Open(ctx, audit.Config{DB: db, Host: c.host, Logger: c.log})
	if errors.Is(err, store.ErrHostTaken) {
		return fmt.Errorf("opening the audit log: %w (--admin-host)", err)
	}
	if err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	_, err = writer.Commit(ctx, r, change)
	if closeErr := writer.Close(context.WithoutCancel(ctx)); err == nil && closeErr != nil {
		err = fmt.Errorf("closing the audit log: %w", closeErr)
	}
	return err
}

func (d *domainSession) close() {
	if d.DB != nil {
		d.DB.Close()
	}
	if d.token != nil {
		if err := d.token.Close(); err != nil {
			d.log.Error("closing the token", "error", err)
		}
	}
}

// on opens a session, runs f and closes the session.
func (c domainConfig) on(ctx context.Context, f func(d *domainSession) error) error {
	d, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer d.close()
	return f(d)
}

// on opens a session, runs f and closes the session.
func (s domainSettings) on(ctx context.Context, f func(d *domainSession) error) error {
	c, err := s.config()
	if err != nil {
		return err
	}
	return c.on(ctx, f)
}

type domainStatusCmd struct {
	domainSettings
	memberFlag
	JSON  bool `help:"Print JSON."`
	Watch bool `help:"Print again every two seconds until the background work is done."`
}

// Help implements kong.HelpProvider.
func (*domainStatusCmd) Help() string {
	return `Keys under a generation of the trusted profile are moved to the active one in the background by the running service; those of the locked profile stay where they are. What not all members can use is listed below, with the access keys.

Example:

    trent domain status --config /etc/trent/trent.toml`
}

// Run prints the generations.
func (c *domainStatusCmd) Run(ctx context.Context) error {
	if err := c.choose(c.Member); err != nil {
		return err
	}
	return c.on(ctx, func(d *domainSession) error {
		for {
			all, err := d.Status(ctx)
			if err != nil {
				return err
			}
			if err := c.print(os.Stdout, all); err != nil {
				return err
			}
			if !c.Watch || kms.Settled(all) {
				return nil
			}
			select {
			case <-time.After(2 * time.Second):
			case <-ctx.Done():
				return nil
			}
		}
	})
}

func (c *domainStatusCmd) print(w io.Writer, all []kms.GenerationStatus) error {
	if c.JSON {
		return printJSON(w, all)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "GENERATION\tSTATE\tPROFILE\tTOKENS\tTHIS TOKEN\tBACKUP\tKEYS\tROWS\tSINCE")
	for _, g := range all {
		backup, since := "-", g.Created
		if g.BackupConfirmed != nil {
			backup = fmt.Sprintf("%s by %s", g.BackupConfirmed.Format(time.DateOnly), g.BackupBy)
		}
		for _, t := range []*time.Time{g.Activated, g.Superseded, g.Destroyed} {
			if t != nil {
				since = *t
			}
		}
		_, _ = fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", g.Number, g.State, g.Profile,
			strings.Join(g.Tokens, " "), g.OnToken, backup, g.WrappedKeys, g.SealedRows, since.UTC().Format(time.DateTime))
	}
	if err := table.Flush(); err != nil {
		return err //nolint:wrapcheck // standard output's
	}
	for _, g := range all {
		if g.Dependence != nil {
			_, _ = fmt.Fprintf(w, "\n%s\n", g.Dependence)
		}
	}
	return nil
}

type generationFlag struct {
	Generation int64 `required:"" placeholder:"NUMBER" help:"Number of the generation."`
}

type domainConfirmCmd struct {
	domainSettings
	generationFlag
}

// Help implements kong.HelpProvider.
func (*domainConfirmCmd) Help() string {
	return `Say it only of a backup that was made after the generation and that somebody has restored or verified with the vendor's tool. Without one, the loss of the token is the loss of every key under the generation.

Example:

    trent domain confirm-backup --generation 2 --operator "A. Officer" --config /etc/trent/trent.toml`
}

// Run records the confirmation.
func (c *domainConfirmCmd) Run(ctx context.Context) error {
	return c.on(ctx, func(d *domainSession) error { return d.ConfirmBackup(ctx, c.Generation) })
}

type domainActivateCmd struct {
	domainSettings
	generationFlag
}

// Help implements kong.HelpProvider.
func (*domainActivateCmd) Help() string {
	return `Every host follows within a second. The generation before stays for what is wrapped under it.

Example:

    trent domain activate --generation 2 --config /etc/trent/trent.toml`
}

// Run activates.
func (c *domainActivateCmd) Run(ctx context.Context) error {
	return c.on(ctx, func(d *domainSession) error { return d.Activate(ctx, c.Generation) })
}

type domainRetireCmd struct {
	domainSettings
	generationFlag
	Retention time.Duration `name:"backup-retention" env:"TRENT_DOMAIN_RETENTION" default:"840h" help:"How old a backup of the database may be that must still be readable: how long a generation stays after another one took its place. At least 24h, for import tokens."`
	Gone      []string      `placeholder:"SERIAL" help:"Serial number of a token that is no more, erased or restored under another one; once for each. It needs --confirm-gone."`
	Confirmed bool          `name:"confirm-gone" help:"Say that nobody can use a token of --gone any more. It is recorded under the operator's name."`
}

// Help implements kong.HelpProvider.
func (*domainRetireCmd) Help() string {
	return `It refuses while a key or a backup of the database needs the generation, and discards one that was never activated at once. The MAC key of a generation stays for as long as the audit log has records that are sealed under it. It does so on all configured members, and fails if something may be left on one, which it names; run it again when that can be reached. A token of which there is none any more is named with --gone.

Example:

    trent domain retire --generation 1 --config /etc/trent/trent.toml
    trent domain retire --generation 1 --gone 2ac9292d43bbb086 --confirm-gone --config /etc/trent/trent.toml`
}

// Validate is called by kong when all settings are known.
func (c *domainRetireCmd) Validate() error {
	if c.Retention < 24*time.Hour {
		return errors.New("--backup-retention is at least 24h: import tokens that clients hold need the generation for as long")
	}
	if len(c.Gone) > 0 && !c.Confirmed {
		return fmt.Errorf("--gone says that nobody can use token %s any more, with whatever copies of the keys it has: see to that, then add --confirm-gone", strings.Join(c.Gone, ", "))
	}
	return c.domainSettings.Validate()
}

// Run retires.
func (c *domainRetireCmd) Run(ctx context.Context) error {
	return c.onMembers(ctx, func(m *membersSession) error {
		return m.Retire(ctx, c.Generation, c.Retention, c.Gone...)
	})
}
