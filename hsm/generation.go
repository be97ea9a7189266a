package hsm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/miekg/pkcs11"
)

// Profile is what a generation's domain keys enforce on what they unwrap.
type Profile string

const (
	// Locked: a copy of a backing key can never be wrapped again. A host that
	// was taken over cannot take an existing key out, by any means; nor can
	// keys be moved to a later generation.
	Locked Profile = "locked"
	// Trusted: a copy can be wrapped again, but only by a key that the
	// security officer has marked CKA_TRUSTED. Keys can be moved to a later
	// generation and to further members.
	Trusted Profile = "trusted"
)

// Generation is one set of a domain's keys on one token.
type Generation struct {
	Number  uint32  `json:"number"`
	Profile Profile `json:"profile"` // "" if Whole is false
	// Whole: all keys are there and enforce what they must. Otherwise Why says
	// what is missing, and nothing can be wrapped or unwrapped.
	Whole bool   `json:"whole"`
	Why   string `json:"why,omitempty"`
	// MAC: MACs of this generation can be verified.
	MAC bool `json:"mac"`
	// Retired: nothing but the MAC key is left.
	Retired bool `json:"retired,omitempty"`
	// Public: the security officer could make the domain keys only as public
	// objects (SoftHSM). Tokens may keep those unencrypted: for tests only.
	Public bool `json:"public,omitempty"`
	// Shared: several members hold it, and its Proof was asked for.
	Shared bool `json:"shared,omitempty"`
	Active bool `json:"active"`
}

// ErrNoGeneration means that this token does not hold a generation, or not
// whole. Another member may.
var ErrNoGeneration = errors.New("this token does not hold the generation")

// generationKeys are the handles of one generation's objects in one epoch.
type generationKeys struct {
	Generation
	wrap map[keyClass]pkcs11.ObjectHandle
	by   wrapWays            // how the domain keys wrap on this token
	mac  pkcs11.ObjectHandle // 0 if there is none
	err  error               // why it is not whole
	// proof is what it was examined with; "" = it was made here.
	proof Proof
}

// domainKeys are the handles of a domain's objects in one epoch. It never
// changes: a new one takes its place.
type domainKeys struct {
	epoch           uint64
	*generationKeys // the active one
	generations     map[uint32]*generationKeys
	probe           probe
}

// of returns the keys of a generation that can wrap and unwrap.
func (keys *domainKeys) of(generation uint32) (*generationKeys, error) {
	g := keys.generations[generation]
	switch {
	case g == nil:
		return nil, absentGeneration{generation, errNotFound}
	case !g.Whole:
		return nil, absentGeneration{generation, g.err}
	}
	return g, nil
}

// absentGeneration is ErrNoGeneration, and for whom it matters ErrInvalidEKT.
type absentGeneration struct {
	number uint32
	why    error
}

func (e absentGeneration) Error() string {
	return fmt.Sprintf("%v %d: %v", ErrNoGeneration, e.number, e.why)
}

// Is makes it match both.
func (e absentGeneration) Is(target error) bool {
	return target == ErrNoGeneration || target == ErrInvalidEKT
}

