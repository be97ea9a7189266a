package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// Enrol makes a generation that all members at hand hold, and activates it.
// confirmed are the fingerprints of their enrolment keys, as people have read
// them; while one is missing it makes and shows the keys, and nothing else. It
// can be run again after it was interrupted anywhere.
func (m *DomainMembers) Enrol(ctx context.Context, confirmed []string) error {
	return m.exclusively(ctx, func(ctx context.Context) error { return m.enrol(ctx, confirmed) })
}

func (m *DomainMembers) enrol(ctx context.Context, confirmed []string) error {
	g, err := m.lead(ctx, "")
	if err != nil {
		return err
	}
	if err := m.complete(g); err != nil {
		return err
	}
	number, err := m.enrolmentNumber(ctx, g)
	if err != nil {
		return err
	}
	if pending := g.in(store.GenerationCreated); pending == nil || pending.Proof == "" {
		publicKeys, err := m.compare(ctx, number, confirmed)
		if err != nil {
			return err
		}
		if err := m.makeForAll(ctx, g, number, publicKeys); err != nil {
			return err
		}
	} else {
		m.Progress(fmt.Sprintf("going on with generation %d, which all members hold", number))
	}
	for _, each := range m.Members {
		if err := MarkActive(ctx, each.Domain, g.deployment); err != nil && !errors.Is(err, hsm.ErrUnavailable) {
			m.Progress(fmt.Sprintf("trent init could not tell from member %s alone if somebody set the database back: %s", each.Name, err))
		} else if err != nil {
			return err
		}
		if err := each.Domain.DropEnrolmentKey(ctx, uint32(number)); err != nil { // #nosec G115 -- counts up from 1
			return err //nolint:wrapcheck // says it all
		}
		failpoint.Hit("enrol.dropped")
	}
	return m.activate(ctx, number, true)
}

// complete demands that all members are at hand: one that is left out could not
// serve the new generation.
func (m *DomainMembers) complete(g *generations) error {
	serials := map[string]string{}
	for _, each := range m.Members {
		if each.Err != nil {
			return fmt.Errorf("member %s cannot be reached: %w", each.Name, each.Err)
		}
		if other, double := serials[each.Info.Serial]; double {
			return fmt.Errorf("members %s and %s are the same token, of serial number %s: correct the [[hsm-member]] tables", other, each.Name, each.Info.Serial)
		}
		serials[each.Info.Serial] = each.Name
	}
	if len(serials) < 2 {
		return errors.New("enrolment is for two or more members: give each a [[hsm-member]] table, the new one too; one alone is rotated with `trent domain rotate`")
	}
	for _, row := range g.enrolled() {
		if serials[row.Serial] == "" {
			return fmt.Errorf("the member of serial number %s (%s) is enrolled, but is not in this configuration: add its [[hsm-member]] table, or take it out with `trent domain remove-member --serial %s`",
				row.Serial, row.Label, row.Serial)
		}
	}
	return nil
}

// enrolmentNumber is that of the generation to make or to go on with: one that
// is on no token.
func (m *DomainMembers) enrolmentNumber(ctx context.Context, g *generations) (int64, error) {
	number := nextGeneration(g.all)
	if pending := g.in(store.GenerationCreated); pending != nil {
		if len(pending.Tokens()) > 0 && pending.Proof == "" {
			return 0, fmt.Errorf("generation %d was made on one token and is not active yet: activate it first, or discard it with `trent domain retire --generation %d`", pending.Number, pending.Number)
		}
		return number, nil
	}
	for _, each := range m.Members {
		held, err := each.Domain.Generations(ctx)
		if err != nil {
			return 0, fmt.Errorf("looking at member %s: %w", each.Name, err)
		}
		for _, h := range held {
			number = max(number, int64(h.Number)+1)
		}
	}
	return number, nil
}

