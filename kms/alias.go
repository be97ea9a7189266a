package kms

import (
	"context"
	"errors"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/store"
)

// CreateAlias gives a key a name that is unique in its account and region.
func (s *Service) CreateAlias(ctx context.Context, call *Call, in *awskms.CreateAliasInput) (*awskms.CreateAliasOutput, error) {
	err := s.change(ctx, call, func() error {
		name := *in.AliasName
		k, err := s.authorizeKey(ctx, call, "kms:CreateAlias", *in.TargetKeyId, keyOnly)
		if err != nil {
			return err
		}
		if err := checkAliasName(name); err != nil {
			return err
		}
		if strings.Contains(name, ":") {
			return &types.InvalidAliasNameException{Message: aws.String("An alias name may not contain a colon.")}
		}
		now := s.now().UTC()
		change := s.db.NewChange()
		change.RequireKey(k.Key)
		alias := store.Alias{Account: k.Account, Region: k.Region, Name: name, KeyID: k.ID, Created: now, Updated: now}
		if err := change.InsertAlias(ctx, alias); err != nil {
			return unstorable(err)
		}
		s.answeredAlias(call, k, name)
		err = s.commit(ctx, call, change)
		if errors.Is(err, store.ErrExists) {
			return &types.AlreadyExistsException{Message: aws.String("An alias with the name " + s.aliasARN(k.Account, k.Region, name) + " already exists")}
		}
		return err
	})
	return &awskms.CreateAliasOutput{}, err
}

// UpdateAlias points an alias at another key of the same type and usage.
func (s *Service) UpdateAlias(ctx context.Context, call *Call, in *awskms.UpdateAliasInput) (*awskms.UpdateAliasOutput, error) {
	err := s.change(ctx, call, func() error {
		alias, from, err := s.authorizeAlias(ctx, call, *in.AliasName)
		if err != nil {
			return err
		}
		to, err := s.authorizeKey(ctx, call, "kms:UpdateAlias", *in.TargetKeyId, keyOnly)
		if err != nil {
			return err
		}
		if was, is := from.spec().keyType, to.spec().keyType; was != is || from.Usage != to.Usage {
			return validation("Alias %s cannot be moved from a key of type %s and usage %s to one of type %s and usage %s.", alias.Name, was, from.Usage, is, to.Usage)
		}
		alias.KeyID, alias.Updated = to.ID, s.now().UTC()
		change := s.db.NewChange()
		change.RequireKey(to.Key)
		if err := change.UpdateAlias(ctx, alias); err != nil {
			return unstorable(err)
		}
		s.answeredAlias(call, to, alias.Name)
		return s.commit(ctx, call, change)
	})
	return &awskms.UpdateAliasOutput{}, err
}

// DeleteAlias takes a name from a key. The key stays.
func (s *Service) DeleteAlias(ctx context.Context, call *Call, in *awskms.DeleteAliasInput) (*awskms.DeleteAliasOutput, error) {
	err := s.change(ctx, call, func() error {
		alias, k, err := s.authorizeAlias(ctx, call, *in.AliasName)
		if err != nil {
			return err
		}
		change := s.db.NewChange()
		if err := change.DeleteAlias(ctx, alias); err != nil {
			return unstorable(err)
		}
		s.answeredAlias(call, k, alias.Name)
		return s.commit(ctx, call, change)
	})
	return &awskms.DeleteAliasOutput{}, err
}

// authorizeAlias resolves an alias that is to be changed, and decides the
// operation's action on the alias and on the key it now names. The state of
// that key does not matter.
func (s *Service) authorizeAlias(ctx context.Context, call *Call, name string) (store.Alias, *key, error) {
	action := "kms:" + call.Operation
	arn := s.aliasARN(call.Principal.Account, call.Region, name)
	if !s.allowed(call) {
		return store.Alias{}, nil, denied(call, action, arn)
	}
	if err := checkAliasName(name); err != nil {
		return store.Alias{}, nil, err
	}
	alias, err := s.alias(ctx, keyRef{account: call.Principal.Account, region: call.Region, alias: name})
	if err != nil {
		return store.Alias{}, nil, err
	}
	ref := keyRef{account: alias.Account, region: alias.Region, id: alias.KeyID}
	k, err := s.authorizeRef(ctx, call, action, ref, "DeleteAlias")
	return alias, k, err
}

func checkAliasName(name string) error {
	if !strings.HasPrefix(name, "alias/") || name == "alias/" {
		return validation(`Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`)
	}
	if strings.HasPrefix(name, "alias/aws/") {
		return unmodelled("NotAuthorizedException", "Aliases that begin with alias/aws/ are reserved.")
	}
	return nil
}

func (s *Service) answeredAlias(call *Call, k *key, name string) {
	call.touch(k.Account, s.aliasARN(k.Account, k.Region, name))
	call.answeredKey(k.arn)
}

// ListAliases lists the aliases of the account and region, or of one key, by
// name.
func (s *Service) ListAliases(ctx context.Context, call *Call, in *awskms.ListAliasesInput) (*awskms.ListAliasesOutput, error) {
	if err := s.refresh(ctx, call); err != nil {
		return nil, err
	}
	if err := s.authorize(call, "kms:ListAliases"); err != nil {
		return nil, err
	}
	keyID := ""
	if in.KeyId != nil {
		k, err := s.authorizeKey(ctx, call, "kms:ListAliases", *in.KeyId, keyOnly)
		if err != nil {
			return nil, err
		}
		keyID = k.ID
	}
	list := listOf(call, keyID)
	after, err := list.after(in.Marker)
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(in.Limit, 50, 100)
	if err != nil {
		return nil, err
	}
	aliases, err := s.db.ListAliases(ctx, call.Principal.Account, call.Region, keyID, after, limit+1)
	if err != nil {
		return nil, err
	}
	aliases, next := page(list, aliases, limit, func(a store.Alias) string { return a.Name })
	out := &awskms.ListAliasesOutput{Aliases: []types.AliasListEntry{}, Truncated: next != nil, NextMarker: next}
	for _, a := range aliases {
		out.Aliases = append(out.Aliases, types.AliasListEntry{
			AliasName:       aws.String(a.Name),
			AliasArn:        aws.String(s.aliasARN(a.Account, a.Region, a.Name)),
			TargetKeyId:     aws.String(a.KeyID),
			CreationDate:    aws.Time(a.Created),
			LastUpdatedDate: aws.Time(a.Updated),
		})
	}
	return out, nil
}
