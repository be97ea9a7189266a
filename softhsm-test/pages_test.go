package softhsmtest

import (
	"context"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestListKeysPages(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	made := map[string]string{}
	for range 9 {
		key := createKey(t, c)
		made[*key.KeyId] = *key.Arn
	}
	seen := map[string]bool{}
	pages := kms.NewListKeysPaginator(c, &kms.ListKeysInput{Limit: aws.Int32(4)})
	for pages.HasMorePages() {
		page := must(pages.NextPage(ctx))(t)
		if len(page.Keys) > 4 || page.Truncated != (page.NextMarker != nil) {
			t.Fatalf("page of %d keys, truncated %t, marker %v", len(page.Keys), page.Truncated, page.NextMarker)
		}
		for _, key := range page.Keys {
			if seen[*key.KeyId] {
				t.Fatalf("key %s listed twice", *key.KeyId)
			}
			seen[*key.KeyId] = true
			if arn, ok := made[*key.KeyId]; ok && arn != *key.KeyArn {
				t.Fatalf("key %s listed as %s", *key.KeyId, *key.KeyArn)
			}
		}
	}
	for id := range made {
		if !seen[id] {
			t.Errorf("key %s not listed", id)
		}
	}
}

// limited is a list operation and the most that a page of it may hold.
type limited struct {
	max  int32
	call func(limit *int32, marker *string) error
}

func TestListLimits(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	lists := map[string]limited{
		"ListKeys": {1000, func(limit *int32, marker *string) error {
			_, err := c.ListKeys(ctx, &kms.ListKeysInput{Limit: limit, Marker: marker})
			return err
		}},
		"ListAliases": {100, func(limit *int32, marker *string) error {
			_, err := c.ListAliases(ctx, &kms.ListAliasesInput{Limit: limit, Marker: marker})
			return err
		}},
		"ListResourceTags": {50, func(limit *int32, marker *string) error {
			_, err := c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: key.KeyId, Limit: limit, Marker: marker})
			return err
		}},
		"ListKeyPolicies": {1000, func(limit *int32, marker *string) error {
			_, err := c.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: key.KeyId, Limit: limit, Marker: marker})
			return err
		}},
	}
	lists["ListGrants"] = limited{100, func(limit *int32, marker *string) error {
		_, err := c.ListGrants(ctx, &kms.ListGrantsInput{KeyId: key.KeyId, Limit: limit, Marker: marker})
		return err
	}}
	lists["ListRetirableGrants"] = limited{100, func(limit *int32, marker *string) error {
		_, err := c.ListRetirableGrants(ctx, &kms.ListRetirableGrantsInput{RetiringPrincipal: userARN("x"), Limit: limit, Marker: marker})
		return err
	}}
	for name, list := range lists {
		t.Run(name, func(t *testing.T) {
			for _, good := range []int32{1, list.max} {
				if err := list.call(&good, nil); err != nil {
					t.Errorf("limit %d: %v", good, err)
				}
			}
			wantCode(t, list.call(aws.Int32(0), nil), "ValidationException", "'limit'")
			if err := list.call(aws.Int32(list.max+1), nil); err != nil {
				wantCode(t, err, "ValidationException", "")
			}
			wantCode(t, list.call(aws.Int32(1001), nil), "ValidationException", "less than or equal to 1000")
			if name == "ListKeyPolicies" { // its model lists no InvalidMarkerException
				return
			}
			wantError[*types.InvalidMarkerException](t, list.call(nil, aws.String("bogus")), "")
			wantError[*types.InvalidMarkerException](t, list.call(nil, aws.String("AAAAAAAAAAAAAAAAAAAAAAAAAAAA")), "")
		})
	}
}
