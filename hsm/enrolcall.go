package hsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// doEnrolment has what concerns the members of the domain.
func (d *Member) doEnrolment(ctx context.Context, c *call, r *reply) (err error) {
	switch c.op {
	case callSetProofs:
		var proofs Proofs
		if err = json.Unmarshal(c.in, &proofs); err == nil {
			err = d.SetProofs(ctx, proofs)
		}
	case callEnrolmentKey:
		r.public, err = d.EnrolmentKey(ctx, c.number)
	case callMakeShared:
		var publicKeys [][]byte
		if err = json.Unmarshal(c.in, &publicKeys); err != nil {
			return fmt.Errorf("%w: reading public keys: %w", ErrArgument, err)
		}
		var made Shared
		if made, err = d.MakeShared(ctx, c.number, publicKeys); err == nil {
			err = r.describe(made)
		}
	case callTakeShared:
		err = d.TakeShared(ctx, c.number, c.in)
	case callDropEnrolmentKey:
		err = d.DropEnrolmentKey(ctx, c.number)
	case callDestroyGeneration:
		err = d.DestroyGeneration(ctx, c.number, len(c.in) > 0)
	default:
		err = fmt.Errorf("%w: there is no operation %d", ErrArgument, c.op)
	}
	return err
}

// SetProofs is Member.SetProofs, on every member, and on those that come later.
func (d *Domain) SetProofs(ctx context.Context, proofs Proofs) error {
	text, err := json.Marshal(proofs)
	if err != nil {
		return fmt.Errorf("encoding proofs: %w", err)
	}
	return d.do(ctx, call{op: callSetProofs, in: text}, nil)
}

// setProofs tells the members that serve. One to which the proof does not
// apply has not the generation whole, and says so when it is to use it.
func (d *spread) setProofs(ctx context.Context, c *call) error {
	var proofs Proofs
	if err := json.Unmarshal(c.in, &proofs); err != nil {
		return fmt.Errorf("%w: reading proofs: %w", ErrArgument, err)
	}
	d.proofs.Store(&proofs)
	var faults []error
	for _, s := range d.seats {
		t := s.target.Load()
		if t == nil {
			continue
		}
		// One that is gone or aside gets the proofs before it serves again.
		if err := s.prove(ctx, t, &proofs); err != nil && !errors.Is(err, ErrUnavailable) {
			faults = append(faults, fmt.Errorf("member %s: %w", s.name, err))
			s.aside(t, err)
		}
	}
	if len(faults) < len(d.seats) {
		return nil
	}
	return errors.Join(faults...)
}

// prove tells a member the proofs.
func (s *seat) prove(ctx context.Context, t *target, proofs *Proofs) error {
	text, err := json.Marshal(*proofs)
	if err != nil {
		return fmt.Errorf("encoding proofs: %w", err)
	}
	if err := s.call(ctx, t, &call{op: callSetProofs, in: text}, new(reply)); err != nil {
		return err
	}
	t.told.Store(proofs)
	return nil
}

// EnrolmentKey is Member.EnrolmentKey, of a domain of one member.
func (d *Domain) EnrolmentKey(ctx context.Context, generation uint32) (publicKey []byte, err error) {
	err = d.do(ctx, call{op: callEnrolmentKey, number: generation}, func(r *reply) error { publicKey = r.public; return nil })
	return publicKey, err
}

// MakeShared is Member.MakeShared.
func (d *Domain) MakeShared(ctx context.Context, generation uint32, publicKeys [][]byte) (made Shared, err error) {
	text, err := json.Marshal(publicKeys)
	if err != nil {
		return made, fmt.Errorf("encoding public keys: %w", err)
	}
	err = d.do(ctx, call{op: callMakeShared, number: generation, in: text}, func(r *reply) error { return r.read(&made) })
	return made, err
}

// TakeShared is Member.TakeShared, of a domain of one member.
func (d *Domain) TakeShared(ctx context.Context, generation uint32, parcel Parcel) error {
	return d.do(ctx, call{op: callTakeShared, number: generation, in: parcel}, nil)
}

// DropEnrolmentKey is Member.DropEnrolmentKey, of a domain of one member.
func (d *Domain) DropEnrolmentKey(ctx context.Context, generation uint32) error {
	return d.do(ctx, call{op: callDropEnrolmentKey, number: generation}, nil)
}

// DestroyGeneration is Member.DestroyGeneration, of a domain of one member.
func (d *Domain) DestroyGeneration(ctx context.Context, generation uint32, keepMAC bool) error {
	var keep []byte
	if keepMAC {
		keep = []byte{1}
	}
	return d.do(ctx, call{op: callDestroyGeneration, number: generation, in: keep}, nil)
}
