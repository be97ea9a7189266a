package hsm

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// DomainID is the deployment's id. Its objects on the token carry it.
type DomainID [16]byte

func (id DomainID) String() string { return hex.EncodeToString(id[:]) }

// firstGeneration is the one that trent init makes.
const firstGeneration uint32 = 1

// Member is one deployment's keys on one token. It is safe for concurrent use.
type Member struct {
	t     *Token
	id    DomainID
	cache *handleCache // of secret keys, by EKT
	// private caches private keys by use and EKT: no copy serves two uses.
	private *handleCache
	tried   tried
	// enrolling: it may hold no generation yet, and then serves nothing.
	enrolling bool

	mu     sync.Mutex // guards what follows
	proofs Proofs     // replaced, never changed
	keys   *domainKeys
	active uint32    // what SetActive asked for; 0 = the oldest whole one
	served uint32    // the generation that was active when keys were found last
	looked time.Time // when a generation was last looked for in vain
	seen   time.Time // when all generations were looked at last
	// probe was made in the epoch probed, and outlives keys that are forgotten.
	probe  probe
	probed uint64
}

const labelPrefix = "trent"

// label names a token object: trent/<deployment id in hex>/<role>/<generation>.
func (id DomainID) label(role string, generation uint32) string {
	return fmt.Sprintf("%s/%s/%s/%d", labelPrefix, id, role, generation)
}

const macRole = "mac"

func domainKeyRole(c keyClass) string { return "domain-key-" + c.String() }

