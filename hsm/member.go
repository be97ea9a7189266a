package hsm

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"
)

// DomainID is the deployment's id. Its objects on the token carry it.
type DomainID [16]byte

func (id DomainID) String() string { return hex.EncodeToString(id[:]) }

// firstGeneration is the only one until domain keys can be succeeded.
const firstGeneration uint32 = 1

// profileLocked: what the domain key unwraps can never be wrapped again.
const profileLocked = "locked"

// Member is one deployment's keys on one token. It is safe for concurrent use.
type Member struct {
	t     *Token
	id    DomainID
	cache *handleCache // of secret keys, by EKT
	// private caches private keys by use and EKT: no copy serves two uses.
	private *handleCache
	tried   tried

	mu   sync.Mutex // guards what follows
	keys *domainKeys
	// probe was made in the epoch probed, and outlives keys that are forgotten.
	probe  probe
	probed uint64
}

// domainKeys are the handles of a domain's objects in one epoch.
type domainKeys struct {
	epoch uint64
	wrap  map[keyClass]pkcs11.ObjectHandle
	mac   pkcs11.ObjectHandle
	probe probe
}

const labelPrefix = "trent"

// label names a token object: trent/<deployment id in hex>/<role>/<generation>.
func (id DomainID) label(role string) string {
	return fmt.Sprintf("%s/%s/%s/%d", labelPrefix, id, role, firstGeneration)
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
			if id, ok := domainOfLabel(string(label)); ok && !seen[id] {
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

func domainOfLabel(label string) (id DomainID, ok bool) {
	parts := strings.Split(label, "/")
	if len(parts) != 4 || parts[0] != labelPrefix || len(parts[1]) != 2*len(id) {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(parts[1]))
	return id, err == nil
}

// OpenDomain finds the domain's objects and proves what they enforce. It
// refuses a set that is incomplete (ErrNoDomain), and objects that are double
// or other than CreateDomain makes them (ErrDomainConflict).
func (t *Token) OpenDomain(ctx context.Context, id DomainID) (*Member, error) {
	d, err := t.openDomain(ctx, id)
	if err != nil {
		return nil, err
	}
	t.revivers.add(d.revive)
	return d, nil
}

func (t *Token) openDomain(ctx context.Context, id DomainID) (*Member, error) {
	d := &Member{t: t, id: id}
	d.cache = d.newCache(d.load)
	d.private = d.newCache(d.loadPrivate)
	if _, err := d.current(ctx); err != nil {
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
	d.mu.Lock()
	known := d.keys != nil && d.keys.epoch == s.t.epoch.Load()
	d.mu.Unlock()
	if known {
		return nil
	}
	found, err := d.find(s)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keys, d.probe, d.probed = found, found.probe, found.epoch
	return nil
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

// current returns the domain's handles, found anew if a new epoch began.
func (d *Member) current(ctx context.Context) (*domainKeys, error) {
	d.mu.Lock()
	keys := d.keys
	d.mu.Unlock()
	if keys != nil && keys.epoch == d.t.epoch.Load() {
		return keys, nil
	}
	if err := d.t.onKeeperRetrying(ctx, d.revive); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keys == nil { // forgotten again
		return nil, settled(errStale)
	}
	return d.keys, nil
}

// find runs on the keeper's worker.
func (d *Member) find(s *session) (*domainKeys, error) {
	keys := &domainKeys{epoch: d.t.epoch.Load(), wrap: map[keyClass]pkcs11.ObjectHandle{}}
	var missing []string
	for _, c := range keyClasses {
		object, err := s.findOne(d.id.label(domainKeyRole(c)))
		if errors.Is(err, errNotFound) {
			missing = append(missing, d.id.label(domainKeyRole(c)))
			continue
		}
		if err != nil {
			return nil, err
		}
		keys.wrap[c] = object
	}
	mac, err := s.findOne(d.id.label(macRole))
	if errors.Is(err, errNotFound) {
		missing = append(missing, d.id.label(macRole))
	} else if err != nil {
		return nil, err
	}
	keys.mac = mac
	if len(missing) > 0 {
		return nil, fmt.Errorf("%w: missing %s; if this is the right token run `trent init` to finish its set-up, else restore the token from its backup",
			ErrNoDomain, strings.Join(missing, ", "))
	}
	if err := s.inspect(keys); err != nil {
		return nil, err
	}
	keys.probe, err = d.knownAnswer(s, keys.epoch)
	return keys, err
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
		return 0, fmt.Errorf("%w: %d objects are labelled %q; find out who made the other, and remove it with the vendor's tool",
			ErrDomainConflict, len(objects), label)
	}
	return objects[0], nil
}

func (s *session) find(template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	p11 := s.t.module.p11
	if err := p11.FindObjectsInit(s.handle, template); err != nil {
		return nil, deviceError("looking for objects", err)
	}
	defer p11.FindObjectsFinal(s.handle) //nolint:errcheck // the result is in hand
	var found []pkcs11.ObjectHandle
	for {
		objects, _, err := p11.FindObjects(s.handle, 64)
		if err != nil {
			return nil, deviceError("looking for objects", err)
		}
		if len(objects) == 0 {
			return found, nil
		}
		found = append(found, objects...)
	}
}

func (s *session) attribute(object pkcs11.ObjectHandle, kind uint) ([]byte, error) {
	values, err := s.t.module.p11.GetAttributeValue(s.handle, object, []*pkcs11.Attribute{attr(kind, nil)})
	if err != nil {
		return nil, deviceError("reading an attribute", err)
	}
	return values[0].Value, nil
}

// flag says whether a boolean attribute is known to be want: of a device that
// does not know the attribute nothing is claimed.
func (s *session) flag(object pkcs11.ObjectHandle, kind uint, want bool) (bool, error) {
	value, err := s.attribute(object, kind)
	if code, ok := codeOf(err); ok && code == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return bytes.Equal(value, attr(kind, want).Value), nil
}