// Confirm has each member's fingerprint compared before Enrol is called: show
// gets the member, the number of the generation and the fingerprint. There is
// nothing to compare for a generation that all members hold already.
func (m *DomainMembers) Confirm(ctx context.Context, show func(each MemberAtHand, generation int64, fingerprint string) error) (confirmed []string, err error) {
	g, err := m.lead(ctx, "")
	if err != nil {
		return nil, err
	}
	if err := m.complete(g); err != nil {
		return nil, err
	}
	number, err := m.enrolmentNumber(ctx, g)
	if err != nil {
		return nil, err
	}
	if pending := g.in(store.GenerationCreated); pending != nil && pending.Proof != "" {
		return nil, nil
	}
	for _, each := range m.Members {
		public, err := m.EnrolmentKey(ctx, each, uint32(number)) // #nosec G115 -- counts up from 1
		if err != nil {
			return nil, err
		}
		fingerprint := hsm.Fingerprint(public)
		if err := show(each, number, fingerprint); err != nil {
			return nil, err
		}
		confirmed = append(confirmed, fingerprint)
	}
	return confirmed, nil
}

// EnrolmentKey returns the public half of a member's enrolment key for a
// generation, and makes it where there is none: not while another machine does.
func (m *DomainMembers) EnrolmentKey(ctx context.Context, of MemberAtHand, number uint32) (public []byte, err error) {
	err = m.exclusively(ctx, func(ctx context.Context) (err error) {
		public, err = of.Domain.EnrolmentKey(ctx, number)
		return err //nolint:wrapcheck // says it all
	})
	return public, err
}

// compare returns the members' enrolment keys if every one of them is
// confirmed.
func (m *DomainMembers) compare(ctx context.Context, number int64, confirmed []string) (publicKeys [][]byte, err error) {
	open := slices.Clone(confirmed)
	var missing []string
	for _, each := range m.Members {
		public, err := each.Domain.EnrolmentKey(ctx, uint32(number)) // #nosec G115 -- counts up from 1
		if err != nil {
			return nil, err //nolint:wrapcheck // says it all
		}
		publicKeys = append(publicKeys, public)
		fingerprint := hsm.Fingerprint(public)
		m.Progress(fmt.Sprintf("member %s, token %q, serial number %s: its enrolment key for generation %d is %s",
			each.Name, each.Info.Label, each.Info.Serial, number, fingerprint))
		left := slices.DeleteFunc(slices.Clone(open), func(c string) bool { return hsm.SameFingerprint(c, fingerprint) })
		if len(left) == len(open) {
			missing = append(missing, each.Name)
		}
		open = left
	}
	if len(open) > 0 {
		return nil, fmt.Errorf("wrong fingerprint: %s is no member's: either it was mistyped, or for an earlier attempt, or somebody shows you another key than the token's; nothing was made",
			strings.Join(open, ", "))
	}
	if len(missing) > 0 {
		return nil, notYet("read the fingerprints of %s on another machine that reaches the token (`trent domain fingerprint --generation %d --member NAME`), compare them with those above, then run this again with --fingerprint for each member",
			strings.Join(missing, ", "), number)
	}
	return publicKeys, nil
}

// makeForAll makes the generation anew on all members and records it. That it
// is about to be made is recorded first, so that what an interrupted run has
// left can be told from keys that something is under.
func (m *DomainMembers) makeForAll(ctx context.Context, g *generations, number int64, publicKeys [][]byte) (err error) {
	if g.in(store.GenerationCreated) == nil {
		begun := store.DomainGeneration{Number: number, Profile: string(hsm.Locked), State: store.GenerationCreated, Created: m.now()}
		begun.SetTokens([]string{})
		g.all = append(g.all, begun)
		if err := m.write(ctx, g, "BeginDomainKeyGeneration", &begun); err != nil {
			return err
		}
		failpoint.Hit("enrol.recorded")
		if g, err = m.load(ctx); err != nil {
			return err
		}
	}
	if err := m.untouched(ctx, number); err != nil {
		return err
	}
	proof, err := m.carry(ctx, uint32(number), publicKeys) // #nosec G115 -- counts up from 1
	if err != nil {
		return err
	}
	made, err := g.of(number)
	if err != nil {
		return err
	}
	made.Proof = string(proof)
	if err := m.proved(ctx, uint32(number), ProofsOf(g.all)); err != nil { // #nosec G115 -- as above
		return err
	}
	failpoint.Hit("enrol.proved")
	events := m.register(g, made, publicKeys)
	if err := m.writeOf(ctx, g, "EnrolDomainMembers", struct {
		Generation int64         `json:"domainKeyGeneration"`
		Profile    string        `json:"profile"`
		Members    []memberEvent `json:"members"`
		Operator   string        `json:"operator"`
	}{number, made.Profile, events, m.Operator}); err != nil {
		return err
	}
	failpoint.Hit("enrol.enrolled")
	return nil
}

