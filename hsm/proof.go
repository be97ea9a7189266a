package hsm

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/miekg/pkcs11"
)

// Proof shows that a token's copies of a generation's keys are those that the
// member made which generated them. It holds no secret. Copies came from
// outside, so that the device can attest neither that they were made in an HSM
// nor that nobody saw them: they are accepted with the proof from the
// generation's sealed row, and never without.
type Proof string

// Proofs are by generation.
type Proofs map[uint32]Proof

// proofText is a Proof's JSON.
type proofText struct {
	Keys map[string]provedKey `json:"keys"` // by class
	MAC  []byte               `json:"mac"`  // of proofMessage
}

// provedKey is a key that serves for nothing else.
type provedKey struct {
	EKT EKT `json:"ekt"`
	// Check is its check value, or its public key where it is a private one.
	Check []byte `json:"check"`
}

// provedSpecs are the kinds of the keys in a proof.
var provedSpecs = map[keyClass]string{classAES: "SYMMETRIC_DEFAULT", classGeneric: "HMAC_256", classPrivate: "ECC_NIST_P256"}

// proofMessage is longer than the digests that rows and audit batches are
// sealed by, so that its MAC is that of no row.
func proofMessage(id DomainID, generation uint32) []byte {
	return fmt.Appendf(nil, "Trent's proof of the MAC key %s", id.label(macRole, generation))
}

// makeProof makes the proof of keys that are g's and nobody's yet.
func (s *session) makeProof(id DomainID, g *generationKeys) (Proof, error) {
	p, err := s.newProbe()
	if err != nil {
		return "", err
	}
	defer s.destroy(p.key)
	text := proofText{Keys: map[string]provedKey{}}
	keys := g.alone(s.t.epoch.Load(), p)
	for _, c := range keyClasses {
		if text.Keys[c.String()], err = s.makeProvedKey(keys, c); err != nil {
			return "", fmt.Errorf("proving the %s key: %w", domainKeyRole(c), err)
		}
	}
	if text.MAC, err = s.proofMAC(id, g); err != nil {
		return "", err
	}
	b, err := json.Marshal(text)
	if err != nil {
		return "", fmt.Errorf("encoding a proof: %w", err)
	}
	return Proof(b), nil
}

// alone makes g the only and active generation.
func (g *generationKeys) alone(epoch uint64, p probe) *domainKeys {
	whole := *g
	whole.Whole = true
	return &domainKeys{epoch: epoch, generationKeys: &whole, generations: map[uint32]*generationKeys{g.Number: &whole}, probe: p}
}

func (s *session) makeProvedKey(keys *domainKeys, c keyClass) (provedKey, error) {
	name := provedSpecs[c]
	sp := specs[name]
	if c == classPrivate {
		made, err := s.makePair(keys, name, sp, UseSign)
		return provedKey{made.EKT, made.PublicKey}, err
	}
	ekt, _, err := s.generateSecret(keys, sp)
	if err != nil {
		return provedKey{}, err
	}
	check, err := s.checkValue(keys, ekt)
	return provedKey{ekt, check}, err
}

func (s *session) proofMAC(id DomainID, g *generationKeys) ([]byte, error) {
	return s.wholeMAC("making the proof of a MAC key", pkcs11.CKM_SHA256_HMAC, g.mac, proofMessage(id, g.Number), macSize)
}

func errUnproved(g *generationKeys, role string) error {
	return fmt.Errorf("%w: the %s key of generation %d is not the one that the generation's row proves: somebody put another in its place; do not use this token before you know who",
		ErrDomainConflict, role, g.Number)
}

func (g *generationKeys) readProof() (text proofText, err error) {
	if json.Unmarshal([]byte(g.proof), &text) != nil {
		return text, fmt.Errorf("%w: the proof of generation %d cannot be read: restore the database from a backup", ErrDomainConflict, g.Number)
	}
	return text, nil
}

// checkMAC demands that the MAC key is the proved one.
func (s *session) checkMAC(id DomainID, g *generationKeys) error {
	text, err := g.readProof()
	if err != nil {
		return err
	}
	mac, err := s.proofMAC(id, g)
	if err == nil && !hmac.Equal(mac, text.MAC) {
		return errUnproved(g, macRole)
	}
	return err
}

// checkDomainKeys demands that the domain keys are the proved ones.
func (s *session) checkDomainKeys(g *generationKeys, p probe) error {
	text, err := g.readProof()
	if err != nil {
		return err
	}
	keys := g.alone(s.t.epoch.Load(), p)
	for _, c := range keyClasses {
		err := s.checkProvedKey(keys, c, text.Keys[c.String()])
		if errors.Is(err, ErrInvalidEKT) || errors.Is(err, errPairwise) {
			return errUnproved(g, domainKeyRole(c))
		}
		if err != nil {
			return fmt.Errorf("proving the %s key: %w", domainKeyRole(c), err)
		}
	}
	return nil
}

func (s *session) checkProvedKey(keys *domainKeys, c keyClass, proved provedKey) error {
	k, err := proved.EKT.parse()
	if err != nil {
		return err
	}
	if k.class != c || k.generation != keys.Number {
		return fmt.Errorf("%w: it proves another key", ErrInvalidEKT)
	}
	if c != classPrivate {
		check, err := s.checkValue(keys, proved.EKT)
		if err == nil && !bytes.Equal(check, proved.Check) {
			err = errPairwise
		}
		return err
	}
	sp := specs[provedSpecs[c]]
	values, err := sp.decodePublic(proved.Check)
	if err != nil {
		return errPairwise
	}
	public, err := s.publicObject(sp, values)
	if err != nil {
		return err
	}
	defer s.destroy(public)
	private, err := s.unwrapFor(keys, k, useFlags[UseSign]...)
	if err != nil {
		return err
	}
	defer s.destroy(private)
	return s.proveSigning(sp, private, public)
}

// SetProofs replaces the proofs of generations that several members hold. A
// generation whose proof does not hold on this token is not whole from then on.
func (d *Member) SetProofs(ctx context.Context, proofs Proofs) error {
	d.mu.Lock()
	same := maps.Equal(d.proofs, proofs)
	if !same {
		d.proofs = maps.Clone(proofs)
	}
	d.mu.Unlock()
	if same {
		return nil
	}
	_, err := d.look(ctx)
	if err != nil { // what was found under the earlier proofs must not serve
		d.mu.Lock()
		defer d.mu.Unlock()
		d.keys = nil
	}
	return err
}