// Domains lists the deployments that have any object on this token, even an
// incomplete set.
func (t *Token) Domains(ctx context.Context) ([]DomainID, error) {
	var ids []DomainID
	err := t.onKeeperRetrying(ctx, func(s *session) error {
		ids = nil
		objects, err := s.find([]*pkcs11.Attribute{
			attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
			attr(pkcs11.CKA_TOKEN, true),
		})
		if err != nil {
			return err
		}
		seen := map[DomainID]bool{}
		for _, o := range objects {
			label, err := s.attribute(o, pkcs11.CKA_LABEL)
			if err != nil {
				return err
			}
			if id, _, _, ok := parseLabel(string(label)); ok && !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing domains on %q: %w", t.info.Label, err)
	}
	return ids, nil
}

// parseLabel takes apart what label made.
func parseLabel(label string) (id DomainID, role string, generation uint32, ok bool) {
	parts := strings.Split(label, "/")
	if len(parts) != 4 || parts[0] != labelPrefix || len(parts[1]) != 2*len(id) {
		return id, "", 0, false
	}
	if _, err := hex.Decode(id[:], []byte(parts[1])); err != nil {
		return id, "", 0, false
	}
	n, err := strconv.ParseUint(parts[3], 10, 32)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != parts[3] {
		return id, parts[2], 0, true // an object of the domain all the same
	}
	return id, parts[2], uint32(n), true
}

// OpenDomain finds the domain's objects of all generations and proves what they
// enforce. It refuses a token without a whole generation (ErrNoDomain), and
// objects that are double or other than CreateGeneration makes them
// (ErrDomainConflict). Until SetActive, the oldest whole generation is the
// active one: the last of which a backup could be missing.
func (t *Token) OpenDomain(ctx context.Context, id DomainID) (*Member, error) {
	return t.openMember(ctx, id, nil, false)
}

// OpenProved is OpenDomain for a token that holds generations together with
// others: see Proof.
func (t *Token) OpenProved(ctx context.Context, id DomainID, proofs Proofs) (*Member, error) {
	return t.openMember(ctx, id, proofs, false)
}

func (t *Token) openMember(ctx context.Context, id DomainID, proofs Proofs, enrolling bool) (*Member, error) {
	d, err := t.findMember(ctx, id, proofs, enrolling)
	if err != nil {
		return nil, err
	}
	t.revivers.add(d.revive)
	return d, nil
}

func (t *Token) findMember(ctx context.Context, id DomainID, proofs Proofs, enrolling bool) (*Member, error) {
	d := &Member{t: t, id: id, proofs: maps.Clone(proofs), enrolling: enrolling}
	d.cache = d.newCache(d.load)
	d.private = d.newCache(d.loadPrivate)
	if _, err := d.look(ctx); err != nil {
		return nil, fmt.Errorf("opening domain %s on %q: %w", id, t.info.Label, err)
	}
	return d, nil
}

func (d *Member) newCache(load func(EKT, *handle) (pkcs11.ObjectHandle, uint64, error)) *handleCache {
	c := newHandleCache(d.t.cfg.HandleCache)
	c.stats = d.t.stats
	c.epoch = d.t.epoch.Load
	c.load = load
	c.destroy = d.destroy
	return c
}

// revive finds the domain's handles, if it was not done yet: in a new epoch,
// before it serves. It runs on the keeper's session.
func (d *Member) revive(s *session) error {
	epoch := s.t.epoch.Load()
	d.cache.begin(epoch)
	d.private.begin(epoch)
	d.mu.Lock()
	known := d.keys != nil && d.keys.epoch == epoch
	active := d.active
	d.mu.Unlock()
	if known {
		return nil
	}
	found, err := d.find(s, active, nil)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keep(found, active)
	return nil
}

// keep notes what was found, unless SetActive has asked for something else
// meanwhile: then the next call looks again. The caller holds mu.
func (d *Member) keep(found *domainKeys, active uint32) {
	d.probe, d.probed, d.seen = found.probe, found.epoch, time.Now()
	d.t.stats.found(found.generations)
	if d.active == active {
		d.keys, d.served = found, found.Number
	}
}

// forgetKeys has the domain's handles found anew: the device does not know
// those that it gave.
func (d *Member) forgetKeys(keys *domainKeys) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keys == keys {
		d.keys = nil
	}
}

// knownAnswer returns the probe of this epoch, if there is one that works, or
// makes another.
func (d *Member) knownAnswer(s *session, epoch uint64) (probe, error) {
	d.mu.Lock()
	old, probed := d.probe, d.probed
	d.mu.Unlock()
	if probed == epoch {
		if s.answers(old) == nil {
			return old, nil
		}
		s.destroy(old.key)
	}
	return s.newProbe()
}

// dropUnused destroys the probe of a look that has failed.
func (d *Member) dropUnused(s *session, p probe, err *error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if *err != nil && (d.probe.key != p.key || d.probed != s.t.epoch.Load()) {
		s.destroy(p.key)
	}
}

var errNotFound = errors.New("object not found")

// findOne finds the token object with this label. Two of them would mean that
// someone planted one: which is ours cannot be told, so both are refused.
func (s *session) findOne(label string) (pkcs11.ObjectHandle, error) {
	objects, err := s.find([]*pkcs11.Attribute{
		attr(pkcs11.CKA_LABEL, label),
		attr(pkcs11.CKA_TOKEN, true),
	})
	switch {
	case err != nil:
		return 0, err
	case len(objects) == 0:
		return 0, errNotFound
	case len(objects) > 1:
		return 0, doubled(label, len(objects))
	}
	return objects[0], nil
}

// destroyNamed destroys the token object with this label, if there is one.
func (s *session) destroyNamed(label string) error {
	object, err := s.findOne(label)
	if errors.Is(err, errNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return deviceError("destroying", s.t.module.p11.DestroyObject(s.handle, object))
}

func (s *session) find(template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	p11 := s.t.module.p11
	if err := p11.FindObjectsInit(s.handle, template); err != nil {
		return nil, deviceError("looking for objects", err)
	}
	defer p11.FindObjectsFinal(s.handle) //nolint:errcheck // the result is in hand
	var found []pkcs11.ObjectHandle
	objects := make([]pkcs11.ObjectHandle, 64)
	for {
		n, code := s.t.module.native.find(s.handle, objects)
		if code != pkcs11.CKR_OK {
			return nil, &DeviceError{Doing: "looking for objects", Code: code}
		}
		if n == 0 {
			return found, nil
		}
		if found = append(found, objects[:n]...); len(found) > mostFound {
			return nil, &DeviceError{Doing: "looking for objects without end", Code: ckrWrongLength}
		}
	}
}

// mostFound is more objects than any token has: a search that finds more does
// not end.
const mostFound = 1 << 20

func (s *session) attribute(object pkcs11.ObjectHandle, kind uint) ([]byte, error) {
	n, code := s.t.module.native.attributeLength(s.handle, object, kind)
	value := make([]byte, n)
	if code == pkcs11.CKR_OK && n > 0 {
		n, code = s.t.module.native.attribute(s.handle, object, kind, value)
	}
	if code != pkcs11.CKR_OK {
		return nil, &DeviceError{Doing: "reading an attribute", Code: code}
	}
	return value[:n], nil
}

// flag says whether a boolean attribute is known to be want: of a device that
// does not know the attribute nothing is claimed.
func (s *session) flag(object pkcs11.ObjectHandle, kind uint, want bool) (bool, error) {
	value, err := s.attribute(object, kind)
	if isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return bytes.Equal(value, attr(kind, want).Value), nil
}

// doubt has generations that cannot serve looked at again, not often: somebody
// may have finished or destroyed them since, or the device was ill. Whoever keeps
// the member open names the active generation every second, and does not wait for
// it. The caller holds mu.
func (d *Member) doubt() {
	if d.keys == nil || !d.keys.unusable() || time.Since(d.seen) < doubtAfter {
		return
	}
	d.seen = time.Now()
	go func() { _, _ = d.look(background) }() // if it fails all stays as it was
}

func (keys *domainKeys) unusable() bool {
	for _, g := range keys.generations {
		if !g.Whole && !g.Retired {
			return true
		}
	}
	return false
}
