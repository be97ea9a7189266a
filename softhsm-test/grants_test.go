package softhsmtest

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func userARN(name string) *string { return aws.String("arn:aws:iam::" + account + ":user/" + name) }

// createGrant makes a grant of Encrypt, Decrypt and RetireGrant.
func createGrant(t testing.TB, c *kms.Client, keyID, grantee, retiring *string) *kms.CreateGrantOutput {
	t.Helper()
	return must(c.CreateGrant(context.Background(), &kms.CreateGrantInput{
		KeyId: keyID, GranteePrincipal: grantee, RetiringPrincipal: retiring,
		Operations: []types.GrantOperation{"Encrypt", "Decrypt", "RetireGrant"},
	}))(t)
}

// grantsOf reads all grants of a key, a few at a time.
func grantsOf(t testing.TB, c *kms.Client, in kms.ListGrantsInput) (ids []string) {
	t.Helper()
	in.Limit = aws.Int32(3)
	pages := kms.NewListGrantsPaginator(c, &in)
	for pages.HasMorePages() {
		page := must(pages.NextPage(context.Background()))(t)
		if len(page.Grants) > 3 || page.Truncated != (page.NextMarker != nil) {
			t.Errorf("page of %d grants, truncated %t", len(page.Grants), page.Truncated)
		}
		for _, g := range page.Grants {
			ids = append(ids, *g.GrantId)
		}
	}
	return ids
}

func TestGrantAsItWasMade(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	in := &kms.CreateGrantInput{
		KeyId: key.KeyId, GranteePrincipal: userARN("app"), RetiringPrincipal: userARN("ops"), Name: aws.String("billing/1"),
		Operations: []types.GrantOperation{"GenerateDataKey", "Decrypt", "GenerateDataKey"},
		Constraints: &types.GrantConstraints{
			EncryptionContextSubset: map[string]string{"Tenant": "Ü <1>"},
			SourceArn:               aws.String("arn:aws:s3:us-east-1:111122223333:bucket"),
		},
	}
	made := must(c.CreateGrant(ctx, in))(t)
	out := must(c.ListGrants(ctx, &kms.ListGrantsInput{KeyId: key.Arn}))(t)
	if len(out.Grants) != 1 || out.Truncated {
		t.Fatalf("%d grants", len(out.Grants))
	}
	g := out.Grants[0]
	if *g.KeyId != *key.Arn || *g.GrantId != *made.GrantId || aws.ToString(g.Name) != *in.Name || time.Since(*g.CreationDate).Abs() > time.Minute ||
		*g.GranteePrincipal != *in.GranteePrincipal || *g.RetiringPrincipal != *in.RetiringPrincipal || *g.IssuingAccount != "arn:aws:iam::"+account+":root" ||
		!slices.Equal(g.Operations, []types.GrantOperation{"GenerateDataKey", "Decrypt"}) ||
		g.Constraints == nil || g.Constraints.EncryptionContextSubset["Tenant"] != "Ü <1>" || len(g.Constraints.EncryptionContextEquals) != 0 ||
		*g.Constraints.SourceArn != *in.Constraints.SourceArn {
		t.Errorf("%+v", g)
	}
	again := must(c.CreateGrant(ctx, in))(t)
	if *again.GrantId != *made.GrantId || *again.GrantToken == *made.GrantToken {
		t.Errorf("the same request again made %s with the token %s", *again.GrantId, *again.GrantToken)
	}
	in.Operations = in.Operations[:1]
	if other := must(c.CreateGrant(ctx, in))(t); *other.GrantId == *made.GrantId {
		t.Error("another request of that name was given the same grant")
	}
	in.Name = nil
	if a, b := must(c.CreateGrant(ctx, in))(t), must(c.CreateGrant(ctx, in))(t); *a.GrantId == *b.GrantId {
		t.Error("a request without a name was given a grant that there was")
	}
	if n := len(grantsOf(t, c, kms.ListGrantsInput{KeyId: key.KeyId})); n != 4 {
		t.Errorf("%d grants", n)
	}
}

