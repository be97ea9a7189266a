package kms

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/trent-kms/trent/store"
)

const testGrantee = "arn:aws:iam::" + testAccount + ":user/app"

func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return fmt.Sprint(err)
}

func TestGrantable(t *testing.T) {
	for _, row := range []struct {
		spec  types.KeySpec
		usage types.KeyUsageType
		want  string
	}{
		{"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "Decrypt Encrypt GenerateDataKey GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateDataKeyWithoutPlaintext ReEncryptFrom ReEncryptTo"},
		{"RSA_2048", "ENCRYPT_DECRYPT", "Decrypt Encrypt GetPublicKey ReEncryptFrom ReEncryptTo"},
		{"RSA_4096", "SIGN_VERIFY", "GetPublicKey Sign Verify"},
		{"ML_DSA_65", "SIGN_VERIFY", "GetPublicKey Sign Verify"},
		{"HMAC_384", "GENERATE_VERIFY_MAC", "GenerateMac VerifyMac"},
		{"ECC_NIST_P384", "KEY_AGREEMENT", "DeriveSharedSecret GetPublicKey"},
		{"ML_KEM_768", "ENCAPSULATE_DECAPSULATE", "Decapsulate Encapsulate GetPublicKey"},
	} {
		k := &key{Key: store.Key{Spec: string(row.spec), Usage: string(row.usage)}}
		want := append(strings.Fields(row.want), "CreateGrant", "DescribeKey", "RetireGrant")
		slices.Sort(want)
		for _, o := range types.GrantOperation("").Values() {
			err := checkGrantOperations(k, []types.GrantOperation{types.GrantOperationDescribeKey, o})
			if got := err == nil; got != slices.Contains(want, string(o)) || !got && codeOf(err) != "ValidationException" {
				t.Errorf("%s for %s: %s: %v", row.spec, row.usage, o, err)
			}
		}
	}
}

// TestNewGrant changes one member at a time of a request that is right.
func TestNewGrant(t *testing.T) {
	many, long := map[string]string{}, map[string]string{"k": strings.Repeat("ü", maxConstraintValue+1)}
	for i := range maxConstraintPairs + 1 {
		many[fmt.Sprint(i)] = "v"
	}
	context := func(pairs map[string]string) func(*awskms.CreateGrantInput) {
		return func(in *awskms.CreateGrantInput) {
			in.Constraints = &types.GrantConstraints{EncryptionContextSubset: pairs}
		}
	}
	grantee := func(arn string) func(*awskms.CreateGrantInput) {
		return func(in *awskms.CreateGrantInput) { in.GranteePrincipal = &arn }
	}
	service := func(in *awskms.CreateGrantInput) {
		in.GranteePrincipal, in.GranteeServicePrincipal = nil, aws.String("s3.amazonaws.com")
		in.Constraints = &types.GrantConstraints{SourceArn: aws.String("arn:aws:s3:::111122223333:bucket")}
		in.RetiringServicePrincipal = aws.String("s3.amazonaws.com")
	}
	symmetric, signing := store.Key{Account: testAccount, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT"}, store.Key{Spec: "RSA_2048", Usage: "SIGN_VERIFY"}
	for name, row := range map[string]struct {
		key  store.Key
		edit func(*awskms.CreateGrantInput)
		code string
	}{
		"right":               {symmetric, func(*awskms.CreateGrantInput) {}, ""},
		"for RSA":             {signing, func(*awskms.CreateGrantInput) {}, ""},
		"account":             {symmetric, grantee("arn:aws:iam::444455556666:root"), ""},
		"role with path":      {symmetric, grantee("arn:aws:iam::444455556666:role/a/b"), ""},
		"role session":        {symmetric, grantee("arn:aws:sts::444455556666:assumed-role/r/s"), ""},
		"federated user":      {symmetric, grantee("arn:aws:sts::444455556666:federated-user/f"), ""},
		"group":               {symmetric, grantee("arn:aws:iam::444455556666:group/g"), "InvalidArnException"},
		"no ARN":              {symmetric, grantee("app"), "InvalidArnException"},
		"service as grantee":  {symmetric, grantee("s3.amazonaws.com"), "InvalidArnException"},
		"other partition":     {symmetric, grantee("arn:aws-cn:iam::444455556666:root"), "InvalidArnException"},
		"retiring is no ARN":  {symmetric, func(in *awskms.CreateGrantInput) { in.RetiringPrincipal = aws.String("x") }, "InvalidArnException"},
		"no grantee":          {symmetric, func(in *awskms.CreateGrantInput) { in.GranteePrincipal = nil }, "ValidationException"},
		"no operations":       {symmetric, func(in *awskms.CreateGrantInput) { in.Operations = nil }, "ValidationException"},
		"not its operation":   {signing, func(in *awskms.CreateGrantInput) { in.Operations = []types.GrantOperation{"Encrypt"} }, "ValidationException"},
		"context":             {symmetric, context(map[string]string{"k": strings.Repeat("ü", maxConstraintValue)}), ""},
		"empty context":       {signing, context(map[string]string{}), ""},
		"context for signing": {signing, context(map[string]string{"k": "v"}), "ValidationException"},
		"nine pairs":          {symmetric, context(many), "ValidationException"},
		"long value":          {symmetric, context(long), "ValidationException"},
		"service":             {signing, service, ""},
		"two grantees":        {symmetric, func(in *awskms.CreateGrantInput) { in.GranteeServicePrincipal = aws.String("s3.amazonaws.com") }, "ValidationException"},
		"two to retire": {symmetric, func(in *awskms.CreateGrantInput) {
			in.RetiringPrincipal, in.RetiringServicePrincipal = aws.String(testGrantee), aws.String("s3.amazonaws.com")
		}, "ValidationException"},
		"service that nobody retires":  {symmetric, func(in *awskms.CreateGrantInput) { service(in); in.RetiringServicePrincipal = nil }, "ValidationException"},
		"service without a source ARN": {symmetric, func(in *awskms.CreateGrantInput) { service(in); in.Constraints = nil }, "ValidationException"},
	} {
		in := &awskms.CreateGrantInput{GranteePrincipal: aws.String(testGrantee), Operations: []types.GrantOperation{"DescribeKey"}}
		row.edit(in)
		s := testService()
		s.now = clock
		g, err := s.newGrant(&key{Key: row.key}, in)
		if row.code == "" && err != nil || row.code != "" && codeOf(err) != row.code {
			t.Errorf("%s: %+v, %v; want %q", name, g, err, row.code)
		}
	}
}

// createGrant makes a grant on a key; edit says how it differs from others.
func createGrant(f *fleet, s *Service, id string, edit func(*awskms.CreateGrantInput)) (*awskms.CreateGrantOutput, error) {
	in := &awskms.CreateGrantInput{
		KeyId: &id, GranteePrincipal: aws.String(testGrantee), Operations: []types.GrantOperation{"Encrypt", "Decrypt"},
	}
	edit(in)
	return do(f, s, "CreateGrant", (*Service).CreateGrant, in)
}

func listGrants(t *testing.T, f *fleet, s *Service, id string) []types.GrantListEntry {
	t.Helper()
	out, err := do(f, s, "ListGrants", (*Service).ListGrants, &awskms.ListGrantsInput{KeyId: &id, Limit: aws.Int32(100)})
	if err != nil {
		t.Fatal(err)
	}
	return out.Grants
}

// Two hosts at once change the grants of one key; then all agree on them, and
// the same name has one grant.
func TestGrantsOnTwoHosts(t *testing.T) {
	f := newFleet(t)
	hosts := []*Service{f.host(t, "a"), f.host(t, "b")}
	id := createKey(t, f, hosts[0])
	var group sync.WaitGroup
	var mu sync.Mutex
	made := map[string]bool{}
	for i, s := range hosts {
		for range 4 {
			group.Go(func() {
				for n := range 4 {
					out, err := createGrant(f, s, id, func(in *awskms.CreateGrantInput) {
						if n == 0 {
							in.Name = aws.String("shared")
						}
					})
					if err != nil {
						t.Errorf("host %d: %v", i, err)
						return
					}
					mu.Lock()
					made[*out.GrantId] = true
					mu.Unlock()
				}
			})
		}
	}
	group.Wait()
	if len(made) != 2*4*3+1 {
		t.Errorf("%d grants were made", len(made))
	}
	for _, s := range hosts {
		list := listGrants(t, f, s, id)
		if len(list) != len(made) {
			t.Errorf("%d grants are listed, want %d", len(list), len(made))
		}
		for _, g := range list {
			if !made[*g.GrantId] {
				t.Errorf("grant %s is nobody's", *g.GrantId)
			}
		}
	}
}

// A change of grants has the key's row loaded again, and leaves its backing
// keys where they are.
func TestGrantsKeepBackingKeys(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	encrypt := func() {
		t.Helper()
		if _, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	encrypt()
	ref := keyRef{account: testAccount, region: testRegion, id: id}
	before, _ := s.cache.keys.GetIfPresent(ref)
	if _, err := createGrant(f, s, id, func(*awskms.CreateGrantInput) {}); err != nil {
		t.Fatal(err)
	}
	k, held := s.cache.keys.GetIfPresent(ref)
	if !held || !k.outdated || before.outdated {
		t.Fatalf("the cache has %+v", k)
	}
	if _, held := s.cache.backing.GetIfPresent(backingRef{testAccount, testRegion, k.CurrentBackingKey}); !held {
		t.Error("the backing key was dropped")
	}
	encrypt()
	if k, held := s.cache.keys.GetIfPresent(ref); !held || k.outdated || k.GrantCount != 1 {
		t.Errorf("after the next use the cache has %+v", k)
	}
}

// A filter that finds little ends a page early, and loses nothing.
func TestFilteredPages(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	var want []string
	for i := range 12 {
		out, err := createGrant(f, s, id, func(in *awskms.CreateGrantInput) {
			if i%3 == 0 {
				in.GranteePrincipal = aws.String("arn:aws:iam::444455556666:root")
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			want = append(want, *out.GrantId)
		}
	}
	slices.Sort(want)
	k, err := s.cache.load(t.Context(), s, keyRef{account: testAccount, region: testRegion, id: id})
	if err != nil {
		t.Fatal(err)
	}
	for _, filter := range []grantFilter{{batch: 2, most: 4}, {batch: 1, most: 1}, {batch: 5, most: 100}, {batch: 12, most: 12}} {
		filter.grantee = "arn:aws:iam::444455556666:root"
		for limit := 1; limit < 6; limit++ {
			var seen []string
			var marker *string
			for pages := 0; ; pages++ {
				after, err := filter.list.after(marker)
				if err != nil || pages > 20 {
					t.Fatalf("page %d: %v", pages, err)
				}
				var found []store.Grant
				if found, marker, err = s.grantsOf(t.Context(), k, filter, after, limit); err != nil {
					t.Fatal(err)
				}
				if len(found) > limit {
					t.Errorf("%d grants on a page of %d", len(found), limit)
				}
				for _, g := range found {
					seen = append(seen, g.ID)
				}
				if marker == nil {
					break
				}
			}
			if !slices.Equal(seen, want) {
				t.Errorf("%+v, limit %d: %v, want %v", filter, limit, seen, want)
			}
		}
	}
}

// Every byte of a grant token is authenticated.
func TestGrantToken(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	first, err := createGrant(f, s, id, func(in *awskms.CreateGrantInput) { in.Name = aws.String("n") })
	if err != nil {
		t.Fatal(err)
	}
	second, err := createGrant(f, s, id, func(in *awskms.CreateGrantInput) { in.Name = aws.String("n") })
	if err != nil || *second.GrantId != *first.GrantId || *second.GrantToken == *first.GrantToken {
		t.Fatalf("the same request again: %+v, %v", second, err)
	}
	token := *first.GrantToken
	if len(token) > 8192 || token[0] == '-' || *first.GrantId != strings.ToLower(*first.GrantId) || len(*first.GrantId) != 64 {
		t.Errorf("token %q, id %q", token, *first.GrantId)
	}
	if err := s.checkGrantTokens(context.Background(), []string{token, *second.GrantToken}); err != nil {
		t.Error(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	bad := []string{"", "x", token + "A", token[:len(token)-1], " " + token, token + "="}
	for i := range raw {
		raw[i] ^= 1
		bad = append(bad, base64.RawURLEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw[:i]))
		raw[i] ^= 1
	}
	for _, b := range bad {
		if err := s.checkGrantTokens(context.Background(), []string{token, b}); codeOf(err) != "InvalidGrantTokenException" {
			t.Fatalf("token %q: %v", b, err)
		}
	}
}
