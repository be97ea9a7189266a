package kms

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/store"
)

// grantLaneCount is how many keys' grants a host changes at a time.
const grantLaneCount = 64

// changeGrants is change for the grants of one key. Each such change moves the
// key's row: calls on this host take turns, instead of losing races.
func (s *Service) changeGrants(ctx context.Context, call *Call, keyID string, attempt func() error) error {
	h := fnv.New32a()
	_, _ = h.Write([]byte(keyID[max(0, len(keyID)-36):])) // where the id stands in an ARN, too
	lane := s.grantLanes[h.Sum32()%grantLaneCount]
	select {
	case lane <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for other changes of the key's grants: %w", ctx.Err())
	}
	defer func() { <-lane }()
	return s.change(ctx, call, attempt)
}

// CreateGrant notes that a principal is allowed operations on a key. The same
// request with the same name again answers the grant that there is.
func (s *Service) CreateGrant(ctx context.Context, call *Call, in *awskms.CreateGrantInput) (*awskms.CreateGrantOutput, error) {
	var out *awskms.CreateGrantOutput
	err := s.changeGrants(ctx, call, *in.KeyId, func() (err error) {
		out, err = s.createGrant(ctx, call, in)
		return err
	})
	return out, err
}

func (s *Service) createGrant(ctx context.Context, call *Call, in *awskms.CreateGrantInput) (*awskms.CreateGrantOutput, error) {
	k, err := s.authorizeKey(ctx, call, "kms:CreateGrant", *in.KeyId, keyOnly)
	if err != nil {
		return nil, err
	}
	if err := s.checkGrantTokens(ctx, in.GrantTokens); err != nil {
		return nil, err
	}
	grant, err := s.newGrant(k, in)
	if err != nil {
		return nil, err
	}
	change, err := s.addGrant(ctx, k, &grant)
	if err != nil {
		return nil, err
	}
	if err := dryRun(in.DryRun); err != nil {
		return nil, err
	}
	token, err := s.newGrantToken(ctx, k, grant.ID)
	if err != nil {
		return nil, err
	}
	call.response = fmt.Appendf(nil, `{"grantId":%q,"keyId":%q}`, grant.ID, k.arn)
	out := &awskms.CreateGrantOutput{GrantId: aws.String(grant.ID), GrantToken: aws.String(token)}
	if change == nil {
		return out, nil
	}
	return out, s.commit(ctx, call, change)
}

