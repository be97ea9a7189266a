package hsm

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"
)

const activeRole = "active"

// MarkActive notes on the token that the deployment has begun to serve, where
// whoever can set the database back cannot take it back. It can be called
// again. The mark is a data object of no secret; a holder of the PIN can remove
// it, as he can the keys.
func (t *Token) MarkActive(ctx context.Context, id DomainID) error {
	err := t.onKeeperRetrying(ctx, func(s *session) error {
		if active, err := s.active(id); err != nil || active {
			return err
		}
		_, err := s.t.module.p11.CreateObject(s.handle, append(activeMark(id),
			attr(pkcs11.CKA_MODIFIABLE, false),
			attr(pkcs11.CKA_APPLICATION, labelPrefix),
			attr(pkcs11.CKA_VALUE, id[:]),
		))
		return deviceError("creating the object", err)
	})
	if err != nil {
		return fmt.Errorf("marking %s active on %q: %w", id, t.info.Label, err)
	}
	return nil
}

// MarkActive is Token.MarkActive for the member's deployment.
func (d *Member) MarkActive(ctx context.Context) error { return d.t.MarkActive(ctx, d.id) }

// Active says whether MarkActive was called for the deployment on this token,
// or on the one that it was restored from.
func (t *Token) Active(ctx context.Context, id DomainID) (bool, error) {
	var active bool
	err := t.onKeeperRetrying(ctx, func(s *session) (err error) {
		active, err = s.active(id)
		return err
	})
	if err != nil {
		// active may still be written.
		return false, fmt.Errorf("looking whether %s is active on %q: %w", id, t.info.Label, err)
	}
	return active, nil
}

func (s *session) active(id DomainID) (bool, error) {
	objects, err := s.find(activeMark(id))
	return len(objects) > 0, err
}

// activeMark finds the mark and is part of its template. A mark that is not
// private could have been made without the PIN, so it does not count.
func activeMark(id DomainID) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_DATA),
		attr(pkcs11.CKA_TOKEN, true),
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_LABEL, id.label(activeRole, firstGeneration)),
	}
}
