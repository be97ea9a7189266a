package kms

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/store"
)

// Retire destroys on this token what nothing needs of a generation: its domain
// keys once no EKT is under them and backups of the database from before are
// older than retention; its MAC key once no row and no audit batch is sealed
// under it. A generation that was never active is discarded at once. It can be
// called again, and has to be for each token that holds the generation.
func (a *DomainAdmin) Retire(ctx context.Context, number int64, retention time.Duration) error {
	g, err := a.load(ctx)
	if err != nil {
		return err
	}
	which, err := g.of(number)
	if err != nil {
		return err
	}
	if err := a.holdsActive(ctx, g); err != nil {
		return err
	}
	keepMAC, err := a.retirable(ctx, which, retention)
	if err != nil {
		return err
	}
	if which.State != store.GenerationRetiring {
		which.State = store.GenerationRetiring
		if err := a.write(ctx, g, "RetireDomainKeyGeneration", which); err != nil {
			return err
		}
		failpoint.Hit("generation.retiring")
		if g, err = a.load(ctx); err != nil {
			return err
		}
		if which, err = g.of(number); err != nil {
			return err
		}
	}
	what := "domain keys and MAC key"
	if keepMAC {
		what = "domain keys"
	}
	a.Progress(fmt.Sprintf("destroying the %s of generation %d on token %s", what, number, a.Serial))
	if err := a.Member.DestroyGeneration(ctx, uint32(number), keepMAC); err != nil { // #nosec G115 -- ours
		return err //nolint:wrapcheck // says it all
	}
	if err := a.Member.DropEnrolmentKey(ctx, uint32(number)); err != nil { // #nosec G115 -- as above
		return err //nolint:wrapcheck // says it all
	}
	now := a.now()
	before := which.Tokens()
	which.SetTokens(slices.DeleteFunc(which.Tokens(), func(serial string) bool { return serial == a.Serial }))
	left := which.Tokens()
	switch {
	case len(left) > 0:
		a.Progress(fmt.Sprintf("it is still on %s: run this with --member for each", strings.Join(left, ", ")))
		if slices.Equal(left, before) {
			return nil // this token did not hold it, or was here before
		}
	case keepMAC:
		which.State = store.GenerationRetired
		a.Progress("its MAC key stays for what was sealed under it: the audit log above all")
	default:
		which.State = store.GenerationDestroyed
	}
	if which.Destroyed == nil && len(left) == 0 {
		which.Destroyed = &now
	}
	return a.write(ctx, g, "DestroyDomainKeyGeneration", which)
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
