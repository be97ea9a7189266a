package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// DomainMembers does what the officer orders for the members of the domain. It
// needs all of them at hand, each in a worker process of its own.
type DomainMembers struct {
	DomainAdmin // its Member and Serial are chosen: see lead
	Members     []MemberAtHand
}

// MemberAtHand is a configured member.
type MemberAtHand struct {
	Name   string
	Info   hsm.Info    // of its token
	Domain *hsm.Domain // of it alone, opened with Enrolling; nil if Err
	Err    error       // why it could not be opened
}

// Sealers verify with whichever member holds the generation.
func (m *DomainMembers) Sealers() store.Sealer { return sealers(m.reachable()) }

type sealers []MemberAtHand

// Verify implements store.Sealer.
func (all sealers) Verify(ctx context.Context, generation uint32, message, mac []byte) (ok bool, err error) {
	for _, m := range all {
		var fault error
		if ok, fault = m.Domain.Verify(ctx, generation, message, mac); ok {
			return true, nil
		}
		err = errors.Join(err, fault)
	}
	return false, err
}

// Sum implements store.Sealer.
func (all sealers) Sum(ctx context.Context, message []byte) (generation uint32, mac []byte, err error) {
	for _, m := range all {
		var fault error
		if generation, mac, fault = m.Domain.Sum(ctx, message); fault == nil {
			return generation, mac, nil
		}
		err = errors.Join(err, fault)
	}
	return 0, nil, err
}

func (m *DomainMembers) reachable() []MemberAtHand {
	return slices.DeleteFunc(slices.Clone(m.Members), func(m MemberAtHand) bool { return m.Err != nil })
}

// lead gives all members the proofs and chooses one to seal what is written: the
// first of the candidates that holds the active generation, but not the one of
// serial but.
func (m *DomainMembers) lead(ctx context.Context, but string) (*generations, error) {
	d, all, rows, err := m.DB.Domain(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the generations: %w", err)
	}
	g := &generations{d, all, slices.Clone(all), rows, slices.Clone(rows)}
	active := g.in(store.GenerationActive)
	if active == nil {
		return nil, errors.New("no generation is active: restore the database from a backup")
	}
	faults, proved := []error(nil), map[string]bool{}
	for _, each := range m.reachable() {
		if err := each.Domain.SetProofs(ctx, ProofsOf(all)); err != nil {
			faults = append(faults, fmt.Errorf("member %s: %w", each.Name, err))
		} else {
			proved[each.Info.Serial] = each.Info.Serial != but
		}
	}
	for _, each := range m.candidates(ctx, g) {
		if !proved[each.Info.Serial] {
			continue
		}
		if err := each.Domain.SetActive(ctx, uint32(active.Number)); err != nil { // #nosec G115 -- ours
			faults = append(faults, fmt.Errorf("member %s: %w", each.Name, err))
			continue
		}
		if m.Member == nil {
			m.Member, m.Serial = each.Domain, each.Info.Serial
		}
	}
	if m.Member == nil {
		return nil, fmt.Errorf("no member at hand holds the active generation: add one that does to the configuration: %w", errors.Join(faults...))
	}
	m.DB.SetSealer(d.ID, m.Member)
	return g, m.holdsActive(ctx, g)
}

// candidates are the members at hand, first those that are enrolled and, of
// them, those that hold the most: until rows are sealed anew, they may be under
// a generation that a member which came later has never had, and that one would
// take them for forged.
func (m *DomainMembers) candidates(ctx context.Context, g *generations) []MemberAtHand {
	rank := map[string]int{}
	all := m.reachable()
	for _, each := range all {
		held, err := each.Domain.Generations(ctx)
		if err != nil {
			continue // it says so itself if it is to lead
		}
		for _, h := range held {
			if _, err := g.of(int64(h.Number)); err == nil && h.MAC {
				rank[each.Info.Serial]++
			}
		}
	}
	for _, row := range g.enrolled() {
		rank[row.Serial] += len(g.all)
	}
	slices.SortStableFunc(all, func(a, b MemberAtHand) int { return rank[b.Info.Serial] - rank[a.Info.Serial] })
	return all
}

// enrolled are the members that are there.
func (g *generations) enrolled() []store.DomainMember {
	return slices.DeleteFunc(slices.Clone(g.members), func(m store.DomainMember) bool { return m.State != store.MemberEnrolled })
}

// single refuses what would leave other members behind.
func (g *generations) single() error {
	if n := len(g.enrolled()); n > 1 {
		return fmt.Errorf("this domain has %d members, and a generation that one of them makes would be that one's alone: run `trent domain enrol`, which makes one for all", n)
	}
	if pending := g.in(store.GenerationCreated); pending != nil && len(pending.Tokens()) == 0 {
		return fmt.Errorf("an enrolment has begun generation %d: finish it with `trent domain enrol`, or discard it with `trent domain retire --generation %d`", pending.Number, pending.Number)
	}
	return nil
}

