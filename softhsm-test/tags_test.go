package softhsmtest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func tag(key, value string) types.Tag { return types.Tag{TagKey: &key, TagValue: &value} }

func tagKey(c *kms.Client, id *string, tags ...types.Tag) error {
	_, err := c.TagResource(context.Background(), &kms.TagResourceInput{KeyId: id, Tags: tags})
	return err
}

// tagsOf reads all tags of a key, a few at a time.
func tagsOf(t *testing.T, c *kms.Client, id *string) map[string]string {
	t.Helper()
	tags := map[string]string{}
	pages := kms.NewListResourceTagsPaginator(c, &kms.ListResourceTagsInput{KeyId: id, Limit: aws.Int32(6)})
	for pages.HasMorePages() {
		page := must(pages.NextPage(context.Background()))(t)
		for _, g := range page.Tags {
			tags[*g.TagKey] = *g.TagValue
		}
	}
	return tags
}

func TestTags(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	if err := tagKey(c, key.Arn, tag("a", "1"), tag("b", ""), tag("A", "other case")); err != nil {
		t.Fatal(err)
	}
	if err := tagKey(c, key.KeyId, tag("a", "2")); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(tagsOf(t, c, key.KeyId)); got != "map[A:other case a:2 b:]" {
		t.Fatalf("tags %s", got)
	}
	must(c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: key.KeyId, TagKeys: []string{"a", "never there"}}))(t)
	if got := fmt.Sprint(tagsOf(t, c, key.Arn)); got != "map[A:other case b:]" {
		t.Fatalf("tags %s", got)
	}
}

func TestTagsRefused(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	wantError[*types.TagException](t, tagKey(c, key.KeyId, tag("a", "1"), tag("a", "2")), "Duplicate tag keys")
	for _, reserved := range []string{"aws:x", "AWS:x", "Aws:"} {
		wantError[*types.TagException](t, tagKey(c, key.KeyId, tag(reserved, "1")), "Tags beginning with aws: are reserved")
	}
	wantCode(t, tagKey(c, key.KeyId, tag("", "1")), "ValidationException", "'tags.1.member.tagKey'")
	wantCode(t, tagKey(c, key.KeyId, tag("a", "1"), tag(strings.Repeat("k", 129), "1")), "ValidationException",
		"'tags.2.member.tagKey' failed to satisfy constraint: Member must have length less than or equal to 128")
	wantCode(t, tagKey(c, key.KeyId, tag("a", strings.Repeat("v", 257))), "ValidationException", "'tags.1.member.tagValue'")
	_, err := c.CreateKey(ctx, &kms.CreateKeyInput{Tags: []types.Tag{tag("a", "1"), tag("a", "2")}})
	wantError[*types.TagException](t, err, "Duplicate tag keys")
	if left := tagsOf(t, c, key.KeyId); len(left) != 0 {
		t.Fatalf("refused tags were kept: %v", left)
	}
}

func TestFiftyTags(t *testing.T) {
	c := shared(t).client(t)
	key := createKey(t, c)
	var fifty []types.Tag
	for i := range 50 {
		fifty = append(fifty, tag(fmt.Sprintf("k%02d", i), "v"))
	}
	if err := tagKey(c, key.KeyId, fifty...); err != nil {
		t.Fatal(err)
	}
	wantError[*types.TagException](t, tagKey(c, key.KeyId, tag("k50", "v")), "Too many tags")
	if err := tagKey(c, key.KeyId, tag("k49", "changed")); err != nil {
		t.Fatal("an old tag of a full key cannot change:", err)
	}
	if got := tagsOf(t, c, key.KeyId); len(got) != 50 || got["k49"] != "changed" {
		t.Fatalf("%d tags, k49=%s", len(got), got["k49"])
	}
}

// defaultPolicy is AWS's text, letter for letter.
const defaultPolicy = `{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:aws:iam::` + account + `:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`

func TestKeyPolicy(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	out := must(c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId}))(t)
	if aws.ToString(out.Policy) != defaultPolicy || aws.ToString(out.PolicyName) != "default" {
		t.Fatalf("policy %q named %q", aws.ToString(out.Policy), aws.ToString(out.PolicyName))
	}
	list := must(c.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: key.Arn}))(t)
	if fmt.Sprint(list.PolicyNames) != "[default]" || list.Truncated {
		t.Fatalf("policies %v, truncated %t", list.PolicyNames, list.Truncated)
	}
	_, err := c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId, PolicyName: aws.String("other")})
	wantOneOf(t, err, "NotFoundException ValidationException", "")
	must(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: aws.String(defaultPolicy)}))(t)
	dense := strings.Join(strings.Fields(defaultPolicy), "")
	dense = strings.ReplaceAll(dense, "EnableIAMUserPermissions", "Enable IAM User Permissions")
	must(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &dense, PolicyName: aws.String("default")}))(t)
	must(c.CreateKey(ctx, &kms.CreateKeyInput{Policy: &dense}))(t)
}

// A policy that is stored but not enforced would be a lie.
func TestOtherPoliciesRefused(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	for name, policy := range map[string]string{
		"deny":          strings.Replace(defaultPolicy, "Allow", "Deny", 1),
		"narrower":      strings.Replace(defaultPolicy, "kms:*", "kms:Encrypt", 1),
		"other account": strings.Replace(defaultPolicy, account, "999999999999", 1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &policy})
			wantError[*types.UnsupportedOperationException](t, err, "")
			_, err = c.CreateKey(ctx, &kms.CreateKeyInput{Policy: &policy})
			wantError[*types.UnsupportedOperationException](t, err, "")
		})
	}
	_, err := c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: aws.String("no JSON")})
	wantOneOf(t, err, "MalformedPolicyDocumentException UnsupportedOperationException", "")
	out := must(c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId}))(t)
	if aws.ToString(out.Policy) != defaultPolicy {
		t.Fatal("a refused policy was stored")
	}
}
