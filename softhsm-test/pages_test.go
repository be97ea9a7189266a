package softhsmtest

import (
	"context"
	"encoding/json"
	"fmt"
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

// A marker is good for the list that it was made for, and for no other: what
// there is behind its place in another list would be no page of that one.
func TestMarkersOfOtherLists(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	ctx := context.Background()
	key, other := createKey(t, c), createKey(t, c)
	for _, k := range []*types.KeyMetadata{key, other} {
		for i := range 2 {
			must(c.CreateAlias(ctx, &kms.CreateAliasInput{TargetKeyId: k.KeyId, AliasName: aws.String(fmt.Sprintf("alias/page-%s-%d", *k.KeyId, i))}))(t)
			must(c.TagResource(ctx, &kms.TagResourceInput{KeyId: k.KeyId, Tags: []types.Tag{tag(fmt.Sprint("k", i), "v")}}))(t)
			must(c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: k.KeyId}))(t)
			must(c.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: k.KeyId, GranteePrincipal: userARN("x"), RetiringPrincipal: userARN("page-" + *k.KeyId), Operations: []types.GrantOperation{"Decrypt"}}))(t)
		}
	}
	type list struct{ operation, members, region string }
	var lists []list
	for _, k := range []*types.KeyMetadata{key, other} {
		for _, operation := range []string{"ListAliases", "ListResourceTags", "ListKeyRotations", "ListGrants"} {
			lists = append(lists, list{operation, fmt.Sprintf(`"KeyId":%q,`, *k.KeyId), region})
		}
		lists = append(lists, list{"ListRetirableGrants", fmt.Sprintf(`"RetiringPrincipal":%q,`, *userARN("page-" + *k.KeyId)), region})
	}
	elsewhere := newRegionClient(d.url, otherRegion, d.admin, &recorder{})
	for range 2 {
		id := createKey(t, elsewhere).KeyId
		must(elsewhere.CreateAlias(ctx, &kms.CreateAliasInput{TargetKeyId: id, AliasName: aws.String("alias/page-" + *id)}))(t)
	}
	for _, in := range []string{region, otherRegion} {
		lists = append(lists, list{"ListKeys", "", in}, list{"ListAliases", "", in})
	}
	for _, from := range lists {
		var page struct{ NextMarker string }
		a := d.raw(t, request{operation: from.operation, region: from.region, body: []byte(`{` + from.members + `"Limit":1}`)})
		if err := json.Unmarshal(a.body, &page); err != nil || page.NextMarker == "" {
			t.Fatalf("%s: %d %s", from.operation, a.status, a.body)
		}
		for _, to := range lists {
			a := d.raw(t, request{operation: to.operation, region: to.region, body: []byte(fmt.Sprintf(`{%s"Limit":1,"Marker":%q}`, to.members, page.NextMarker))})
			if to == from && a.status != 200 || to != from && a.code != "InvalidMarkerException" {
				t.Errorf("%+v with a marker of %+v: %d %s", to, from, a.status, a.body)
			}
		}
	}
}
