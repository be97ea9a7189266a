package kms

import (
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/store"
)

const maxTags = 50

// mergeTags returns have with the tags of set added or replaced, by key.
func mergeTags(have []store.Tag, set []types.Tag) ([]store.Tag, error) {
	tags := slices.Clone(have)
	seen := make(map[string]bool, len(set))
	for _, tag := range set {
		name := *tag.TagKey
		if len(name) >= 4 && strings.EqualFold(name[:4], "aws:") {
			return nil, tagError("Tags beginning with aws: are reserved")
		}
		if seen[name] {
			return nil, tagError("Duplicate tag keys")
		}
		seen[name] = true
		i, found := slices.BinarySearchFunc(tags, name, compareTag)
		if found {
			tags[i].Value = *tag.TagValue
		} else {
			tags = slices.Insert(tags, i, store.Tag{Key: name, Value: *tag.TagValue})
		}
	}
	if len(tags) > maxTags {
		return nil, tagError("Too many tags")
	}
	return tags, nil
}

func compareTag(tag store.Tag, name string) int { return strings.Compare(tag.Key, name) }

func tagError(text string) error { return &types.TagException{Message: aws.String(text)} }

// TagResource adds tags to a key or replaces their values.
func (s *Service) TagResource(ctx context.Context, call *Call, in *awskms.TagResourceInput) (*awskms.TagResourceOutput, error) {
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		tags, err := mergeTags(k.Tags, in.Tags)
		k.Tags = tags
		return err
	})
	return &awskms.TagResourceOutput{}, err
}

// UntagResource removes tags from a key; those it does not have do not matter.
func (s *Service) UntagResource(ctx context.Context, call *Call, in *awskms.UntagResourceInput) (*awskms.UntagResourceOutput, error) {
	_, err := s.updateKey(ctx, call, *in.KeyId, func(k *store.Key) error {
		k.Tags = slices.DeleteFunc(slices.Clone(k.Tags), func(tag store.Tag) bool {
			return slices.Contains(in.TagKeys, tag.Key)
		})
		return nil
	})
	return &awskms.UntagResourceOutput{}, err
}

// ListResourceTags lists a key's tags, by tag key.
func (s *Service) ListResourceTags(ctx context.Context, call *Call, in *awskms.ListResourceTagsInput) (*awskms.ListResourceTagsOutput, error) {
	if err := s.refresh(ctx, call); err != nil {
		return nil, err
	}
	k, err := s.authorizeKey(ctx, call, "kms:ListResourceTags", *in.KeyId, keyOnly)
	if err != nil {
		return nil, err
	}
	list := listOf(call, k.ID)
	after, err := list.after(in.Marker)
	if err != nil {
		return nil, err
	}
	limit, err := pageSize(in.Limit, maxTags, maxTags)
	if err != nil {
		return nil, err
	}
	from, found := slices.BinarySearchFunc(k.Tags, after, compareTag)
	if found {
		from++
	}
	tags, next := page(list, k.Tags[from:], limit, func(tag store.Tag) string { return tag.Key })
	out := &awskms.ListResourceTagsOutput{Tags: []types.Tag{}, Truncated: next != nil, NextMarker: next}
	for _, tag := range tags {
		out.Tags = append(out.Tags, types.Tag{TagKey: aws.String(tag.Key), TagValue: aws.String(tag.Value)})
	}
	return out, nil
}