// current returns the domain's handles, found anew if a new epoch began.
func (d *Member) current(ctx context.Context) (*domainKeys, error) {
	d.mu.Lock()
	keys := d.keys
	d.mu.Unlock()
	if keys != nil && keys.epoch == d.t.epoch.Load() {
		return keys, nil
	}
	if err := d.t.onKeeperRetrying(ctx, d.revive); err != nil {
		if errors.Is(err, ErrNoDomain) { // it was there, or nobody had this member
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keys == nil { // forgotten again
		return nil, settled(errStale)
	}
	return d.keys, nil
}

// look finds the domain's objects on the token as it is now.
func (d *Member) look(ctx context.Context) (*domainKeys, error) {
	d.mu.Lock()
	active, before := d.active, d.keys
	d.mu.Unlock()
	var found *domainKeys
	err := d.t.onKeeperRetrying(ctx, func(s *session) error {
		var err error
		found, err = d.find(s, active, before)
		return err
	})
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keep(found, active)
	return found, nil
}

// lookAgain is how often a generation that is not there is looked for: rows
// that an intruder makes up must not keep the token busy.
const lookAgain = 200 * time.Millisecond

// newer looks on the token for a generation that another host may just have
// made, and reports whether it is there now.
func (d *Member) newer(ctx context.Context, generation uint32) bool {
	d.mu.Lock()
	soon := time.Since(d.looked) < lookAgain
	d.looked = time.Now()
	known := d.keys != nil && d.keys.generations[generation] != nil
	d.mu.Unlock()
	if known || soon {
		return known
	}
	keys, err := d.look(ctx)
	return err == nil && keys.generations[generation] != nil
}

// find runs on the keeper's worker. What before has proved is not proved again.
func (d *Member) find(s *session, active uint32, before *domainKeys) (_ *domainKeys, err error) {
	if before != nil && before.epoch != d.t.epoch.Load() {
		before = nil
	}
	keys := &domainKeys{epoch: d.t.epoch.Load(), generations: map[uint32]*generationKeys{}}
	d.mu.Lock()
	proofs := d.proofs // never changes: another one takes its place
	d.mu.Unlock()
	objects, err := s.domainObjects(d.id)
	if err != nil {
		return nil, err
	}
	if before != nil {
		keys.probe = before.probe
	} else {
		if keys.probe, err = d.knownAnswer(s, keys.epoch); err != nil {
			return nil, err
		}
		defer d.dropUnused(s, keys.probe, &err)
	}
	for number, roles := range objects {
		if before != nil {
			if g := before.generations[number]; g.holds(roles) && g.proof == proofs[number] {
				keys.generations[number] = g
				continue
			}
		}
		s.t.module.getsOn()
		if keys.generations[number], err = s.examineGeneration(d.id, number, roles, proofs[number], keys.probe); err != nil {
			return nil, err
		}
	}
	if err := keys.activate(d.id, active); err != nil {
		if !d.enrolling {
			return nil, err
		}
		keys.generationKeys = &generationKeys{} // nothing serves
	}
	return keys, nil
}

// holds says whether g is whole and made of exactly these objects.
func (g *generationKeys) holds(roles map[string]pkcs11.ObjectHandle) bool {
	if g == nil || !g.Whole || len(roles) != len(keyClasses)+1 || roles[macRole] != g.mac {
		return false
	}
	for c, object := range g.wrap {
		if roles[domainKeyRole(c)] != object {
			return false
		}
	}
	return true
}

// activate chooses the generation that wraps and seals.
func (keys *domainKeys) activate(id DomainID, active uint32) error {
	var missing error
	for _, number := range slices.Sorted(maps.Keys(keys.generations)) {
		g := keys.generations[number]
		if active == number || active == 0 && g.Whole {
			if !g.Whole {
				return g.err
			}
			keys.generationKeys = g
			return nil
		}
		if missing == nil {
			missing = g.err
		}
	}
	if active == 0 && missing != nil {
		return missing
	}
	if active == 0 {
		active = firstGeneration
	}
	return incomplete(id, active, nil)
}

// incomplete says what a generation lacks.
func incomplete(id DomainID, number uint32, roles map[string]pkcs11.ObjectHandle) error {
	var missing []string
	for _, role := range allRoles() {
		if _, found := roles[role]; !found {
			missing = append(missing, id.label(role, number))
		}
	}
	next := "if this is the right token run `trent domain rotate` to finish the generation, else restore the token from its backup"
	if number == firstGeneration {
		next = "if this is the right token run `trent init` to finish its set-up, else restore the token from its backup"
	}
	return fmt.Errorf("%w: missing %s; %s", ErrNoDomain, strings.Join(missing, ", "), next)
}

func allRoles() []string {
	var roles []string
	for _, c := range keyClasses {
		roles = append(roles, domainKeyRole(c))
	}
	return append(roles, macRole)
}

// domainObjects finds the domain's keys by generation and role. Two of one
// label would mean that someone planted one: which is ours cannot be told, so
// both are refused.
func (s *session) domainObjects(id DomainID) (map[uint32]map[string]pkcs11.ObjectHandle, error) {
	objects, err := s.find([]*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		attr(pkcs11.CKA_TOKEN, true),
	})
	if err != nil {
		return nil, err
	}
	found := map[uint32]map[string]pkcs11.ObjectHandle{}
	for _, object := range objects {
		label, err := s.attribute(object, pkcs11.CKA_LABEL)
		if err != nil {
			return nil, err
		}
		of, role, generation, ok := parseLabel(string(label))
		if !ok || of != id || generation == 0 || !slices.Contains(allRoles(), role) {
			continue
		}
		if found[generation] == nil {
			found[generation] = map[string]pkcs11.ObjectHandle{}
		}
		if _, double := found[generation][role]; double {
			return nil, doubled(string(label), 2)
		}
		found[generation][role] = object
	}
	return found, nil
}

func doubled(label string, n int) error {
	return fmt.Errorf("%w: %d objects are labelled %q; find out who made the other, and remove it with the vendor's tool",
		ErrDomainConflict, n, label)
}

// examineGeneration proves what one generation's objects enforce. That they
// do not is noted, and an error only of a device that could not answer: the
// other generations are still good.
func (s *session) examineGeneration(id DomainID, number uint32, roles map[string]pkcs11.ObjectHandle, proof Proof, p probe) (*generationKeys, error) {
	g := &generationKeys{Generation: Generation{Number: number, Shared: proof != ""}, wrap: map[keyClass]pkcs11.ObjectHandle{}, proof: proof}
	if mac, found := roles[macRole]; found {
		if g.err = s.examineMAC(id, g, mac); g.err == nil {
			g.mac, g.MAC = mac, true
		}
	}
	for _, c := range keyClasses {
		if object, found := roles[domainKeyRole(c)]; found {
			g.wrap[c] = object
		}
	}
	if g.err == nil && (len(g.wrap) < len(keyClasses) || !g.MAC) {
		g.err = incomplete(id, number, roles)
	}
	if g.err == nil {
		g.err = s.findWays(g)
	}
	if g.err == nil {
		g.err = s.inspect(g)
	}
	if g.err == nil && g.Shared {
		g.err = s.checkDomainKeys(g, p)
	}
	switch {
	case g.err == nil:
		g.Whole = true
	case errors.Is(g.err, ErrDomainConflict), errors.Is(g.err, ErrNoDomain), errors.Is(g.err, errNoWay):
		g.Why = g.err.Error()
		if g.Retired = g.MAC && len(g.wrap) == 0; !g.Retired {
			s.t.log.Warn("a generation of the domain keys is not whole", "token", s.t.info.Label, "generation", number, "error", g.err)
		}
	default:
		return nil, g.err
	}
	return g, nil
}

func (s *session) examineMAC(id DomainID, g *generationKeys, mac pkcs11.ObjectHandle) error {
	if err := s.inspectMAC(g, mac); err != nil || !g.Shared {
		return err
	}
	proving := *g
	proving.mac = mac
	return s.checkMAC(id, &proving)
}

// SetActive makes a generation the one that wraps new backing keys and seals
// rows. Which one that is the database's sealed rows say. A generation that is
// not on the token, or not whole, is refused and changes nothing.
func (d *Member) SetActive(ctx context.Context, number uint32) error {
	keys, err := d.current(ctx)
	if err != nil {
		return err
	}
	if keys.Number == number {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.active, d.served = number, number
		d.doubt()
		return nil
	}
	if keys, err = d.look(ctx); err != nil {
		return err
	}
	g, err := keys.of(number)
	if err != nil {
		return fmt.Errorf("activating generation %d on %q: %w", number, d.t.info.Label, err)
	}
	next := *keys
	next.generationKeys = g
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active, d.keys, d.served = number, &next, number
	return nil
}

// Generations lists what the token holds of the domain now, in order.
func (d *Member) Generations(ctx context.Context) ([]Generation, error) {
	keys, err := d.look(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing generations on %q: %w", d.t.info.Label, err)
	}
	var all []Generation
	for _, number := range slices.Sorted(maps.Keys(keys.generations)) {
		g := keys.generations[number].Generation
		g.Active = number == keys.Number
		all = append(all, g)
	}
	return all, nil
}
