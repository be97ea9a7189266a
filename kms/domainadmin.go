package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// DomainAdmin does what the security officer orders for the domain keys, in a
// process of its own that is logged in to one member's token. All that it
// decides on are sealed rows; what it changes is committed with its audit
// record, and every host follows.
type DomainAdmin struct {
	Member DomainKeys
	Serial string // of the member's token
	DB     *store.DB
	// Commit writes a change with its audit record.
	Commit func(ctx context.Context, r *audit.Record, c *store.Change) error
	Now    func() time.Time // nil = the clock
	// Operator is who gave the order, as the audit log shall name him.
	Operator string
	// Progress is told each step, as a sentence without its full stop.
	Progress func(step string)
}

// DomainKeys is what an officer's orders are about: *hsm.Member, or an
// *hsm.Domain of one.
type DomainKeys interface {
	store.Sealer
	SetActive(ctx context.Context, generation uint32) error
	SetProofs(ctx context.Context, proofs hsm.Proofs) error
	Generations(ctx context.Context) ([]hsm.Generation, error)
	DestroyGeneration(ctx context.Context, generation uint32, keepMAC bool) error
	DropEnrolmentKey(ctx context.Context, generation uint32) error
	secretMaker
}

// maker makes a generation that one member holds alone.
type maker interface {
	CreateGeneration(ctx context.Context, generation uint32, profile hsm.Profile) error
}

// ErrNotYet wraps what an officer has to wait for or do first.
var ErrNotYet = errors.New("not yet")

func notYet(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrNotYet, fmt.Sprintf(format, args...))
}

func (a *DomainAdmin) now() time.Time {
	if a.Now != nil {
		return a.Now().UTC()
	}
	return clock().UTC()
}

// generations are all of the domain, in order, with what each commit replaces.
type generations struct {
	deployment store.Deployment
	before     []store.DomainGeneration
	all        []store.DomainGeneration

	membersBefore, members []store.DomainMember
}

func (a *DomainAdmin) load(ctx context.Context) (*generations, error) {
	d, all, members, err := a.DB.Domain(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the generations: %w", err)
	}
	if err := a.Member.SetProofs(ctx, ProofsOf(all)); err != nil {
		return nil, fmt.Errorf("proving the generations that several members hold: %w", err)
	}
	return &generations{d, all, slices.Clone(all), members, slices.Clone(members)}, nil
}

// ProofsOf are the proofs of the generations that several members hold.
func ProofsOf(all []store.DomainGeneration) hsm.Proofs {
	proofs := hsm.Proofs{}
	for _, g := range all {
		if g.Proof != "" {
			proofs[uint32(g.Number)] = hsm.Proof(g.Proof) // #nosec G115 -- ours
		}
	}
	return proofs
}

func (g *generations) of(number int64) (*store.DomainGeneration, error) {
	i := slices.IndexFunc(g.all, func(g store.DomainGeneration) bool { return g.Number == number })
	if i < 0 {
		return nil, fmt.Errorf("there is no generation %d: `trent domain status` lists them", number)
	}
	return &g.all[i], nil
}

// in returns the generation in a state, of which there is at most one.
func (g *generations) in(state string) *store.DomainGeneration {
	i := slices.IndexFunc(g.all, func(g store.DomainGeneration) bool { return g.State == state })
	if i < 0 {
		return nil
	}
	return &g.all[i]
}

// write commits g with a record of the event.
func (a *DomainAdmin) write(ctx context.Context, g *generations, event string, concerns *store.DomainGeneration) error {
	return a.writeOf(ctx, g, event, a.eventOf(concerns, nil))
}

// generationEvent is what happens to a generation, in the audit log.
type generationEvent struct {
	Generation int64    `json:"domainKeyGeneration"`
	Profile    string   `json:"profile"`
	State      string   `json:"state"`
	Tokens     []string `json:"tokens"`
	Gone       []string `json:"gone,omitempty"` // tokens, as the operator says
	Operator   string   `json:"operator"`
	Token      string   `json:"token"` // that seals
}

func (a *DomainAdmin) eventOf(g *store.DomainGeneration, gone []string) generationEvent {
	return generationEvent{g.Number, g.Profile, g.State, g.Tokens(), gone, a.Operator, a.Serial}
}

