package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/store"
)

// Retire destroys on all members at hand what nothing needs of a generation: its
// domain keys once no EKT is under them and backups of the database from before
// are older than retention; its MAC key once no row and no audit batch is sealed
// under it. A generation that was never active is discarded at once. gone are
// the serial numbers of tokens that are no more, as an officer says. It can be
// called again, and has to be while a token is left that may hold something.
func (m *DomainMembers) Retire(ctx context.Context, number int64, retention time.Duration, gone ...string) error {
	return m.exclusively(ctx, func(ctx context.Context) error { return m.retire(ctx, number, retention, gone) })
}

func (m *DomainMembers) retire(ctx context.Context, number int64, retention time.Duration, gone []string) error {
	g, err := m.lead(ctx, "")
	if err != nil {
		return err
	}
	which, err := g.of(number)
	if err != nil {
		return err
	}
	keepMAC, err := m.retirable(ctx, which, retention)
	if err != nil {
		return err
	}
	if err := m.areGone(which, gone); err != nil {
		return err
	}
	if err := m.unwrapsNothing(ctx, g, which); err != nil {
		return err
	}
	if which.State != store.GenerationRetiring {
		which.State = store.GenerationRetiring
		if err := m.write(ctx, g, "RetireDomainKeyGeneration", which); err != nil {
			return err
		}
		failpoint.Hit("generation.retiring")
		if g, err = m.load(ctx); err != nil {
			return err
		}
		if which, err = g.of(number); err != nil {
			return err
		}
		// Again: a host that does not follow may have wrapped a key meanwhile.
		if keepMAC, err = m.retirable(ctx, which, retention); err != nil {
			return err
		}
	}
	done, undone, fault := m.destroy(ctx, uint32(number), keepMAC) // #nosec G115 -- ours
	return errors.Join(m.destroyed(ctx, g, which, keepMAC, append(done, gone...), undone, gone), fault)
}

// areGone refuses what cannot be: an officer may have mistyped it.
func (m *DomainMembers) areGone(which *store.DomainGeneration, gone []string) error {
	for _, serial := range gone {
		if !slices.Contains(which.Tokens(), serial) {
			return fmt.Errorf("no token of serial number %q is on record for generation %d: `trent domain status` lists them", serial, which.Number)
		}
		if slices.ContainsFunc(m.reachable(), func(each MemberAtHand) bool { return each.Info.Serial == serial }) {
			return fmt.Errorf("token %s can be reached, so it is not gone: leave --gone out", serial)
		}
	}
	return nil
}

// unwrapsNothing refuses if a key is wrapped under the generation, by rows that
// are verified: who writes to the database could hide some from a mere count,
// and have them destroyed in every backup as well.
func (m *DomainMembers) unwrapsNothing(ctx context.Context, g *generations, which *store.DomainGeneration) error {
	m.Progress("reading every key, to see that none is wrapped under it")
	m.DB.SetSealer(g.deployment.ID, m.Sealers())
	defer m.DB.SetSealer(g.deployment.ID, m.Member)
	under, err := m.DB.WrappedKeys(ctx, func(read int) { m.Progress(fmt.Sprintf("%d keys read", read)) })
	if err != nil {
		return fmt.Errorf("nothing is destroyed while it cannot be told what needs it: %w", err)
	}
	if n := under[uint32(which.Number)]; n > 0 { // #nosec G115 -- ours
		return notYet("%d keys are wrapped under generation %d: %s", n, which.Number, whyStill(which.Profile))
	}
	return nil
}

// destroy returns the serial numbers of the members that hold nothing of the
// generation any more, and the names of the others.
func (m *DomainMembers) destroy(ctx context.Context, number uint32, keepMAC bool) (done, undone []string, fault error) {
	what := "domain keys and MAC key"
	if keepMAC {
		what = "domain keys"
	}
	for _, each := range m.Members {
		err := each.Err
		if err == nil {
			m.Progress(fmt.Sprintf("destroying the %s of generation %d on member %s, token %s", what, number, each.Name, each.Info.Serial))
			if err = each.Domain.DestroyGeneration(ctx, number, keepMAC); err == nil {
				err = each.Domain.DropEnrolmentKey(ctx, number)
			}
			fault = errors.Join(fault, err)
		}
		if err != nil {
			undone = append(undone, "member "+each.Name)
			continue
		}
		done = append(done, each.Info.Serial)
		failpoint.Hit("generation.emptied")
	}
	return done, undone, fault
}