func TestGrantLists(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	keys := []*types.KeyMetadata{createKey(t, c), createKey(t, c)}
	retiring := userARN("retires-" + *keys[0].KeyId)
	var all, apps, retirable []string
	for i := range 14 {
		grantee := userARN("app")
		if i%2 == 0 {
			grantee = userARN("other")
		}
		g := createGrant(t, c, keys[i%4/3].KeyId, grantee, retiring)
		retirable = append(retirable, *g.GrantId)
		if i%4 == 3 {
			continue
		}
		all = append(all, *g.GrantId)
		if i%2 == 1 {
			apps = append(apps, *g.GrantId)
		}
	}
	slices.Sort(all)
	slices.Sort(apps)
	if got := grantsOf(t, c, kms.ListGrantsInput{KeyId: keys[0].KeyId}); !slices.Equal(got, all) {
		t.Errorf("grants %v, want %v", got, all)
	}
	if got := grantsOf(t, c, kms.ListGrantsInput{KeyId: keys[0].Arn, GranteePrincipal: userARN("app")}); !slices.Equal(got, apps) {
		t.Errorf("grants of a grantee %v, want %v", got, apps)
	}
	if got := grantsOf(t, c, kms.ListGrantsInput{KeyId: keys[0].KeyId, GrantId: &all[3]}); !slices.Equal(got, all[3:4]) {
		t.Errorf("grants of an id %v", got)
	}
	if got := grantsOf(t, c, kms.ListGrantsInput{KeyId: keys[1].KeyId, GrantId: &all[3]}); len(got) != 0 {
		t.Errorf("another key's grant is listed: %v", got)
	}
	var seen []string
	pages := kms.NewListRetirableGrantsPaginator(c, &kms.ListRetirableGrantsInput{RetiringPrincipal: retiring, Limit: aws.Int32(4)})
	for pages.HasMorePages() {
		for _, g := range must(pages.NextPage(ctx))(t).Grants {
			seen = append(seen, *g.GrantId)
		}
	}
	slices.Sort(seen)
	slices.Sort(retirable)
	if !slices.Equal(seen, retirable) {
		t.Errorf("retirable %v, want %v", seen, retirable)
	}
}

// Who may retire a grant, and who may not learn that it is there.
func TestRetireGrant(t *testing.T) {
	d := shared(t)
	admin := d.client(t)
	ctx := context.Background()
	key := createKey(t, admin)
	clients := map[string]*kms.Client{"admin": admin}
	for _, name := range []string{"retiree", "grantee", "stranger"} {
		clients[name] = newClient(d.url, d.principal(t, "grant-"+name, "Active"), http.DefaultTransport)
	}
	for name, code := range map[string]string{"admin": "", "retiree": "", "grantee": "", "stranger": "AccessDeniedException"} {
		for _, byToken := range []bool{true, false} {
			g := createGrant(t, admin, key.KeyId, userARN("grant-grantee"), userARN("grant-retiree"))
			in := &kms.RetireGrantInput{KeyId: key.Arn, GrantId: g.GrantId}
			if byToken {
				in = &kms.RetireGrantInput{GrantToken: g.GrantToken}
			}
			_, err := clients[name].RetireGrant(ctx, in)
			if errorCode(err) != code {
				t.Errorf("%s, by token %t: %v, want %q", name, byToken, err, code)
			}
			left := grantsOf(t, admin, kms.ListGrantsInput{KeyId: key.KeyId, GrantId: g.GrantId})
			if (len(left) == 0) != (code == "") {
				t.Errorf("%s, by token %t: left %v", name, byToken, left)
			}
			if code == "" {
				_, err = admin.RetireGrant(ctx, in)
				wantError[*types.NotFoundException](t, err, *g.GrantId)
			}
		}
	}
	plain := must(admin.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: userARN("grant-grantee"), Operations: []types.GrantOperation{"Encrypt"}}))(t)
	none := strings.Repeat("0", 64)
	var texts []string
	for _, id := range []*string{plain.GrantId, &none, aws.String("x"), aws.String("\x00")} {
		_, err := clients["grantee"].RetireGrant(ctx, &kms.RetireGrantInput{KeyId: key.Arn, GrantId: id})
		wantCode(t, err, "AccessDeniedException", "kms:RetireGrant")
		texts = append(texts, err.Error()[strings.Index(err.Error(), "api error"):])
	}
	if len(slices.Compact(texts)) != 1 {
		t.Errorf("grants that exist and that do not are denied with different texts: %q", texts)
	}
}

