package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/store"
)

// authorize decides an action that names no key.
func (s *Service) authorize(call *Call, action string) error {
	decide := func() error {
		if !s.allowed(call) {
			return denied(call, action, "*")
		}
		return nil
	}
	call.again = append(call.again, func(context.Context) error { return decide() })
	return decide()
}

// allowed is the decision. Nothing is allowed by default: a principal is an
// administrator of its account, or has no rights.
func (s *Service) allowed(call *Call) bool {
	return call.Principal.Admin && call.Principal.Account == s.cfg.Account
}

// Authorize decides the use of an operation that is not built yet.
func (s *Service) Authorize(call *Call) error { return s.authorize(call, "kms:"+call.Operation) }

// authorizeKey resolves the key that keyID names and decides action on it. It
// is the first thing that an operation on a key does; an error means that
// nothing more may happen. A principal without rights learns nothing about
// which keys exist.
func (s *Service) authorizeKey(ctx context.Context, call *Call, action, keyID string, forms keyForms) (*key, error) {
	if !s.allowed(call) {
		return nil, denied(call, action, s.deniedResource(call, keyID))
	}
	ref, err := s.parseKeyID(call, keyID, forms)
	if err != nil {
		return nil, err
	}
	if ref.account != call.Principal.Account {
		return nil, s.foreign(call, action, ref)
	}
	if ref.alias == "" {
		return s.authorizeRef(ctx, call, action, ref, call.Operation)
	}
	alias, err := s.alias(ctx, ref)
	if err != nil {
		return nil, err
	}
	call.again = append(call.again, func(ctx context.Context) error {
		fresh, err := s.alias(ctx, ref)
		if err == nil && fresh.KeyID != alias.KeyID {
			err = fmt.Errorf("%w: %s names another key", errOvertaken, ref.alias)
		}
		return err
	})
	target := keyRef{account: ref.account, region: ref.region, id: alias.KeyID}
	return s.authorizeRef(ctx, call, action, target, call.Operation)
}

// alias returns the alias that the caller has named.
func (s *Service) alias(ctx context.Context, ref keyRef) (store.Alias, error) {
	alias, err := s.cache.alias(ctx, ref)
	if errors.Is(err, store.ErrNotFound) {
		return alias, notFound("Alias %s is not found.", s.aliasARN(ref.account, ref.region, ref.alias))
	}
	return alias, err
}

// authorizeRef is authorizeKey for a key id that has been resolved already;
// row is the row of stateTable that applies.
func (s *Service) authorizeRef(ctx context.Context, call *Call, action string, ref keyRef, row string) (*key, error) {
	k, err := s.decide(ctx, call, action, ref, row)
	if k != nil {
		call.touch(k.Account, k.arn)
	}
	if err != nil {
		return nil, err
	}
	call.keys = append(call.keys, ref)
	call.again = append(call.again, func(ctx context.Context) error {
		_, err := s.decide(ctx, call, action, ref, row)
		return err
	})
	return k, nil
}

// decide says whether the caller may do action on a key, and whether the key's
// state lets it. It returns the key, if there is one that the caller may see,
// also when its state does not.
func (s *Service) decide(ctx context.Context, call *Call, action string, ref keyRef, row string) (*key, error) {
	if !s.allowed(call) {
		return nil, denied(call, action, s.keyARN(ref.account, ref.region, ref.id))
	}
	k, err := s.cache.key(ctx, s, ref)
	if errors.Is(err, store.ErrNotFound) {
		return nil, notFound("Key '%s' does not exist", s.keyARN(ref.account, ref.region, ref.id))
	}
	if err != nil {
		return nil, err
	}
	k = s.withExpiry(k)
	return k, checkState(row, k)
}

func denied(call *Call, action, resource string) error {
	return unmodelled("AccessDeniedException",
		"User: %s is not authorized to perform: %s on resource: %s because no identity-based policy allows the %s action",
		call.Principal.ARN, action, resource, action)
}

// deniedResource names in a denial what the caller named, looking nothing up.
func (s *Service) deniedResource(call *Call, keyID string) string {
	switch {
	case strings.HasPrefix(keyID, "arn:"):
		return keyID
	case strings.HasPrefix(keyID, "alias/"):
		return s.aliasARN(call.Principal.Account, call.Region, keyID)
	}
	return s.keyARN(call.Principal.Account, call.Region, keyID)
}

// foreign answers for a key of another account. Operations that AWS allows
// across accounts are denied in its words; for the others the key does not
// exist.
func (s *Service) foreign(call *Call, action string, ref keyRef) error {
	if model, _ := awsjson.Operation(call.Operation); model.CrossAccount {
		return unmodelled("AccessDeniedException", "User: %s is not authorized to perform: %s on this resource because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access", call.Principal.ARN, action)
	}
	return notFound("Key '%s' does not exist", s.keyARN(call.Principal.Account, ref.region, ref.id+ref.alias))
}

// unknownCiphertextKey is AWS's answer when a ciphertext names a key that the
// caller cannot have.
func unknownCiphertextKey() error {
	return unmodelled("AccessDeniedException", "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
}