// MemberStatus is a member as an officer sees it.
type MemberStatus struct {
	Name        string     `json:"name,omitempty"` // in this host's configuration
	Serial      string     `json:"serial"`
	Label       string     `json:"label"`
	State       string     `json:"state"` // "" = not enrolled
	Fingerprint string     `json:"fingerprint,omitempty"`
	Holds       []uint32   `json:"holds"` // generations that are whole on it
	Fault       string     `json:"fault,omitempty"`
	Enrolled    *time.Time `json:"enrolled,omitempty"`
	EnrolledBy  string     `json:"enrolledBy,omitempty"`
	Removed     *time.Time `json:"removed,omitempty"`
	RemovedBy   string     `json:"removedBy,omitempty"`
}

// List says of each member, configured or enrolled, what it holds.
func (m *DomainMembers) List(ctx context.Context) ([]MemberStatus, error) {
	g, err := m.lead(ctx, "")
	if err != nil {
		return nil, err
	}
	var all []MemberStatus
	for _, row := range g.members {
		s := MemberStatus{Serial: row.Serial, Label: row.Label, State: row.State, Fingerprint: row.Fingerprint,
			Enrolled: &row.Enrolled, EnrolledBy: row.EnrolledBy, Removed: row.Removed, RemovedBy: row.RemovedBy, Fault: "not in this configuration"}
		all = append(all, s)
	}
	for _, each := range m.Members {
		i := slices.IndexFunc(all, func(s MemberStatus) bool { return each.Err == nil && s.Serial == each.Info.Serial })
		if i < 0 {
			all = append(all, MemberStatus{Serial: each.Info.Serial, Label: each.Info.Label})
			i = len(all) - 1
		}
		all[i].Name, all[i].Fault = each.Name, ""
		if each.Err != nil {
			all[i].Fault = each.Err.Error()
			continue
		}
		held, err := each.Domain.Generations(ctx)
		if err != nil {
			all[i].Fault = err.Error()
			continue
		}
		for _, h := range held {
			if h.Whole {
				all[i].Holds = append(all[i].Holds, h.Number)
			}
		}
	}
	return all, nil
}

// Remove takes a member out of the domain and destroys what it holds. It
// refuses while anything needs what no other member has, unless the member is
// lost, and that with it. One that was removed as lost and has turned up is the
// last to have it, and is not emptied either.
func (m *DomainMembers) Remove(ctx context.Context, serial string, lost bool) error {
	return m.exclusively(ctx, func(ctx context.Context) error { return m.remove(ctx, serial, lost) })
}

func (m *DomainMembers) remove(ctx context.Context, serial string, lost bool) error {
	g, err := m.lead(ctx, serial)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(g.members, func(row store.DomainMember) bool { return row.Serial == serial })
	if i < 0 {
		return fmt.Errorf("no member has serial number %q: `trent domain members` lists them", serial)
	}
	if lost && slices.ContainsFunc(m.reachable(), func(each MemberAtHand) bool { return each.Info.Serial == serial }) {
		return errors.New("this member can be reached, so it is not lost: leave --lost out, or take its [[hsm-member]] table out of the configuration if you will never use it again")
	}
	needed, err := m.needed(ctx, g, g.members[i])
	if err != nil {
		return err
	}
	if needed != "" && g.members[i].State != store.MemberEnrolled {
		return notYet("this member was removed, but %s: it is not emptied; have it serve again with `trent domain enrol`", needed)
	}
	if g.members[i].State == store.MemberEnrolled {
		if needed != "" && !lost {
			return notYet("%s: add another that holds it to this configuration (`trent domain status` lists their tokens); if there is none, this member has to stay, or, if it is gone for good, is removed with --lost (docs/operations.md, \"A member that has to stay\")", needed)
		}
		if needed != "" {
			m.Progress("lost with the member: " + needed)
		}
		if err := m.copiesWithout(ctx, g, serial); err != nil && !lost {
			return err
		} else if err != nil {
			m.Progress(err.Error())
		}
		now := m.now()
		g.members[i].State, g.members[i].Removed, g.members[i].RemovedBy = store.MemberRemoved, &now, m.Operator
		for j := range g.all {
			if held := g.all[j].Tokens(); slices.Contains(held, serial) {
				g.all[j].SetTokens(slices.DeleteFunc(held, func(s string) bool { return s == serial }))
			}
		}
		if err := m.writeOf(ctx, g, "RemoveDomainMember", memberEvent{Serial: serial, Label: g.members[i].Label, Lost: lost, LostWith: needed, Operator: m.Operator}); err != nil {
			return err
		}
		failpoint.Hit("enrol.removed")
	}
	return m.empty(ctx, serial)
}