func TestRevokeGrant(t *testing.T) {
	d := shared(t)
	through := &recorder{}
	c := newClient(d.url, d.admin, through)
	ctx := context.Background()
	key, other := createKey(t, c), createKey(t, c)
	g := createGrant(t, c, key.KeyId, userARN("app"), nil)
	_, err := c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: other.KeyId, GrantId: g.GrantId})
	wantError[*types.NotFoundException](t, err, *g.GrantId)
	_, err = c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: key.KeyId, GrantId: aws.String("x")})
	wantError[*types.InvalidGrantIdException](t, err, "")
	must(c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: key.Arn, GrantId: g.GrantId}))(t)
	_, err = c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: key.Arn, GrantId: g.GrantId})
	wantError[*types.NotFoundException](t, err, *g.GrantId)
	g = createGrant(t, c, key.KeyId, userARN("app"), nil)
	must(c.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: g.GrantToken}))(t)
	d.wantRecords(t, through.all())
	for _, r := range d.records(t, "record->'resources'->0->>'ARN' = $1 AND record->>'eventName' LIKE '%Grant' AND record->>'errorCode' IS NULL", *key.Arn) {
		plain := strings.NewReplacer(": ", ":") // as jsonb shows it
		request, response := plain.Replace(string(r.RequestParameters)), plain.Replace(string(r.ResponseElements))
		switch r.EventName {
		case "CreateGrant":
			if !strings.Contains(request, `"granteePrincipal":"`+*userARN("app")) || !strings.Contains(request, `"operations":["Encrypt"`) || !strings.Contains(response, `"grantId":"`) {
				t.Errorf("CreateGrant is recorded with %s and %s", request, response)
			}
		case "RevokeGrant":
			if !strings.Contains(request, `"grantId":"`) || response != `{"keyId":"`+*key.Arn+`"}` {
				t.Errorf("RevokeGrant is recorded with %s and %s", request, response)
			}
		case "RetireGrant":
			if request != "null" || response != `{"keyId":"`+*key.Arn+`"}` {
				t.Errorf("RetireGrant is recorded with %s and %s", request, response)
			}
		}
	}
	if n := len(d.records(t, "record->'additionalEventData'->>'grantId' = $1", *g.GrantId)); n != 1 {
		t.Errorf("%d records name the retired grant", n)
	}
	if n := len(d.records(t, "strpos(record::text, $1) > 0", *g.GrantToken)); n != 0 {
		t.Error("a grant token is in the audit log")
	}
}

func TestGrantsRefused(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	create := func(edit func(*kms.CreateGrantInput)) error {
		in := &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: userARN("app"), Operations: []types.GrantOperation{"Encrypt"}}
		edit(in)
		_, err := c.CreateGrant(ctx, in)
		return err
	}
	wantCode(t, create(func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{"Sign"} }), "ValidationException", "Sign")
	wantCode(t, create(func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{"Nothing"} }), "ValidationException", "")
	wantCode(t, create(func(in *kms.CreateGrantInput) { in.Operations = []types.GrantOperation{} }), "ValidationException", "")
	wantCode(t, create(func(in *kms.CreateGrantInput) { in.Name = aws.String("a b") }), "ValidationException", "'name'")
	wantError[*types.InvalidArnException](t, create(func(in *kms.CreateGrantInput) { in.GranteePrincipal = aws.String("app") }), "ARN does not refer to a valid principal: app")
	wantError[*types.InvalidGrantTokenException](t, create(func(in *kms.CreateGrantInput) { in.GrantTokens = []string{"AQ"} }), "")
	wantError[*types.NotFoundException](t, create(func(in *kms.CreateGrantInput) { in.KeyId = aws.String("alias/x") }), "")
	list := func(in kms.ListGrantsInput) error {
		in.KeyId = key.KeyId
		_, err := c.ListGrants(ctx, &in)
		return err
	}
	wantError[*types.InvalidGrantIdException](t, list(kms.ListGrantsInput{GrantId: aws.String("x")}), "")
	wantCode(t, list(kms.ListGrantsInput{Limit: aws.Int32(101)}), "ValidationException", "less than or equal to 100")
	wantError[*types.InvalidMarkerException](t, list(kms.ListGrantsInput{Marker: aws.String("MTph")}), "") // 1:a
	_, err := c.ListRetirableGrants(ctx, &kms.ListRetirableGrantsInput{})
	wantCode(t, err, "ValidationException", "RetiringPrincipal")
	_, err = c.ListRetirableGrants(ctx, &kms.ListRetirableGrantsInput{RetiringPrincipal: userARN("x"), Marker: aws.String("MTph")})
	wantError[*types.InvalidMarkerException](t, err, "")
	for _, in := range []kms.RetireGrantInput{{}, {KeyId: key.Arn}, {GrantId: aws.String(strings.Repeat("0", 64))}, {GrantToken: aws.String("AQ"), KeyId: key.Arn}} {
		_, err := c.RetireGrant(ctx, &in)
		wantCode(t, err, "ValidationException", "GrantToken")
	}
	_, err = c.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: aws.String("AQ")})
	wantError[*types.InvalidGrantTokenException](t, err, "")
	if left := grantsOf(t, c, kms.ListGrantsInput{KeyId: key.KeyId}); len(left) != 0 {
		t.Errorf("a refused call made %v", left)
	}
}

