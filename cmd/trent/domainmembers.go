package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/store"
)

type memberFlag struct {
	Member string `placeholder:"NAME" help:"Which of the [[hsm-member]] tables names the token. The default is the first."`
}

// choose leaves only the member of a name.
func (s *hsmSettings) choose(name string) error {
	if name == "" {
		return nil
	}
	for _, m := range s.HSMMembers {
		if m.Name == name || m.Name == "" && (m.Token == name || m.Serial == name) {
			s.HSMMembers = memberTables{m}
			return nil
		}
	}
	return fmt.Errorf("--member %q is the name of no [[hsm-member]] table", name)
}

// setEnvironment is for a vendor's library in this process.
func setEnvironment(environment []string) error {
	for _, line := range environment {
		name, value, _ := strings.Cut(line, "=")
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("setting %s for the HSM's library: %w", name, err)
		}
	}
	return nil
}

// membersSession is all members, each in a worker process, and the database.
type membersSession struct {
	kms.DomainMembers
	domainConfig
	deployment store.Deployment
}

// openMembers opens what it can reach of the members.
func (c domainConfig) openMembers(ctx context.Context) (_ *membersSession, err error) {
	m := &membersSession{domainConfig: c}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if err := m.reach(ctx); err != nil {
		return nil, err
	}
	var faults []error
	for _, each := range m.Members {
		faults = append(faults, each.Err)
	}
	if !slices.Contains(faults, nil) {
		return nil, errors.Join(faults...)
	}
	if m.deployment, err = verify(ctx, m.Sealers(), m.DB, m.deployment); err != nil {
		return nil, errors.Join(append(faults, err)...) // it may be for want of those
	}
	return m, nil
}

// reach opens the database, and the members for the deployment that it names.
func (m *membersSession) reach(ctx context.Context) (err error) {
	if m.DomainAdmin, err = m.admin(ctx); err != nil {
		return err
	}
	if m.deployment, err = m.DB.Deployment(ctx); finished(m.deployment, err) != nil {
		return finished(m.deployment, err)
	}
	cfg := m.domain
	cfg.ID, cfg.Isolation, cfg.Enrolling = m.deployment.ID, hsm.IsolationWorker, true
	if cfg.Proofs, err = proofs(ctx, m.DB); err != nil {
		return err
	}
	for i, member := range m.domain.Members {
		cfg.Members = m.domain.Members[i : i+1]
		each := kms.MemberAtHand{Name: cmp.Or(member.Name, member.TokenLabel, member.TokenSerial)}
		if each.Domain, each.Err = hsm.OpenDomain(ctx, cfg); each.Err == nil {
			each.Info = each.Domain.Health()[0].Token
		}
		m.Members = append(m.Members, each)
	}
	return nil
}

func (m *membersSession) close() {
	for _, each := range m.Members {
		if each.Err == nil {
			each.Domain.Close()
		}
	}
	if m.DB != nil {
		m.DB.Close()
	}
}

// onMembers opens a session, runs f and closes the session.
func (s domainSettings) onMembers(ctx context.Context, f func(*membersSession) error) error {
	c, err := s.config()
	if err != nil {
		return err
	}
	return c.onMembers(ctx, f)
}

// onMembers opens a session, runs f and closes the session.
func (c domainConfig) onMembers(ctx context.Context, f func(*membersSession) error) error {
	m, err := c.openMembers(ctx)
	if err != nil {
		return err
	}
	defer m.close()
	return f(m)
}

type domainMembersCmd struct {
	domainSettings
	JSON bool `help:"Print JSON."`
}

// Help implements kong.HelpProvider.
func (*domainMembersCmd) Help() string {
	return `HOLDS are the generations of the domain keys that are whole on the member, and proved where several members hold them.

Example:

    trent domain members --config /etc/trent/trent.toml`
}

// Run lists.
func (c *domainMembersCmd) Run(ctx context.Context) error {
	return c.onMembers(ctx, func(m *membersSession) error {
		all, err := m.List(ctx)
		if err != nil {
			return err
		}
		return c.print(os.Stdout, all)
	})
}

func (c *domainMembersCmd) print(w io.Writer, all []kms.MemberStatus) error {
	if c.JSON {
		return printJSON(w, all)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "MEMBER\tSERIAL\tTOKEN\tSTATE\tHOLDS\tSINCE\tFINGERPRINT\tFAULT")
	for _, m := range all {
		since := "-"
		for _, t := range []*time.Time{m.Enrolled, m.Removed} {
			if t != nil {
				since = t.UTC().Format(time.DateOnly)
			}
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cmp.Or(m.Name, "-"), cmp.Or(m.Serial, "-"), cmp.Or(m.Label, "-"), cmp.Or(m.State, "not enrolled"),
			cmp.Or(strings.Trim(fmt.Sprint(m.Holds), "[]"), "-"), since, cmp.Or(m.Fingerprint, "-"), cmp.Or(m.Fault, "-"))
	}
	return table.Flush() //nolint:wrapcheck // standard output's
}

