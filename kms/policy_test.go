package kms

import (
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
)

const testAccount = "111122223333"

func testService() *Service {
	return &Service{cfg: Config{Account: testAccount, Partition: "aws", Regions: []string{"eu-west-1"}}}
}

func TestCheckPolicy(t *testing.T) {
	s := testService()
	standard := s.defaultPolicy(testAccount)
	const (
		accepted    = ""
		unsupported = "UnsupportedOperationException"
		malformed   = "MalformedPolicyDocumentException"
		limit       = "LimitExceededException"
	)
	edit := func(old, replacement string) string {
		t.Helper()
		if !strings.Contains(standard, old) {
			t.Fatalf("the default policy has no %q", old)
		}
		return strings.Replace(standard, old, replacement, 1)
	}
	tests := map[string]struct{ policy, code string }{
		"default":          {standard, accepted},
		"compact":          {strings.Join(strings.Fields(edit("Enable IAM User Permissions", "x")), ""), accepted},
		"own Sid and Id":   {edit("key-default-1", "mine"), accepted},
		"account id":       {edit("arn:aws:iam::111122223333:root", "111122223333"), accepted},
		"arrays":           {edit(`"kms:*"`, `["kms:*"]`), accepted},
		"case of action":   {edit("kms:*", "KMS:*"), accepted},
		"older version":    {edit("2012-10-17", "2008-10-17"), accepted},
		"single statement": {edit("[ {", "{")[:strings.LastIndex(edit("[ {", "{"), "]")] + "}", accepted},
		"deny":             {edit("Allow", "Deny"), unsupported},
		"anyone":           {edit("arn:aws:iam::111122223333:root", "*"), unsupported},
		"another account":  {edit("111122223333", "444455556666"), unsupported},
		"one user":         {edit(":root", ":user/alice"), unsupported},
		"fewer actions":    {edit("kms:*", "kms:Decrypt"), unsupported},
		"two actions":      {edit(`"kms:*"`, `["kms:*","kms:Decrypt"]`), unsupported},
		"condition":        {edit(`"Resource"`, `"Condition":{},"Resource"`), unsupported},
		"NotAction":        {edit(`"Action"`, `"NotAction"`), unsupported},
		"no version":       {edit(`"Version" : "2012-10-17",`, ""), unsupported},
		"unknown version":  {edit("2012-10-17", "2026-01-01"), unsupported},
		"Id is no text":    {edit(`"key-default-1"`, "7"), unsupported},
		"two principals":   {edit(`"arn:aws:iam::111122223333:root"`, `["*","arn:aws:iam::111122223333:root"]`), unsupported},
		"also a service":   {edit(`"AWS" :`, `"Service":"x.amazonaws.com","AWS" :`), unsupported},
		"no statement":     {`{"Version":"2012-10-17","Statement":[]}`, unsupported},
		"array":            {`[]`, malformed},
		"no JSON":          {`{"Version":`, malformed},
		"duplicate names":  {edit(`"Statement"`, `"Statement":[{"Effect":"Deny","Principal":"*","Action":"*"}],"Statement"`), malformed},
		"too large":        {standard + strings.Repeat(" ", maxPolicySize), limit},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			stored, err := s.checkPolicy(testAccount, &test.policy)
			if test.code == accepted {
				if err != nil || stored != test.policy {
					t.Fatalf("checkPolicy = %q, %v; want it back as given", stored, err)
				}
				return
			}
			var api smithy.APIError
			if !errors.As(err, &api) || api.ErrorCode() != test.code {
				t.Fatalf("checkPolicy = %v, want %s", err, test.code)
			}
		})
	}
}

func FuzzCheckPolicy(f *testing.F) {
	s := testService()
	f.Add(s.defaultPolicy(testAccount))
	f.Add(`{"Statement":[[{}]],"Version":null}`)
	f.Fuzz(func(t *testing.T, policy string) {
		stored, err := s.checkPolicy(testAccount, &policy)
		var api smithy.APIError
		switch {
		case err == nil && stored != policy:
			t.Fatalf("stored %q for %q", stored, policy)
		case err != nil && !errors.As(err, &api):
			t.Fatalf("%v is not an error for the caller", err)
		}
	})
}