func (a *DomainAdmin) writeOf(ctx context.Context, g *generations, event string, what any) error {
	details, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("encoding an event: %w", err)
	}
	change := a.DB.NewChange()
	if err := change.WriteDomain(ctx, g.deployment, g.before, g.all, g.membersBefore, g.members); err != nil {
		return fmt.Errorf("sealing the generations: %w", err)
	}
	err = a.Commit(ctx, a.event(g, event, details), change)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
		return fmt.Errorf("recording %s: somebody else changed the generations at the same time: look at `trent domain status`, then run this again", event)
	}
	if err != nil {
		return fmt.Errorf("recording %s: %w", event, err)
	}
	return nil
}

// exclusively runs f while no other process makes or destroys keys on tokens.
// What f decides on it has to load itself, and it stops when its context ends.
func (a *DomainAdmin) exclusively(ctx context.Context, f func(ctx context.Context) error) error {
	return a.DB.WithDomainLock(ctx, f) //nolint:wrapcheck // says it all
}

// Create makes the next generation on this token and records it, or goes on
// with one that is not active yet. Under the trusted profile the security officer
// must have made its domain keys before: see hsm.MakeTrustedKeys.
func (a *DomainAdmin) Create(ctx context.Context, profile hsm.Profile) (made store.DomainGeneration, err error) {
	err = a.exclusively(ctx, func(ctx context.Context) error {
		made, err = a.create(ctx, profile)
		return err
	})
	return made, err
}

func (a *DomainAdmin) create(ctx context.Context, profile hsm.Profile) (store.DomainGeneration, error) {
	g, err := a.creatable(ctx, profile)
	if err != nil {
		return store.DomainGeneration{}, err
	}
	number := nextGeneration(g.all)
	if pending := g.in(store.GenerationCreated); pending != nil {
		a.Progress(fmt.Sprintf("going on with generation %d, which is not active yet", pending.Number))
		if slices.Contains(pending.Tokens(), a.Serial) {
			return *pending, nil
		}
	}
	a.Progress(fmt.Sprintf("making generation %d, %s, on token %s", number, profile, a.Serial))
	m, ok := a.Member.(maker)
	if !ok {
		return store.DomainGeneration{}, errors.New("a generation is made by a member in this process")
	}
	if err := m.CreateGeneration(ctx, uint32(number), profile); err != nil { // #nosec G115 -- counts up from 1
		return store.DomainGeneration{}, fmt.Errorf("making generation %d: %w", number, err)
	}
	failpoint.Hit("generation.made")
	made := store.DomainGeneration{Number: number, Profile: string(profile), State: store.GenerationCreated, Created: a.now()}
	made.SetTokens([]string{a.Serial})
	g.all = append(g.all, made)
	if err := a.write(ctx, g, "CreateDomainKeyGeneration", &made); err != nil {
		return store.DomainGeneration{}, err
	}
	failpoint.Hit("generation.recorded")
	return made, nil
}

// Next is the number of the generation that Create would make, or why it would
// not: to ask before anything is made on the token.
func (a *DomainAdmin) Next(ctx context.Context, profile hsm.Profile) (int64, error) {
	g, err := a.creatable(ctx, profile)
	if err != nil {
		return 0, err
	}
	return nextGeneration(g.all), nil
}