// A token of this deployment is taken wherever tokens are, and any other is
// refused.
func TestGrantTokens(t *testing.T) {
	c := shared(t).client(t)
	ctx := context.Background()
	key := createKey(t, c)
	signing := kindOf(t, c, types.KeySpecEccNistP256, signs)
	g := createGrant(t, c, key.KeyId, userARN("app"), nil)
	forged := *g.GrantToken
	forged = forged[:len(forged)-2] + "AA"
	use := map[string]func(tokens []string) error{
		"Encrypt": func(tokens []string) error {
			_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), GrantTokens: tokens})
			return err
		},
		"GenerateDataKey": func(tokens []string) error {
			_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: "AES_256", GrantTokens: tokens})
			return err
		},
		"DescribeKey": func(tokens []string) error {
			_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId, GrantTokens: tokens})
			return err
		},
		"Sign": func(tokens []string) error {
			_, err := c.Sign(ctx, &kms.SignInput{KeyId: signing.KeyId, Message: []byte("m"), SigningAlgorithm: "ECDSA_SHA_256", GrantTokens: tokens})
			return err
		},
		"GetPublicKey": func(tokens []string) error {
			_, err := c.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: signing.KeyId, GrantTokens: tokens})
			return err
		},
	}
	for name, do := range use {
		if err := do([]string{*g.GrantToken}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantError[*types.InvalidGrantTokenException](t, do([]string{*g.GrantToken, forged}), "")
	}
}

// An intruder with old rows at hand can neither take a grant away nor put one
// back.
func TestTamperedGrants(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	c := newClient(d.url, d.admin, http.DefaultTransport)
	ctx := context.Background()
	tamperings := map[string]string{
		"removed":         `DELETE FROM grants WHERE key_id = $1`,
		"altered":         `UPDATE grants SET grantee = 'arn:aws:iam::999999999999:root' WHERE key_id = $1`,
		"put back":        `INSERT INTO grants SELECT * FROM saved_grants WHERE key_id = $1 ON CONFLICT DO NOTHING`,
		"old page":        `UPDATE grant_pages p SET version = o.version, members = o.members, mac = o.mac FROM saved_pages o WHERE p.key_id = $1 AND o.key_id = $1 AND p.number = o.number`,
		"page altered":    `UPDATE grant_pages SET members = '' WHERE key_id = $1`,
		"count":           `UPDATE keys SET grant_count = 0 WHERE id = $1`,
		"versions in key": `UPDATE keys SET grant_pages = '' WHERE id = $1`,
	}
	victims := map[string]*string{}
	for name := range tamperings {
		victims[name] = createKey(t, c).KeyId
		createGrant(t, c, victims[name], userARN("app"), userARN("ops"))
	}
	healthy := createKey(t, c)
	createGrant(t, c, healthy.KeyId, userARN("app"), nil)
	must(d.pool.Exec(ctx, `CREATE TABLE saved_grants AS SELECT * FROM grants`))(t)
	must(d.pool.Exec(ctx, `CREATE TABLE saved_pages AS SELECT * FROM grant_pages`))(t)
	for _, id := range victims {
		first := grantsOf(t, c, kms.ListGrantsInput{KeyId: id})
		must(c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: id, GrantId: &first[0]}))(t)
		createGrant(t, c, id, userARN("app"), nil)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	for name, sql := range tamperings {
		if tag := must(d.pool.Exec(ctx, sql, *victims[name]))(t); tag.RowsAffected() == 0 {
			t.Fatalf("%s: nothing was altered", name)
		}
	}
	s = d.serve(t)
	c = newClient(d.url, d.admin, http.DefaultTransport)
	for name, id := range victims {
		before := s.metric(t, "trent_store_tampered_rows_total")
		_, err := c.ListGrants(ctx, &kms.ListGrantsInput{KeyId: id})
		if errorCode(err) != "KMSInternalException" {
			t.Errorf("%s: %v", name, err)
		}
		if after := s.metric(t, "trent_store_tampered_rows_total"); after <= before {
			t.Errorf("%s: trent_store_tampered_rows_total stays at %v", name, after)
		}
	}
	if left := grantsOf(t, c, kms.ListGrantsInput{KeyId: healthy.KeyId}); len(left) != 1 {
		t.Errorf("a healthy key has the grants %v", left)
	}
}
