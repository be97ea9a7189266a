package awsjson

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const failed = " failed to satisfy constraint: "

var (
	notNull     = func(path string) string { return "Value null at '" + path + "'" + failed + "Member must not be null" }
	longKey     = strings.Repeat("k", 2049)
	grantTokens = slices.Repeat([]string{"t"}, 11)
)

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		operation string
		in        any
		want      []string
	}{
		"good":     {"Encrypt", &kms.EncryptInput{KeyId: aws.String("a"), Plaintext: []byte{1}}, nil},
		"required": {"Encrypt", &kms.EncryptInput{}, []string{notNull("keyId"), notNull("plaintext")}},
		"empty is not absent": {"Encrypt", &kms.EncryptInput{KeyId: aws.String(""), Plaintext: []byte{}}, []string{
			"Value '' at 'keyId'" + failed + "Member must have length greater than or equal to 1",
			"Value at 'plaintext'" + failed + "Member must have length greater than or equal to 1"}},
		"sensitive blob": {"Encrypt", &kms.EncryptInput{KeyId: aws.String("a"), Plaintext: make([]byte, 4097)}, []string{
			"Value at 'plaintext'" + failed + "Member must have length less than or equal to 4096"}},
		"blob": {"Decrypt", &kms.DecryptInput{CiphertextBlob: make([]byte, 6145)}, []string{
			"Value 'java.nio.HeapByteBuffer[pos=0 lim=6145 cap=6145]' at 'ciphertextBlob'" + failed +
				"Member must have length less than or equal to 6144"}},
		"string length": {"DescribeKey", &kms.DescribeKeyInput{KeyId: &longKey}, []string{
			"Value '" + longKey + "' at 'keyId'" + failed + "Member must have length less than or equal to 2048"}},
		"characters, not bytes": {"DescribeKey", &kms.DescribeKeyInput{KeyId: aws.String(strings.Repeat("é", 2048))}, nil},
		"enum": {"GenerateDataKey", &kms.GenerateDataKeyInput{KeyId: aws.String("a"), KeySpec: "AES_512"}, []string{
			"Value 'AES_512' at 'keySpec'" + failed + "Member must satisfy enum value set: [AES_256, AES_128]"}},
		"empty enum": {"GenerateDataKey", &kms.GenerateDataKeyInput{KeyId: aws.String("a"), KeySpec: explicitEmpty}, []string{
			"Value '' at 'keySpec'" + failed + "Member must satisfy enum value set: [AES_256, AES_128]"}},
		"range low": {"GenerateDataKey", &kms.GenerateDataKeyInput{KeyId: aws.String("a"), NumberOfBytes: aws.Int32(0)}, []string{
			"Value '0' at 'numberOfBytes'" + failed + "Member must have value greater than or equal to 1"}},
		"range high": {"GenerateRandom", &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1025)}, []string{
			"Value '1025' at 'numberOfBytes'" + failed + "Member must have value less than or equal to 1024"}},
		"pattern": {"CreateAlias", &kms.CreateAliasInput{AliasName: aws.String("alias/ä"), TargetKeyId: aws.String("k")}, []string{
			"Value 'alias/ä' at 'aliasName'" + failed + "Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"}},
		"pattern matches as a whole": {"PutKeyPolicy", &kms.PutKeyPolicyInput{
			KeyId: aws.String("k"), Policy: aws.String("{}"), PolicyName: aws.String("a b")}, []string{
			`Value 'a b' at 'policyName'` + failed + `Member must satisfy regular expression pattern: [\w]+`}},
		"no newline at the end": {"CreateAlias", &kms.CreateAliasInput{AliasName: aws.String("a\n"), TargetKeyId: aws.String("k")}, []string{
			"Value 'a\n' at 'aliasName'" + failed + "Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"}},
		"length and pattern": {"CreateAlias", &kms.CreateAliasInput{AliasName: aws.String(""), TargetKeyId: aws.String("k")}, []string{
			"Value '' at 'aliasName'" + failed + "Member must have length greater than or equal to 1",
			"Value '' at 'aliasName'" + failed + "Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"}},
		"structures in a list": {"TagResource", &kms.TagResourceInput{KeyId: aws.String("k"), Tags: []types.Tag{
			{TagKey: aws.String("a"), TagValue: aws.String("")}, {TagKey: aws.String("")}}}, []string{
			"Value '' at 'tags.2.member.tagKey'" + failed + "Member must have length greater than or equal to 1",
			notNull("tags.2.member.tagValue")}},
		"list too long": {"DescribeKey", &kms.DescribeKeyInput{KeyId: aws.String("k"), GrantTokens: grantTokens}, []string{
			"Value '[" + strings.Join(grantTokens, ", ") + "]' at 'grantTokens'" + failed + "Member must have length less than or equal to 10"}},
		"scalar in a list": {"DescribeKey", &kms.DescribeKeyInput{KeyId: aws.String("k"), GrantTokens: []string{"a", ""}}, []string{
			"Value '[a, ]' at 'grantTokens'" + failed + "Member must satisfy constraint: " +
				"[Member must have length less than or equal to 8192, Member must have length greater than or equal to 1]"}},
		"nested structure": {"CreateGrant", &kms.CreateGrantInput{KeyId: aws.String("k"), Operations: []types.GrantOperation{},
			Constraints: &types.GrantConstraints{SourceArn: aws.String("x")}}, []string{
			"Value 'x' at 'constraints.sourceArn'" + failed + "Member must have length greater than or equal to 20",
			"Value 'x' at 'constraints.sourceArn'" + failed +
				"Member must satisfy regular expression pattern: ^arn:aws[a-z0-9-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$"}},
		"sensitive string": {"CreateCustomKeyStore", &kms.CreateCustomKeyStoreInput{
			CustomKeyStoreName: aws.String("n"), KeyStorePassword: aws.String("short")}, []string{
			"Value at 'keyStorePassword'" + failed + "Member must have length greater than or equal to 7"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := Validate(c.operation, c.in)
			var validation *ValidationError
			if c.want != nil && !errors.As(err, &validation) {
				t.Fatalf("err = %v, want a ValidationError", err)
			}
			if c.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if diff := cmp.Diff(c.want, validation.Failures); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestValidationErrorMessage(t *testing.T) {
	one, two := &ValidationError{Failures: []string{"a"}}, &ValidationError{Failures: []string{"a", "b"}}
	if got := one.ErrorMessage(); got != "1 validation error detected: a" {
		t.Error(got)
	}
	if got := two.ErrorMessage(); got != "2 validation errors detected: a; b" {
		t.Error(got)
	}
}

func TestValidateBoundsItsAnswer(t *testing.T) {
	in := &kms.TagResourceInput{KeyId: &longKey, Tags: make([]types.Tag, 100000)}
	var validation *ValidationError
	if err := Validate("TagResource", in); !errors.As(err, &validation) || len(validation.Failures) > 2*maxFailures {
		t.Errorf("%d failures, %v", len(validation.Failures), err)
	}
	huge := strings.Repeat("é", 1<<20)
	err := Validate("DescribeKey", &kms.DescribeKeyInput{KeyId: &huge})
	if n := len(err.Error()); n > 10000 || !utf8.ValidString(err.Error()) {
		t.Errorf("an error of %d bytes", n)
	}
}

func TestValidateMistakesOfTheProgram(t *testing.T) {
	var validation *ValidationError
	for operation, in := range map[string]any{
		"NoSuchOperation": &kms.EncryptInput{}, "Encrypt": &kms.ListKeysInput{}, "Decrypt": nil,
	} {
		if err := Validate(operation, in); err == nil || errors.As(err, &validation) {
			t.Errorf("%s: err = %v, want one that is not the caller's", operation, err)
		}
	}
}

// Every constraint of the model has a place in the SDK's structs, and every
// pattern compiles: binding fails otherwise.
func TestModelBindsToTheSDK(t *testing.T) {
	if n := len(Operations()); n != 56 {
		t.Errorf("%d operations, want 56", n)
	}
	for _, op := range Operations() {
		in, _ := structsOf(t, op.Name)
		_, p, err := structOf(in)
		if err != nil {
			t.Fatal(err)
		}
		c, err := newCheck(theModel(), op.input, p)
		if err != nil {
			t.Errorf("%s: %v", op.Name, err)
			continue
		}
		members := slices.Sorted(maps.Keys(c.shape.Members))
		if fields := slices.Sorted(maps.Keys(p.byName)); !slices.Equal(fields, members) {
			t.Errorf("%s: SDK has members %v, model %v", op.Name, fields, members)
		}
		if _, has := p.byName["DryRun"]; has != op.DryRun {
			t.Errorf("%s: DryRun = %v, SDK says %v", op.Name, op.DryRun, has)
		}
		for member := range op.IDs {
			if _, has := p.byName[member]; !has {
				t.Errorf("%s: no member %s", op.Name, member)
			}
		}
	}
}

func TestUnboundModelIsAnError(t *testing.T) {
	p, err := planFor(reflectType[kms.EncryptInput]())
	if err != nil {
		t.Fatal(err)
	}
	for name, shapes := range map[string]map[string]shapeModel{
		"no shape":    {},
		"no member":   {"S": {Type: "structure", Members: map[string]string{"Other": "B"}}, "B": {Type: "boolean"}},
		"wrong type":  {"S": {Type: "structure", Members: map[string]string{"KeyId": "B"}}, "B": {Type: "boolean"}},
		"bad pattern": {"S": {Type: "structure", Members: map[string]string{"KeyId": "P"}}, "P": {Type: "string", Pattern: "(?=a)"}},
	} {
		if _, err := newCheck(&model{shapes: shapes}, "S", p); err == nil {
			t.Errorf("%s: bound", name)
		}
	}
}

// The fast path for character classes agrees with the regular expression.
func TestSimpleClassAgrees(t *testing.T) {
	simple := 0
	for name, shape := range theModel().shapes {
		class, ok := simpleClass(shape.Pattern)
		if !ok {
			continue
		}
		simple++
		re := regexp.MustCompile(`\A(?:` + translate(shape.Pattern) + `)\z`)
		text := rapid.StringOfN(rapid.RuneFrom([]rune("aZ09 -_.:/+=,@\t\n\v\r\x00ÿĀ😀\\[")), 0, 5, -1)
		rapid.Check(t, func(t *rapid.T) {
			if s := text.Draw(t, "s"); class(s) != re.MatchString(s) {
				t.Errorf("%s: class(%q) = %v", name, s, class(s))
			}
		})
	}
	if simple < 8 {
		t.Errorf("only %d patterns take the fast path", simple)
	}
}

func TestOperationFacts(t *testing.T) {
	encrypt, ok := Operation("Encrypt")
	if !ok || !encrypt.HasOutput || !encrypt.ReadOnly || !encrypt.DryRun || !encrypt.CrossAccount || !encrypt.GrantTokens {
		t.Errorf("Encrypt: %+v", encrypt)
	}
	if enable, _ := Operation("EnableKey"); enable.HasOutput || enable.ReadOnly || enable.Permission != "keypolicy" {
		t.Errorf("EnableKey: %+v", enable)
	}
	if _, ok := Operation("encrypt"); ok {
		t.Error("operation names are case-sensitive")
	}
}