// addGrant makes the change that adds grant, or fills in the id of the grant
// of that name that there is: then there is nothing to change.
func (s *Service) addGrant(ctx context.Context, k *key, grant *store.Grant) (*store.Change, error) {
	if grant.Name != "" {
		made, err := s.db.GrantOfRequest(ctx, k.Key, grant.RequestDigest)
		if err == nil {
			grant.ID = made.ID
			return nil, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	}
	var id [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("making a grant id: %w", err)
	}
	grant.ID = hex.EncodeToString(id[:])
	change := s.db.NewChange()
	if err := change.InsertGrant(ctx, k.Key, *grant); err != nil {
		return nil, fromCommit(unstorable(err))
	}
	return change, nil
}

// RevokeGrant ends a grant by a right on its key.
func (s *Service) RevokeGrant(ctx context.Context, call *Call, in *awskms.RevokeGrantInput) (*awskms.RevokeGrantOutput, error) {
	err := s.changeGrants(ctx, call, *in.KeyId, func() error {
		k, err := s.authorizeKey(ctx, call, "kms:RevokeGrant", *in.KeyId, keyOnly)
		if err != nil {
			return err
		}
		grant, err := s.grant(ctx, k, *in.GrantId)
		if err != nil {
			return err
		}
		return s.endGrant(ctx, call, k, grant, in.DryRun)
	})
	return &awskms.RevokeGrantOutput{}, err
}

// grant returns the grant of k that the caller has named.
func (s *Service) grant(ctx context.Context, k *key, id string) (store.Grant, error) {
	if !grantIDPattern.MatchString(id) {
		return store.Grant{}, &types.InvalidGrantIdException{Message: aws.String("Grant id " + id + " is not 64 lower-case hexadecimal digits.")}
	}
	grant, err := s.db.Grant(ctx, k.Key, id)
	if errors.Is(err, store.ErrNotFound) {
		return grant, notFound("Grant %s of key %s is not found.", id, k.arn)
	}
	return grant, err
}

func (s *Service) endGrant(ctx context.Context, call *Call, k *key, grant store.Grant, rehearsal *bool) error {
	if err := dryRun(rehearsal); err != nil {
		return err
	}
	change := s.db.NewChange()
	if err := change.DeleteGrant(ctx, k.Key, grant); err != nil {
		return err
	}
	call.answeredKey(k.arn)
	return s.commit(ctx, call, change)
}

// RetireGrant ends a grant by a right that the grant itself gives: to its
// retiring principal, to a grantee that is allowed RetireGrant, and to
// administrators of the account that made it.
func (s *Service) RetireGrant(ctx context.Context, call *Call, in *awskms.RetireGrantInput) (*awskms.RetireGrantOutput, error) {
	keyID, grantID, err := s.retired(ctx, call, in)
	if err == nil {
		err = s.changeGrants(ctx, call, keyID, func() error {
			k, grant, err := s.authorizeRetire(ctx, call, keyID, grantID)
			if err != nil {
				return err
			}
			call.extra = stringMember("grantId", grant.ID)
			return s.endGrant(ctx, call, k, grant, in.DryRun)
		})
	}
	return &awskms.RetireGrantOutput{}, err
}

// retired reads which grant a RetireGrant request means.
func (s *Service) retired(ctx context.Context, call *Call, in *awskms.RetireGrantInput) (keyID, grantID string, err error) {
	switch {
	case in.GrantToken == nil && in.KeyId != nil && in.GrantId != nil:
		return *in.KeyId, *in.GrantId, nil
	case in.GrantToken == nil || in.KeyId != nil || in.GrantId != nil:
		return "", "", validation("Specify either a GrantToken, or a KeyId and a GrantId.")
	}
	token, err := s.openGrantToken(ctx, *in.GrantToken)
	if err == nil && token.Region != call.Region {
		err = &types.InvalidGrantTokenException{}
	}
	return s.keyARN(token.Account, token.Region, token.Key), token.Grant, err
}

// authorizeRetire decides whether the caller may retire a grant. Who may not
// does not learn whether there is such a key or grant.
func (s *Service) authorizeRetire(ctx context.Context, call *Call, keyID, grantID string) (*key, store.Grant, error) {
	const action = "kms:RetireGrant"
	if s.allowed(call) {
		k, err := s.authorizeKey(ctx, call, action, keyID, keyOnly)
		if err != nil {
			return nil, store.Grant{}, err
		}
		grant, err := s.grant(ctx, k, grantID)
		return k, grant, err
	}
	refusal := denied(call, action, s.deniedResource(call, keyID))
	ref, err := s.parseKeyID(call, keyID, keyOnly)
	if err != nil || ref.account != call.Principal.Account || !grantIDPattern.MatchString(grantID) {
		return nil, store.Grant{}, refusal
	}
	k, err := s.cache.key(ctx, s, ref)
	if errors.Is(err, store.ErrNotFound) {
		return nil, store.Grant{}, refusal
	}
	if err != nil {
		return nil, store.Grant{}, err
	}
	grant, err := s.db.Grant(ctx, k.Key, grantID)
	if errors.Is(err, store.ErrNotFound) || err == nil && !mayRetire(call.Principal.ARN, grant) {
		return nil, store.Grant{}, refusal
	}
	if err != nil {
		return nil, store.Grant{}, err
	}
	call.touch(k.Account, k.arn)
	return k, grant, nil
}

func mayRetire(arn string, grant store.Grant) bool {
	return arn == grant.RetiringPrincipal ||
		arn == grant.Grantee && slices.Contains(strings.Split(grant.Operations, ","), string(types.GrantOperationRetireGrant))
}