// carry makes the keys on the leading member and brings them to all.
func (m *DomainMembers) carry(ctx context.Context, number uint32, publicKeys [][]byte) (hsm.Proof, error) {
	for _, each := range m.Members {
		if err := each.Domain.DestroyGeneration(ctx, number, false); err != nil {
			return "", fmt.Errorf("clearing what an earlier attempt has left: %w", err)
		}
	}
	maker := m.Members[slices.IndexFunc(m.Members, func(each MemberAtHand) bool { return each.Info.Serial == m.Serial })]
	m.Progress(fmt.Sprintf("making generation %d on member %s, for %d members", number, maker.Name, len(m.Members)))
	made, err := maker.Domain.MakeShared(ctx, number, publicKeys)
	if err != nil {
		return "", err //nolint:wrapcheck // says it all
	}
	failpoint.Hit("enrol.made")
	for i, each := range m.Members {
		if err := each.Domain.TakeShared(ctx, number, made.Parcels[i]); err != nil {
			return "", fmt.Errorf("member %s: %w", each.Name, err)
		}
		failpoint.Hit("enrol.taken")
	}
	return made.Proof, nil
}

// proved demands that every member holds exactly the keys that were made, and
// that they enforce what they must.
func (m *DomainMembers) proved(ctx context.Context, number uint32, proofs hsm.Proofs) error {
	for _, each := range m.Members {
		if err := each.Domain.SetProofs(ctx, proofs); err != nil {
			return fmt.Errorf("member %s: %w", each.Name, err)
		}
		held, err := each.Domain.Generations(ctx)
		if err != nil {
			return fmt.Errorf("member %s: %w", each.Name, err)
		}
		i := slices.IndexFunc(held, func(h hsm.Generation) bool { return h.Number == number })
		if i < 0 || !held[i].Whole {
			why := "it is not there"
			if i >= 0 {
				why = held[i].Why
			}
			return fmt.Errorf("generation %d is not whole on member %s: %s", number, each.Name, why)
		}
	}
	return nil
}

// register notes who holds the generation, and that they are members.
func (m *DomainMembers) register(g *generations, made *store.DomainGeneration, publicKeys [][]byte) (events []memberEvent) {
	var serials []string
	for i, each := range m.Members {
		serials = append(serials, each.Info.Serial)
		fingerprint := hsm.Fingerprint(publicKeys[i])
		events = append(events, memberEvent{Serial: each.Info.Serial, Label: each.Info.Label, Fingerprint: fingerprint, Operator: m.Operator})
		at := slices.IndexFunc(g.members, func(row store.DomainMember) bool { return row.Serial == each.Info.Serial })
		if at < 0 {
			g.members = append(g.members, store.DomainMember{Serial: each.Info.Serial})
			at = len(g.members) - 1
		}
		row := &g.members[at]
		if row.State != store.MemberEnrolled {
			row.State, row.Enrolled, row.EnrolledBy, row.Removed, row.RemovedBy = store.MemberEnrolled, m.now(), m.Operator, nil, ""
		}
		row.Label, row.Fingerprint = each.Info.Label, fingerprint
	}
	made.SetTokens(serials)
	return events
}