type domainEnrolCmd struct {
	domainSettings
	Fingerprints []string `name:"fingerprint" placeholder:"FINGERPRINT" help:"Fingerprint of a member's enrolment key, as read on another machine; once for each member."`
}

// Help implements kong.HelpProvider.
func (*domainEnrolCmd) Help() string {
	return `Give every member a [[hsm-member]] table, the new one too (an initialised token with a user PIN, empty). Run without --fingerprint it makes a key pair on each member and shows the fingerprints. Compare each with what "trent domain fingerprint" shows on another machine that reaches the token, then run it again with all of them. It then makes the next generation of the domain keys, which all members hold, records the members and activates it. It can be interrupted anywhere and run again.

The generation is of the locked profile: what older ones wrap stays on the members that hold those until each key's own rotation. With members enrolled, this is also how the domain keys are rotated.

Example:

    trent domain enrol --config /etc/trent/trent.toml
    trent domain enrol --config /etc/trent/trent.toml --fingerprint 1f3a-… --fingerprint 90c2-…`
}

// Run enrols.
func (c *domainEnrolCmd) Run(ctx context.Context) error {
	return c.onMembers(ctx, func(m *membersSession) error { return m.enrol(ctx, c.Fingerprints) })
}

func (m *membersSession) enrol(ctx context.Context, fingerprints []string) error {
	if err := m.Enrol(ctx, fingerprints); err != nil {
		return err //nolint:wrapcheck // says it all
	}
	m.Progress("a member that was enrolled now serves only keys made from now on, and older ones once they are rotated: " +
		"the locked profile leaves what older generations wrap on the members that hold those, which must stay")
	m.Progress("add the member's [[hsm-member]] table to every host and restart it")
	_, all, err := m.DB.DomainGenerations(ctx)
	if err != nil {
		return err //nolint:wrapcheck // says it all
	}
	dependences, err := kms.Dependences(ctx, m.DB, all)
	for _, d := range dependences {
		m.Progress(d.String())
	}
	return err //nolint:wrapcheck // says it all
}

type domainFingerprintCmd struct {
	domainSettings
	generationFlag
	Member string `required:"" placeholder:"NAME" help:"Which of the [[hsm-member]] tables names the token."`
}

// Help implements kong.HelpProvider.
func (*domainFingerprintCmd) Help() string {
	return `Run it on another machine than trent domain enrol, best one that is next to the HSM: it reads the key from the token by itself. The number of the generation is the one that enrol shows.

Example:

    trent domain fingerprint --generation 2 --member new --config /etc/trent/trent.toml`
}

// Run prints the fingerprint. The deployment is not verified: the token may
// hold nothing yet to do it with, and a wrong one shows in the fingerprint.
func (c *domainFingerprintCmd) Run(ctx context.Context) error {
	if err := c.choose(c.Member); err != nil {
		return err
	}
	cfg, err := c.config()
	if err != nil {
		return err
	}
	m := &membersSession{domainConfig: cfg}
	defer m.close()
	if err := m.reach(ctx); err != nil {
		return err
	}
	if err := m.Members[0].Err; err != nil {
		return err //nolint:wrapcheck // says it all
	}
	public, err := m.EnrolmentKey(ctx, m.Members[0], uint32(c.Generation)) // #nosec G115 -- Validate's
	if err != nil {
		return err //nolint:wrapcheck // says it all
	}
	_, _ = fmt.Fprintln(os.Stdout, hsm.Fingerprint(public))
	return nil
}

// Validate is called by kong when all settings are known.
func (c *domainFingerprintCmd) Validate() error {
	if c.Generation < 2 || c.Generation > 1<<32-1 {
		return errors.New("--generation is the number that trent domain enrol shows, 2 or more")
	}
	return c.domainSettings.Validate()
}

type domainRemoveMemberCmd struct {
	domainSettings
	Serial string `required:"" placeholder:"SERIAL" help:"Serial number of the member's token."`
	Lost   bool   `help:"The token is gone for good: remove the member although what it alone holds is lost with it."`
}

// Help implements kong.HelpProvider.
func (*domainRemoveMemberCmd) Help() string {
	return `It refuses while a key, a row or the audit log needs a generation that no other member at hand holds: give those that hold it a [[hsm-member]] table; and while keys would be left on one token without a confirmed backup. What the token holds of the domain is destroyed if the token can be reached.

With --lost it removes a member that cannot be reached and never will be: what only it could use stays lost, and the seals of audit records that only it could verify can be verified no more. Until such a member is removed no other can be enrolled.

Example:

    trent domain remove-member --serial 2ac9292d43bbb086 --config /etc/trent/trent.toml`
}

// Run removes.
func (c *domainRemoveMemberCmd) Run(ctx context.Context) error {
	return c.onMembers(ctx, func(m *membersSession) error { return m.Remove(ctx, c.Serial, c.Lost) })
}