// memberEvent is a member in the audit log.
type memberEvent struct {
	Serial      string `json:"token"`
	Label       string `json:"label"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Lost        bool   `json:"lost,omitempty"`
	LostWith    string `json:"lostWith,omitempty"` // what it alone held
	Operator    string `json:"operator"`
}

// needed says what the member alone holds and what needs it; "" if there is
// nothing.
func (m *DomainMembers) needed(ctx context.Context, g *generations, member store.DomainMember) (string, error) {
	uses, err := m.DB.GenerationUses(ctx)
	if err != nil {
		return "", err
	}
	held, err := m.heldBy(ctx, member.Serial)
	if err != nil {
		return "", err
	}
	for _, row := range g.all {
		number := uint32(row.Number) // #nosec G115 -- ours
		// The row of a retired one says nothing of the MAC key, and none says
		// what a member holds that has been removed since.
		onRecord := slices.Contains(row.Tokens(), member.Serial) || row.State == store.GenerationRetired && member.State == store.MemberEnrolled
		if !onRecord && !slices.Contains(held, number) {
			continue
		}
		logged, err := m.DB.LogSealedUnder(ctx, number)
		if err != nil {
			return "", err
		}
		use := uses[number]
		keys := row.State == store.GenerationActive || row.State == store.GenerationCreated || use.EKTs > 0
		if !keys && use.MACs == 0 && !logged {
			continue
		}
		alone, err := m.alone(ctx, number, member.Serial, keys)
		if err != nil {
			return "", err
		}
		if alone {
			if !keys && use.MACs == 0 {
				return fmt.Sprintf("of the members at hand this one alone holds generation %d, whose MAC key is what the audit log of its time is verified with, and can be carried to no other member", row.Number), nil
			}
			return fmt.Sprintf("of the members at hand this one alone holds generation %d, which %d keys, %d rows%s need",
				row.Number, use.EKTs, use.MACs, map[bool]string{true: " and the audit log", false: ""}[logged]), nil
		}
	}
	return "", nil
}

// copiesWithout refuses to leave keys on one token of which nobody has confirmed
// a backup: a generation that was enrolled has none, since two had it.
func (m *DomainMembers) copiesWithout(ctx context.Context, g *generations, serial string) error {
	uses, err := m.DB.GenerationUses(ctx)
	if err != nil {
		return err
	}
	for _, row := range g.all {
		held := row.Tokens()
		used := row.State == store.GenerationActive || row.State == store.GenerationCreated || uses[uint32(row.Number)].EKTs > 0 // #nosec G115 -- ours
		left := slices.DeleteFunc(slices.Clone(held), func(s string) bool { return s == serial })
		if used && len(left) == 1 && len(held) > 1 && row.BackupConfirmed == nil {
			return notYet("without this member only token %s holds generation %d: were it lost, so would be every key under it. Back that token up with the vendor's tool, then run `trent domain confirm-backup --generation %d` with its [[hsm-member]] table first",
				left[0], row.Number, row.Number)
		}
	}
	return nil
}

// heldBy are the generations that a member has something of; none if it is not
// at hand.
func (m *DomainMembers) heldBy(ctx context.Context, serial string) (numbers []uint32, err error) {
	for _, each := range m.reachable() {
		if each.Info.Serial != serial {
			continue
		}
		held, err := each.Domain.Generations(ctx)
		if err != nil {
			return nil, fmt.Errorf("looking at member %s: %w", each.Name, err)
		}
		for _, h := range held {
			numbers = append(numbers, h.Number)
		}
	}
	return numbers, nil
}

// alone says whether no other member holds the generation, or its MAC key if
// that is all that is needed. One that a row names but that is not at hand may
// be lost, and what is destroyed here with it.
func (m *DomainMembers) alone(ctx context.Context, number uint32, serial string, keys bool) (bool, error) {
	for _, each := range m.reachable() {
		if each.Info.Serial == serial {
			continue
		}
		held, err := each.Domain.Generations(ctx)
		if err != nil {
			return false, fmt.Errorf("looking at member %s: %w", each.Name, err)
		}
		if slices.ContainsFunc(held, func(h hsm.Generation) bool { return h.Number == number && (h.Whole || h.MAC && !keys) }) {
			return false, nil
		}
	}
	return true, nil
}

// empty destroys what a removed member holds, if it is at hand.
func (m *DomainMembers) empty(ctx context.Context, serial string) error {
	for _, each := range m.reachable() {
		if each.Info.Serial != serial {
			continue
		}
		held, err := each.Domain.Generations(ctx)
		if err != nil {
			return fmt.Errorf("looking at member %s: %w", each.Name, err)
		}
		for _, h := range held {
			m.Progress(fmt.Sprintf("destroying generation %d on member %s", h.Number, each.Name))
			if err := errors.Join(each.Domain.DestroyGeneration(ctx, h.Number, false), each.Domain.DropEnrolmentKey(ctx, h.Number)); err != nil {
				return err //nolint:wrapcheck // says it all
			}
			failpoint.Hit("enrol.destroyed")
		}
		m.Progress("the member is removed and holds nothing of this domain any more: take it out of every host's configuration")
		return nil
	}
	m.Progress("the member is removed, but is not at hand: take it out of every host's configuration, and erase the token with the vendor's tool")
	return nil
}