func TestParseKeyID(t *testing.T) {
	s := testService()
	const id = "1234abcd-12ab-34cd-56ef-1234567890ab"
	call := &Call{Operation: "EnableKey", Region: "eu-west-1"}
	call.Principal.Account = testAccount
	here := keyRef{account: testAccount, region: "eu-west-1"}
	with := func(account, id, alias string) keyRef {
		r := here
		r.account, r.id, r.alias = account, id, alias
		return r
	}
	tests := []struct {
		text  string
		forms keyForms
		want  keyRef
		fails string // error code and text
	}{
		{text: id, want: with(testAccount, id, "")},
		{text: "mrk-1234567890abcdef1234567890abcdef", want: with(testAccount, "mrk-1234567890abcdef1234567890abcdef", "")},
		{text: "arn:aws:kms:eu-west-1:111122223333:key/" + id, want: with(testAccount, id, "")},
		{text: "arn:aws:kms:eu-west-1:444455556666:key/" + id, want: with("444455556666", id, "")},
		{text: "alias/a/b", forms: keyOrAlias, want: with(testAccount, "", "alias/a/b")},
		{text: "arn:aws:kms:eu-west-1:111122223333:alias/a", forms: keyOrAlias, want: with(testAccount, "", "alias/a")},
		{text: "alias/a", fails: "NotFoundException: Invalid keyId 'alias/a'"},
		{text: "1234abcd12ab34cd56ef1234567890ab", fails: "NotFoundException: Invalid keyId '1234abcd12ab34cd56ef1234567890ab'"},
		{text: "1234ABCD-12ab-34cd-56ef-1234567890ab", fails: "NotFoundException: Invalid keyId '1234ABCD-12ab-34cd-56ef-1234567890ab'"},
		{text: "arn:aws:kms:us-east-1:111122223333:key/" + id, fails: "NotFoundException: Invalid arn us-east-1"},
		{text: "arn:aws-cn:kms:eu-west-1:111122223333:key/" + id, fails: "InvalidArnException: Invalid arn arn:aws-cn:kms:eu-west-1:111122223333:key/" + id},
		{text: "arn:aws:s3:eu-west-1:111122223333:key/" + id, fails: "InvalidArnException: Invalid arn arn:aws:s3:eu-west-1:111122223333:key/" + id},
		{text: "arn:aws:kms:eu-west-1:111122223333:key/alias/a", forms: keyOrAlias, fails: "NotFoundException: Invalid keyId 'arn:aws:kms:eu-west-1:111122223333:key/alias/a'"},
		{text: "arn:aws:kms:eu-west-1", fails: "InvalidArnException: Invalid arn arn:aws:kms:eu-west-1"},
		{text: "arn:aws:kms:eu-west-1:111122223333:grant/x", fails: "InvalidArnException: Invalid arn arn:aws:kms:eu-west-1:111122223333:grant/x"},
	}
	for _, test := range tests {
		got, err := s.parseKeyID(call, test.text, test.forms)
		if test.fails == "" {
			if err != nil || got != test.want {
				t.Errorf("parseKeyID(%q) = %+v, %v; want %+v", test.text, got, err, test.want)
			}
			continue
		}
		var api smithy.APIError
		if !errors.As(err, &api) || api.ErrorCode()+": "+api.ErrorMessage() != test.fails {
			t.Errorf("parseKeyID(%q) = %v, want %s", test.text, err, test.fails)
		}
	}
	// Encrypt's model has no InvalidArnException.
	_, err := s.parseKeyID(&Call{Operation: "Encrypt"}, "arn:aws", keyOrAlias)
	var missing *types.NotFoundException
	if !errors.As(err, &missing) {
		t.Errorf("Encrypt with a malformed ARN: %v, want NotFoundException", err)
	}
}