func (a *DomainAdmin) creatable(ctx context.Context, profile hsm.Profile) (*generations, error) {
	g, err := a.load(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.holdsActive(ctx, g); err != nil {
		return nil, err
	}
	if err := g.single(); err != nil {
		return nil, err
	}
	return g, goesOn(g.all, profile)
}

// goesOn refuses to go on, under a profile, with a generation of another one.
func goesOn(all []store.DomainGeneration, profile hsm.Profile) error {
	last := all[len(all)-1]
	if last.State != store.GenerationCreated || last.Profile == string(profile) {
		return nil
	}
	return fmt.Errorf("generation %d has been made of the %s profile and is not active yet: activate it first, or discard it with `trent domain retire --generation %d`",
		last.Number, last.Profile, last.Number)
}

// nextGeneration is the number that Create gives.
func nextGeneration(all []store.DomainGeneration) int64 {
	last := all[len(all)-1]
	if last.State == store.GenerationCreated {
		return last.Number
	}
	return last.Number + 1
}

// holdsActive refuses to work on a token that lacks the active generation: a
// successor made there would never meet it. It notes where a deployment that
// was never rotated has its first generation.
func (a *DomainAdmin) holdsActive(ctx context.Context, g *generations) error {
	active := g.in(store.GenerationActive)
	if active == nil {
		return errors.New("no generation is active: restore the database from a backup")
	}
	if err := a.Member.SetActive(ctx, uint32(active.Number)); err != nil { // #nosec G115 -- ours
		return fmt.Errorf("this token cannot serve the active generation: use a token that does, or restore this one: %w", err)
	}
	if active.Version == 0 {
		active.SetTokens([]string{a.Serial})
	}
	return nil
}

// ConfirmBackup records that somebody has seen to a backup of the HSM that
// holds the generation. It demands that this token holds one that is, or may
// become, the active one: nobody has a backup of what was not made yet.
func (a *DomainAdmin) ConfirmBackup(ctx context.Context, number int64) error {
	g, err := a.load(ctx)
	if err != nil {
		return err
	}
	which, err := g.of(number)
	if err != nil {
		return err
	}
	if which.BackupConfirmed != nil {
		a.Progress(fmt.Sprintf("the backup was confirmed before, by %s", which.BackupBy))
		return nil
	}
	if err := a.holdsActive(ctx, g); err != nil {
		return err
	}
	if which.State == store.GenerationCreated || which.State == store.GenerationActive {
		if err := a.holdsWhole(ctx, which); err != nil {
			return err
		}
	}
	now := a.now()
	which.BackupConfirmed, which.BackupBy = &now, a.Operator
	return a.write(ctx, g, "ConfirmDomainKeyBackup", which)
}

// Safe says why a generation may not be activated yet: nobody but one token
// has it.
func Safe(g store.DomainGeneration) error {
	if g.BackupConfirmed != nil || len(g.Tokens()) > 1 {
		return nil
	}
	return notYet("only token %s holds generation %d: were it lost, so would be every key under it. Back the token up with the vendor's tool, then run `trent domain confirm-backup --generation %d`",
		g.Holders, g.Number, g.Number)
}

// Activate makes a generation the one that wraps and seals what is new. Every
// host follows within a second. It can be called again. One that was enrolled is
// activated by Enrol.
func (a *DomainAdmin) Activate(ctx context.Context, number int64) error {
	return a.activate(ctx, number, false)
}

func (a *DomainAdmin) activate(ctx context.Context, number int64, enrolled bool) error {
	g, err := a.load(ctx)
	if err != nil {
		return err
	}
	next, err := g.of(number)
	if err != nil {
		return err
	}
	switch {
	case next.State == store.GenerationActive:
		a.Progress(fmt.Sprintf("generation %d is active", number))
		return nil
	case next.State != store.GenerationCreated:
		return fmt.Errorf("generation %d is %s: only a new one can be activated; make one with `trent domain rotate`", number, next.State)
	case next.Proof != "" && !enrolled:
		return fmt.Errorf("generation %d was enrolled, and the enrolment keys that its copies came with may still be on the tokens: finish it with `trent domain enrol`, which destroys them first", number)
	}
	if err := Safe(*next); err != nil {
		return err
	}
	if err := a.holdsActive(ctx, g); err != nil { // the change is sealed by the old one
		return err
	}
	if err := a.holdsWhole(ctx, next); err != nil {
		return err
	}
	now := a.now()
	old := g.in(store.GenerationActive)
	old.State, old.Superseded = store.GenerationSuperseded, &now
	next.State, next.Activated = store.GenerationActive, &now
	if err := a.write(ctx, g, "ActivateDomainKeyGeneration", next); err != nil {
		return err
	}
	failpoint.Hit("generation.activated")
	a.Progress(fmt.Sprintf("generation %d is active", number))
	return a.Member.SetActive(ctx, uint32(number)) // #nosec G115 -- ours
}

func (a *DomainAdmin) holdsWhole(ctx context.Context, g *store.DomainGeneration) error {
	held, err := a.Member.Generations(ctx)
	if err != nil {
		return fmt.Errorf("looking at the token: %w", err)
	}
	for _, h := range held {
		if int64(h.Number) == g.Number && h.Whole && string(h.Profile) == g.Profile {
			return nil
		}
	}
	return fmt.Errorf("token %s does not hold generation %d, %s: run this where it does", a.Serial, g.Number, g.Profile)
}
