package kms

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/go-json-experiment/json"

	"github.com/trent-kms/trent/envelope"
	"github.com/trent-kms/trent/store"
)

// defaultGrants and maxGrants bound a page of a list of grants.
const defaultGrants, maxGrants = 50, 100

// grantFilter says which grants are listed.
type grantFilter struct {
	list    list   // what its markers are good for
	grantee string // "" for all

	// batch and most are how many grants are read at a time, and for one page:
	// a page may have fewer than were asked for.
	batch, most int
}

// ListGrants lists the grants of a key, by id.
func (s *Service) ListGrants(ctx context.Context, call *Call, in *awskms.ListGrantsInput) (*awskms.ListGrantsOutput, error) {
	var out *awskms.ListGrantsOutput
	err := s.change(ctx, call, func() (err error) {
		out, err = s.listGrants(ctx, call, in)
		return err
	})
	return out, err
}

func (s *Service) listGrants(ctx context.Context, call *Call, in *awskms.ListGrantsInput) (*awskms.ListGrantsOutput, error) {
	k, err := s.authorizeKey(ctx, call, "kms:ListGrants", *in.KeyId, keyOnly)
	if err != nil {
		return nil, err
	}
	of := listOf(call, k.ID)
	after, err := of.after(in.Marker)
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(in.Limit, defaultGrants, maxGrants)
	if err != nil {
		return nil, err
	}
	if in.GranteePrincipal != nil && in.GranteeServicePrincipal != nil {
		return nil, validation("Specify either a GranteePrincipal or a GranteeServicePrincipal.")
	}
	grantee := aws.ToString(in.GranteePrincipal) + aws.ToString(in.GranteeServicePrincipal)
	var found []store.Grant
	var next *string
	if in.GrantId == nil {
		found, next, err = s.grantsOf(ctx, k, grantFilter{of, grantee, 500, 2000}, after, limit)
	} else {
		found, err = s.oneGrant(ctx, k, grantee, *in.GrantId)
	}
	if err != nil {
		return nil, err
	}
	list, err := s.grantEntries(found)
	return &awskms.ListGrantsOutput{Grants: list, Truncated: next != nil, NextMarker: next}, err
}

// grantIDPattern is the form of grant ids.
var grantIDPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// oneGrant is the list of a grant that is named by its id.
func (s *Service) oneGrant(ctx context.Context, k *key, grantee, id string) ([]store.Grant, error) {
	grant, err := s.grant(ctx, k, id)
	var unknown *types.NotFoundException
	if errors.As(err, &unknown) || err == nil && grantee != "" && grant.Grantee != grantee {
		return nil, nil
	}
	return []store.Grant{grant}, err
}

// grantsOf returns a page of k's grants, of one grantee or of all, and the
// marker of the next. It goes through all grants, so that none can be left out
// by who alters the database.
func (s *Service) grantsOf(ctx context.Context, k *key, filter grantFilter, after string, limit int) (found []store.Grant, next *string, err error) {
	if filter.grantee == "" {
		found, err = s.db.ListGrants(ctx, k.Key, after, limit+1)
		found, next = page(filter.list, found, limit, grantName)
		return found, next, err
	}
	for read := 0; ; read += filter.batch {
		batch, err := s.db.ListGrants(ctx, k.Key, after, filter.batch)
		if err != nil {
			return nil, nil, err
		}
		for _, g := range batch {
			if g.Grantee == filter.grantee {
				found = append(found, g)
			}
		}
		switch {
		case len(found) > limit || len(batch) < filter.batch:
			found, next = page(filter.list, found, limit, grantName)
			return found, next, nil
		case read+filter.batch >= filter.most:
			// The marker of what was read last, shown or not.
			return found, filter.list.marker(batch[filter.batch-1].ID), nil
		}
		after = batch[filter.batch-1].ID
	}
}

func grantName(g store.Grant) string { return g.ID }

// ListRetirableGrants lists the grants of the account and region that a
// principal may retire as their retiring principal, by key and id.
func (s *Service) ListRetirableGrants(ctx context.Context, call *Call, in *awskms.ListRetirableGrantsInput) (*awskms.ListRetirableGrantsOutput, error) {
	var out *awskms.ListRetirableGrantsOutput
	err := s.change(ctx, call, func() (err error) {
		out, err = s.listRetirableGrants(ctx, call, in)
		return err
	})
	return out, err
}

func (s *Service) listRetirableGrants(ctx context.Context, call *Call, in *awskms.ListRetirableGrantsInput) (*awskms.ListRetirableGrantsOutput, error) {
	if err := s.authorize(call, "kms:ListRetirableGrants"); err != nil {
		return nil, err
	}
	retiring, err := s.onePrincipal("RetiringPrincipal", in.RetiringPrincipal, in.RetiringServicePrincipal)
	if err != nil {
		return nil, err
	}
	if retiring == "" {
		return nil, validation("Specify either a RetiringPrincipal or a RetiringServicePrincipal.")
	}
	of := listOf(call, retiring)
	marker, err := of.after(in.Marker)
	if err != nil {
		return nil, err
	}
	keyID, id, _ := strings.Cut(marker, "/")
	if marker != "" && (!envelope.ValidKeyID(keyID) || !grantIDPattern.MatchString(id)) {
		return nil, invalidMarker()
	}
	limit, err := pageSize(in.Limit, defaultGrants, maxGrants)
	if err != nil {
		return nil, err
	}
	found, err := s.db.RetirableGrants(ctx, call.Principal.Account, call.Region, retiring, store.GrantRef{KeyID: keyID, ID: id}, limit+1)
	if err != nil {
		return nil, err
	}
	found, next := page(of, found, limit, func(g store.Grant) string { return g.KeyID + "/" + g.ID })
	list, err := s.grantEntries(found)
	return &awskms.ListRetirableGrantsOutput{Grants: list, Truncated: next != nil, NextMarker: next}, err
}

// grantEntries shows grants as AWS does.
func (s *Service) grantEntries(grants []store.Grant) ([]types.GrantListEntry, error) {
	list := []types.GrantListEntry{}
	for _, g := range grants {
		e := types.GrantListEntry{
			KeyId:          aws.String(s.keyARN(g.Account, g.Region, g.KeyID)),
			GrantId:        aws.String(g.ID),
			CreationDate:   aws.Time(g.Created),
			IssuingAccount: aws.String(g.IssuingAccount),
			Operations:     named[types.GrantOperation](strings.Split(g.Operations, ",")),
		}
		if g.Name != "" {
			e.Name = aws.String(g.Name)
		}
		e.GranteePrincipal, e.GranteeServicePrincipal = principalMembers(g.Grantee)
		e.RetiringPrincipal, e.RetiringServicePrincipal = principalMembers(g.RetiringPrincipal)
		if g.Constraints != "" {
			var c storedConstraints
			if err := json.Unmarshal([]byte(g.Constraints), &c); err != nil {
				return nil, fmt.Errorf("reading the constraints of grant %s: %w", g.ID, err)
			}
			e.Constraints = &types.GrantConstraints{
				EncryptionContextEquals: c.EncryptionContextEquals, EncryptionContextSubset: c.EncryptionContextSubset, SourceArn: c.SourceArn,
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// principalMembers puts a stored principal into the member that it came from.
func principalMembers(principal string) (arn, service *string) {
	switch {
	case principal == "":
		return nil, nil
	case strings.HasPrefix(principal, "arn:"):
		return &principal, nil
	}
	return nil, &principal
}
