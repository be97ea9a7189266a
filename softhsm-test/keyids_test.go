package softhsmtest

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A stage is where one call of keyIDCalls is made.
type stage struct {
	t     testing.TB
	c     *kms.Client
	built func(operation string) bool
	key   *types.KeyMetadata // that the call names
	alias string             // of key; set when it is asked for
}

func aKey(s *stage) *types.KeyMetadata          { return createKey(s.t, s.c) }
func anExternalKey(s *stage) *types.KeyMetadata { return externalKey(s.t, s.c) }

func aSigningKey(s *stage) *types.KeyMetadata {
	return kindOf(s.t, s.c, types.KeySpecEccNistP256, signs)
}

func anAgreementKey(s *stage) *types.KeyMetadata {
	return kindOf(s.t, s.c, types.KeySpecEccNistP256, agrees)
}

func aMACKey(s *stage) *types.KeyMetadata { return kindOf(s.t, s.c, types.KeySpecHmac256, macs) }

// aMultiRegionKey is an ordinary key as long as nothing can be done with
// another.
func aMultiRegionKey(s *stage) *types.KeyMetadata {
	multi := aws.Bool(s.built("ReplicateKey"))
	return must(s.c.CreateKey(context.Background(), &kms.CreateKeyInput{MultiRegion: multi}))(s.t).KeyMetadata
}

func aReplicatedKey(s *stage) *types.KeyMetadata {
	key := aMultiRegionKey(s)
	if s.built("ReplicateKey") {
		must(s.c.ReplicateKey(context.Background(), &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: aws.String(otherRegion)}))(s.t)
	}
	return key
}

var aliasNumber atomic.Int64

// newAlias is a name that is not taken.
func (s *stage) newAlias() *string {
	return aws.String(fmt.Sprintf("alias/named-%s-%d", *s.key.KeyId, aliasNumber.Add(1)))
}

// aliasOf gives key an alias.
func (s *stage) aliasOf(key *types.KeyMetadata) *string {
	name := s.newAlias()
	if err := createAlias(s.c, *name, *key.KeyId); err != nil {
		s.t.Fatal(err)
	}
	return name
}

// unalias leaves the key's alias to the call to make.
func (s *stage) unalias() {
	must(s.c.DeleteAlias(context.Background(), &kms.DeleteAliasInput{AliasName: &s.alias}))(s.t)
}

func (s *stage) doom() {
	must(s.c.ScheduleKeyDeletion(context.Background(), &kms.ScheduleKeyDeletionInput{KeyId: s.key.KeyId}))(s.t)
}

func (s *stage) sealed(key *types.KeyMetadata) []byte { return encrypt(s.t, s.c, *key.KeyId, "x", nil) }

func (s *stage) mac() []byte {
	return must(s.c.GenerateMac(context.Background(), &kms.GenerateMacInput{
		KeyId: s.key.KeyId, MacAlgorithm: "HMAC_SHA_256", Message: []byte("m")}))(s.t).Mac
}

func (s *stage) administrator() *string { return aws.String("arn:aws:iam::" + account + ":root") }

// grant is one on the key, or as long as there are none, a name for one.
func (s *stage) grant() *string {
	if !s.built("CreateGrant") {
		return aws.String("g")
	}
	return must(s.c.CreateGrant(context.Background(), &kms.CreateGrantInput{KeyId: s.key.KeyId, GranteePrincipal: s.administrator(),
		Operations: []types.GrantOperation{types.GrantOperationEncrypt}}))(s.t).GrantId
}

// invoke names the key in a member of in and calls the SDK's method for it.
func (s *stage) invoke(row keyIDCall, in any, name string) (out any, err error) {
	if row.member != "" {
		reflect.ValueOf(in).Elem().FieldByName(row.member).Set(reflect.ValueOf(&name))
	}
	method := reflect.ValueOf(s.c).MethodByName(row.operation)
	results := method.Call([]reflect.Value{reflect.ValueOf(context.Background()), reflect.ValueOf(in)})
	err, _ = results[1].Interface().(error)
	return results[0].Interface(), err
}

// answered is what an answer says that the named key is called, if it does.
func answered(row keyIDCall, out any) string {
	name := "KeyId"
	if row.member == "SourceKeyId" {
		name = row.member
	}
	answer := reflect.ValueOf(out).Elem()
	if metadata := answer.FieldByName("KeyMetadata"); metadata.IsValid() {
		return *metadata.Interface().(*types.KeyMetadata).Arn
	}
	if id := answer.FieldByName(name); id.IsValid() && !id.IsNil() {
		return *id.Interface().(*string)
	}
	return ""
}

// A naming is one way to name the key of a stage, or to get it wrong.
type naming struct {
	form  string // as in the model's lists; "" = wrong everywhere
	name  string
	of    func(*stage) string
	wrong string // the error's text where the form is not taken; "" = that it is no key id
}

func arnOf(in, resource string) string { return "arn:aws:kms:" + in + ":" + account + ":" + resource }

const noKeyID = "11111111-2222-4333-8444-555555555555"