// destroyed records which tokens hold nothing of the generation any more. Where
// no row says which ones held it, because an enrolment was only begun or MAC
// keys alone were left, that is every member. It fails while one is left.
func (m *DomainMembers) destroyed(ctx context.Context, g *generations, which *store.DomainGeneration, keepMAC bool, done, undone, gone []string) error {
	before := which.Tokens()
	left := slices.DeleteFunc(which.Tokens(), func(serial string) bool { return slices.Contains(done, serial) })
	which.SetTokens(slices.Clone(left))
	if len(before) == 0 && (!keepMAC || which.Destroyed == nil) {
		left = undone
		for _, row := range g.enrolled() {
			if !slices.ContainsFunc(m.reachable(), func(each MemberAtHand) bool { return each.Info.Serial == row.Serial }) {
				left = append(left, "token "+row.Serial)
			}
		}
	}
	var unfinished error
	switch {
	case len(left) > 0:
		unfinished = notYet("something of generation %d may still be on %s: run this again when all of it is configured and can be reached. "+
			"A token that is no more, or was restored under another serial number, is named with --gone; a member that is no more is taken out with `trent domain remove-member`", which.Number, strings.Join(left, ", "))
		if slices.Equal(which.Tokens(), before) {
			return unfinished
		}
	case keepMAC:
		which.State = store.GenerationRetired
		m.Progress("its MAC key stays for what was sealed under it: the audit log above all")
	default:
		which.State = store.GenerationDestroyed
	}
	if now := m.now(); which.Destroyed == nil && len(left) == 0 {
		which.Destroyed = &now
	}
	return errors.Join(m.writeOf(ctx, g, "DestroyDomainKeyGeneration", m.eventOf(which, gone)), unfinished)
}

// retirable refuses while anything needs the domain keys, and says whether
// something needs the MAC key.
func (a *DomainAdmin) retirable(ctx context.Context, g *store.DomainGeneration, retention time.Duration) (keepMAC bool, err error) {
	switch g.State {
	case store.GenerationActive:
		return false, fmt.Errorf("generation %d is the active one: make a successor first, with `trent domain rotate`", g.Number)
	case store.GenerationDestroyed:
		return false, fmt.Errorf("generation %d has been destroyed", g.Number)
	}
	uses, err := a.DB.GenerationUses(ctx)
	if err != nil {
		return false, err
	}
	use := uses[uint32(g.Number)] // #nosec G115 -- ours
	if use.EKTs > 0 {
		return false, notYet("%d keys are wrapped under generation %d: %s", use.EKTs, g.Number, whyStill(g.Profile))
	}
	if g.Superseded != nil {
		if until := g.Superseded.Add(retention); a.now().Before(until) {
			return false, notYet("generation %d was the active one until %s, and backups of the database from then need it until %s (--backup-retention)",
				g.Number, g.Superseded.Format(time.DateTime), until.Format(time.DateTime))
		}
	}
	logged, err := a.DB.LogSealedUnder(ctx, uint32(g.Number)) // #nosec G115 -- as above
	return logged || use.MACs > 0, err
}

// untouched refuses if something is under a generation that was never finished
// as far as its row says: then the rows are older than the token, whose keys
// are not to be made anew.
func (a *DomainAdmin) untouched(ctx context.Context, number int64) error {
	generation := uint32(number) // #nosec G115 -- ours
	uses, err := a.DB.GenerationUses(ctx)
	if err != nil {
		return err
	}
	logged, err := a.DB.LogSealedUnder(ctx, generation)
	if err != nil {
		return err
	}
	if use := uses[generation]; use.EKTs > 0 || use.MACs > 0 || logged {
		return fmt.Errorf("generation %d was never finished, its row says, but %d keys, %d rows or the audit log are under it: the database was set back in part; do not use it before you know by whom, and restore it from a backup",
			number, use.EKTs, use.MACs)
	}
	return nil
}

func whyStill(profile string) string {
	if profile == "trusted" {
		return "the service moves them to the active generation in the background (trent serve must run; see `trent domain status`)"
	}
	return "it is of the locked profile, which keeps them there until each key's own rotation and the deletion of its old versions; it stays for as long as they do"
}
