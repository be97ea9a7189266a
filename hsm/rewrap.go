package hsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrLocked means that a key cannot be wrapped again: its domain key's
// generation, or the one it is to move to, is of the locked profile.
var ErrLocked = errors.New("the locked profile forbids wrapping again")

// Rewrap returns the backing key in ekt wrapped by another generation's domain
// key. The key goes from the one to the other inside the HSM, and the new EKT
// has been opened and compared before it is returned. Both generations must be
// on this token and of the trusted profile; otherwise ErrLocked says why not.
func (d *Member) Rewrap(ctx context.Context, ekt EKT, to uint32) (EKT, error) {
	ekt = bytes.Clone(ekt) // the caller may have gone
	k, err := ekt.parse()
	if err != nil {
		return nil, err
	}
	if k.generation == to {
		return ekt, nil
	}
	var moved EKT
	err = d.onMaker(ctx, func(s *session, keys *domainKeys) (err error) {
		moved, err = s.rewrap(keys, ekt, k, to)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wrapping a backing key under generation %d: %w", to, err) // moved may still be written
	}
	return moved, nil
}

func (s *session) rewrap(keys *domainKeys, ekt EKT, k keyToken, to uint32) (EKT, error) {
	from, err := keys.of(k.generation)
	if err != nil {
		return nil, err
	}
	target, err := keys.of(to)
	if err != nil {
		return nil, err
	}
	switch {
	case from.Profile != Trusted:
		return nil, fmt.Errorf("%w: what generation %d unwraps can never be wrapped again, whoever asks; the key stays under it until its own rotation replaces it", ErrLocked, from.Number)
	case target.Profile != Trusted:
		return nil, fmt.Errorf("%w: what generation %d unwraps is wrapped only by a key marked trusted, which generation %d's are not; make a trusted generation", ErrLocked, from.Number, target.Number)
	}
	moving, err := s.unwrapWith(keys, k, movingTemplate(k.class, k.keyType))
	if err != nil {
		return nil, err
	}
	defer s.destroy(moving)
	moved, err := s.export(target, k.class, k.keyType, k.length, moving)
	if err != nil {
		return nil, err
	}
	return moved, s.sameKey(keys, ekt, moved)
}

// sameKey demands that two EKTs hold the same key. Private keys have no check
// value: that the new one unwraps, under a mechanism that authenticates, has
// to do.
func (s *session) sameKey(keys *domainKeys, a, b EKT) error {
	if a.class() == classPrivate {
		k, err := b.parse()
		if err != nil {
			return err
		}
		if err := s.opens(keys, k); err != nil {
			return fmt.Errorf("opening the new EKT: %w", err)
		}
		return nil
	}
	before, err := s.checkValue(keys, a)
	if err != nil {
		return err
	}
	after, err := s.checkValue(keys, b)
	if err != nil {
		return fmt.Errorf("opening the new EKT: %w", err)
	}
	if !bytes.Equal(before, after) {
		return errors.New("the key under the new generation is another one: the device changes what it wraps")
	}
	return nil
}

// Generation is the generation of the domain key that wraps the EKT; 0 if it is
// too short to be one.
func (e EKT) Generation() uint32 {
	if len(e) <= ektHeader {
		return 0
	}
	return binary.BigEndian.Uint32(e[1:])
}