var namings = []naming{
	{"keyId", "key id", func(s *stage) string { return *s.key.KeyId }, ""},
	{"keyArn", "key ARN", func(s *stage) string { return *s.key.Arn }, ""},
	{"aliasName", "alias name", func(s *stage) string { return s.alias }, ""},
	{"aliasArn", "alias ARN", func(s *stage) string { return arnOf(region, s.alias) }, ""},
	{"", "no such key", func(*stage) string { return noKeyID }, "Key '" + arnOf(region, "key/"+noKeyID) + "' does not exist"},
	{"", "ARN of no key", func(*stage) string { return arnOf(region, "key/"+noKeyID) }, "Key '" + arnOf(region, "key/"+noKeyID) + "' does not exist"},
	{"", "no id", func(*stage) string { return "nothing" }, ""},
	{"", "another region", func(s *stage) string { return arnOf(otherRegion, "key/"+*s.key.KeyId) }, "Invalid arn " + otherRegion},
}

// wantRefused demands AWS's error for a naming that the member does not take.
func (n naming) wantRefused(t testing.TB, row keyIDCall, given string, err error) {
	t.Helper()
	switch {
	case row.member == "AliasName":
		wantCode(t, err, "ValidationException", `Alias must start with the prefix "alias/".`)
	case n.wrong != "":
		wantError[*types.NotFoundException](t, err, n.wrong)
	default:
		wantError[*types.NotFoundException](t, err, "Invalid keyId '"+given+"'")
	}
}

// Every operation takes every form of KeyId that AWS takes for it, and answers
// for the same key; every other form it refuses as AWS does. An operation that
// is not built refuses them all.
func TestEveryFormOfKeyID(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	model := modelOf(t)
	built, _ := operationTable(t)
	isBuilt := func(operation string) bool { return slices.Contains(built, operation) }
	for _, row := range keyIDCalls {
		t.Run(row.operation+"/"+row.member, func(t *testing.T) {
			forms := model.Operations[row.operation].IDs[row.member]
			set := func() (*stage, any) {
				s := &stage{t: t, c: c, built: isBuilt}
				if row.key != nil {
					s.key = row.key(s)
					s.alias = *s.aliasOf(s.key)
				}
				return s, row.in(s)
			}
			if !isBuilt(row.operation) {
				refusedInEveryForm(t, row, set)
				return
			}
			if row.member == "" {
				s, in := set()
				_, err := s.invoke(row, in, "")
				must(0, err)(t)
				return
			}
			acceptedForms(t, row, forms, set)
			s, in := set()
			before := d.state(t)
			for _, n := range namings {
				if !slices.ContainsFunc(forms, func(f string) bool { return strings.TrimSuffix(f, "?") == n.form }) {
					_, err := s.invoke(row, in, n.of(s))
					n.wantRefused(t, row, n.of(s), err)
				}
			}
			d.wantState(t, before)
		})
	}
}

// acceptedForms makes the call in each form that the member takes, each time on
// a stage of its own. However the key was named, it is answered by its ARN.
func acceptedForms(t *testing.T, row keyIDCall, forms []string, set func() (*stage, any)) {
	t.Helper()
	for _, n := range namings {
		if !slices.Contains(forms, n.form) {
			continue
		}
		s, in := set()
		out, err := s.invoke(row, in, n.of(s))
		if code := errorCode(err); code != inapplicable[row.operation] {
			t.Errorf("by %s: %v", n.name, err)
			continue
		}
		if err != nil {
			wantCode(t, err, inapplicable[row.operation], *s.key.Arn)
			continue
		}
		id := answered(row, out)
		want := *s.key.Arn
		if row.operation == "GetKeyLastUsage" {
			want = *s.key.KeyId
		}
		if id != "" && id != want {
			t.Errorf("by %s: answered for key %s, want %s", n.name, id, want)
		}
	}
}

func refusedInEveryForm(t *testing.T, row keyIDCall, set func() (*stage, any)) {
	t.Helper()
	s, in := set()
	for _, n := range namings {
		name := ""
		if row.member != "" {
			name = n.of(s)
		}
		_, err := s.invoke(row, in, name)
		wantError[*types.UnsupportedOperationException](t, err, row.operation)
	}
}

// No operation is left out of the table, and no member that names a key.
func TestKeyIDTableIsWhole(t *testing.T) {
	model := modelOf(t)
	lines := map[string]int{}
	for _, row := range keyIDCalls {
		lines[row.operation+"."+row.member]++
	}
	for operation, facts := range model.Operations {
		if len(facts.IDs) == 0 {
			facts.IDs = map[string][]string{"": nil}
		}
		for member := range facts.IDs {
			if n := lines[operation+"."+member]; n != 1 {
				t.Errorf("%s.%s has %d lines in keyIDCalls, want 1", operation, member, n)
			}
			delete(lines, operation+"."+member)
		}
	}
	if len(lines) != 0 {
		t.Errorf("keyIDCalls has lines for what the model does not have: %v", lines)
	}
}
