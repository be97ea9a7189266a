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

func createAlias(c *kms.Client, name, target string) error {
	_, err := c.CreateAlias(context.Background(), &kms.CreateAliasInput{AliasName: &name, TargetKeyId: &target})
	return err
}

func TestAliasLife(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	a, b := createKey(t, c), createKey(t, c)
	name := "alias/life/" + *a.KeyId
	arn := "arn:aws:kms:" + region + ":" + account + ":" + name
	if err := createAlias(c, name, *a.Arn); err != nil {
		t.Fatal(err)
	}
	wantError[*types.AlreadyExistsException](t, createAlias(c, name, *b.KeyId), "An alias with the name "+arn+" already exists")
	wantAliases(t, c, *a.KeyId, name)
	must(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: b.KeyId}))(t)
	wantAliases(t, c, *a.KeyId)
	wantAliases(t, c, *b.Arn, name)
	out := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &name, Plaintext: []byte("x")}))(t)
	if aws.ToString(out.KeyId) != *b.Arn {
		t.Fatalf("after UpdateAlias %s encrypts", aws.ToString(out.KeyId))
	}
	must(c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &name}))(t)
	wantAliases(t, c, *b.KeyId)
	_, err := c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &name})
	wantError[*types.NotFoundException](t, err, "Alias "+arn+" is not found.")
	_, err = c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: b.KeyId})
	wantError[*types.NotFoundException](t, err, arn)
	if err := createAlias(c, name, *a.KeyId); err != nil {
		t.Fatal("a deleted alias cannot be made again:", err)
	}
}

// wantAliases demands that exactly these aliases name the key.
func wantAliases(t *testing.T, c *kms.Client, keyID string, want ...string) {
	t.Helper()
	out := must(c.ListAliases(context.Background(), &kms.ListAliasesInput{KeyId: &keyID}))(t)
	if len(out.Aliases) != len(want) {
		t.Fatalf("%d aliases, want %v", len(out.Aliases), want)
	}
	for i, a := range out.Aliases {
		if aws.ToString(a.AliasName) != want[i] || !strings.HasSuffix(aws.ToString(a.AliasArn), ":"+want[i]) ||
			!strings.Contains(keyID, aws.ToString(a.TargetKeyId)) || a.CreationDate == nil || a.LastUpdatedDate == nil {
			t.Fatalf("alias %d: %+v, want %s", i, a, want[i])
		}
	}
}

func TestAliasNamesRefused(t *testing.T) {
	c := shared(t).client(t)
	key := createKey(t, c)
	const prefix = `Alias must start with the prefix "alias/".`
	for name, want := range map[string]struct{ codes, text string }{
		"noprefix":                          {"ValidationException", prefix},
		"Alias/x":                           {"ValidationException", prefix},
		"alias/aws/mine":                    {"NotAuthorizedException InvalidAliasNameException AccessDeniedException ValidationException", ""},
		"alias/":                            {"ValidationException InvalidAliasNameException", ""},
		"alias/has space":                   {"ValidationException InvalidAliasNameException", ""},
		"alias/has:colon":                   {"InvalidAliasNameException", ""},
		"alias/ümlaut":                      {"ValidationException InvalidAliasNameException", ""},
		"alias/" + strings.Repeat("x", 251): {"ValidationException", "less than or equal to 256"},
		"":                                  {"ValidationException", ""},
	} {
		t.Run(fmt.Sprintf("%.20s", name), func(t *testing.T) { wantOneOf(t, createAlias(c, name, *key.KeyId), want.codes, want.text) })
	}
	if err := createAlias(c, "alias/"+strings.Repeat("y", 250), *key.KeyId); err != nil {
		t.Error("an alias of 256 letters:", err)
	}
	// No other operation's model has InvalidAliasNameException.
	colon := aws.String("alias/has:colon")
	_, err := c.UpdateAlias(context.Background(), &kms.UpdateAliasInput{AliasName: colon, TargetKeyId: key.KeyId})
	wantError[*types.NotFoundException](t, err, *colon+" is not found.")
	_, err = c.DeleteAlias(context.Background(), &kms.DeleteAliasInput{AliasName: colon})
	wantError[*types.NotFoundException](t, err, *colon+" is not found.")
}

func TestAliasTargetsRefused(t *testing.T) {
	c := shared(t).client(t)
	key, names := namedKey(t, c)
	name := "alias/target-" + *key.KeyId
	wantOneOf(t, createAlias(c, name, names["alias name"]), "ValidationException NotFoundException", "")
	wantError[*types.NotFoundException](t, createAlias(c, name, "00000000-0000-4000-8000-000000000000"), "does not exist")
	_, err := c.UpdateAlias(context.Background(), &kms.UpdateAliasInput{
		AliasName: aws.String(names["alias name"]), TargetKeyId: aws.String("00000000-0000-4000-8000-000000000000"),
	})
	wantError[*types.NotFoundException](t, err, "does not exist")
}

func TestFiftyAliases(t *testing.T) {
	c := shared(t).client(t)
	key := createKey(t, c)
	for i := range 50 {
		if err := createAlias(c, fmt.Sprintf("alias/fifty/%s/%02d", *key.KeyId, i), *key.KeyId); err != nil {
			t.Fatal(i, err)
		}
	}
	last := "alias/fifty/" + *key.KeyId + "/50"
	wantError[*types.LimitExceededException](t, createAlias(c, last, *key.KeyId), "")
	other := createKey(t, c)
	if err := createAlias(c, last, *other.KeyId); err != nil {
		t.Fatal(err)
	}
	_, err := c.UpdateAlias(context.Background(), &kms.UpdateAliasInput{AliasName: &last, TargetKeyId: key.KeyId})
	wantError[*types.LimitExceededException](t, err, "")
	names := map[string]bool{}
	pages := kms.NewListAliasesPaginator(c, &kms.ListAliasesInput{KeyId: key.KeyId, Limit: aws.Int32(7)})
	for pages.HasMorePages() {
		page := must(pages.NextPage(context.Background()))(t)
		if len(page.Aliases) > 7 || page.Truncated != (page.NextMarker != nil) {
			t.Fatalf("page of %d, truncated %t", len(page.Aliases), page.Truncated)
		}
		for _, a := range page.Aliases {
			names[*a.AliasName] = true
		}
	}
	if len(names) != 50 {
		t.Fatalf("pages hold %d aliases, want 50", len(names))
	}
}
