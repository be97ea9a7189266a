package awsjson

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestEncode(t *testing.T) {
	for name, c := range map[string]struct {
		out  any
		want string
	}{
		"empty output": {&kms.ConnectCustomKeyStoreOutput{}, `{}`},
		"bools always": {&kms.ListKeysOutput{}, `{"Truncated":false}`},
		"empty list":   {&kms.ListKeysOutput{Keys: []types.KeyListEntry{}}, `{"Keys":[],"Truncated":false}`},
		"nested": {&kms.DescribeKeyOutput{KeyMetadata: &types.KeyMetadata{
			KeyId: aws.String("k"), CreationDate: aws.Time(time.Unix(1572216195, 0)),
			DeletionDate:         aws.Time(time.UnixMilli(1680000000120)),
			EncryptionAlgorithms: []types.EncryptionAlgorithmSpec{"SYMMETRIC_DEFAULT"}, MultiRegion: aws.Bool(false),
			MultiRegionConfiguration: &types.MultiRegionConfiguration{ReplicaKeys: []types.MultiRegionKey{}},
		}}, `{"KeyMetadata":{"KeyId":"k","CreationDate":1572216195.0,"DeletionDate":1680000000.12,"Enabled":false,` +
			`"EncryptionAlgorithms":["SYMMETRIC_DEFAULT"],"MultiRegion":false,"MultiRegionConfiguration":{"ReplicaKeys":[]}}}`},
		"blobs":          {&kms.DecryptOutput{Plaintext: []byte("hi"), KeyId: aws.String("")}, `{"KeyId":"","Plaintext":"aGk="}`},
		"no blob":        {&kms.DecryptOutput{}, `{}`},
		"strings":        {&kms.GetKeyPolicyOutput{Policy: aws.String("\"<é\u2028\x01\x7f\\")}, "{\"Policy\":\"\\\"<é\u2028\\u0001\x7f\\\\\"}"},
		"enum":           {&kms.CreateKeyInput{KeySpec: explicitEmpty}, `{"BypassPolicyLockoutSafetyCheck":false,"KeySpec":""}`},
		"NUL is no enum": {&kms.EncryptInput{KeyId: aws.String("\x00")}, `{"KeyId":"\u0000"}`},
		"map": {&kms.EncryptInput{EncryptionContext: map[string]string{"b": "\n", "a": "1"}},
			`{"EncryptionContext":{"a":"1","b":"\n"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Encode(c.out)
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, got, []byte(c.want))
		})
	}
}

// A second buffer would leave plaintext where nobody wipes it.
func TestEncodeNeverGrows(t *testing.T) {
	out := &kms.GenerateDataKeyOutput{
		KeyId: aws.String("k\x01\x02\u2028"), Plaintext: make([]byte, 1000), CiphertextBlob: make([]byte, 1001),
	}
	got, err := Encode(out)
	if err != nil {
		t.Fatal(err)
	}
	value, p, err := structOf(out)
	if err != nil {
		t.Fatal(err)
	}
	if estimate := size(p, value); len(got) > estimate {
		t.Errorf("%d bytes, more than the %d reserved", len(got), estimate)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, out := range map[string]any{
		"no UTF-8":  &kms.GetKeyPolicyOutput{Policy: aws.String("\xff")},
		"far dates": &kms.DescribeKeyOutput{KeyMetadata: &types.KeyMetadata{CreationDate: aws.Time(time.Unix(1<<60, 0))}},
		"no struct": "x",
	} {
		if got, err := Encode(out); err == nil {
			t.Errorf("%s: encoded to %s", name, got)
		}
	}
}

func TestAppendMembers(t *testing.T) {
	all := []string{
		"KeyId", "Plaintext", "EncryptionContext", "EncryptionAlgorithm", "GrantTokens", "DryRun",
		"ValidTo", "Tags", "BypassPolicyLockoutSafetyCheck", "XksProxyAuthenticationCredential", "KeyStorePassword",
		"CustomKeyStoreName", "Recipient", "CiphertextBlob", "Constraints", "Operations", "ImportToken",
	}
	for name, c := range map[string]struct {
		in      any
		members []string
		want    string
	}{
		"encrypt": {&kms.EncryptInput{
			KeyId: aws.String("alias/x"), Plaintext: []byte("secret"), EncryptionContext: map[string]string{"b": "2", "a": "1"},
			GrantTokens: []string{"token"},
		}, []string{"KeyId", "EncryptionContext", "EncryptionAlgorithm"}, `{"keyId":"alias/x","encryptionContext":{"a":"1","b":"2"}}`},
		"none":       {&kms.EncryptInput{KeyId: aws.String("x")}, nil, `{}`},
		"false bool": {&kms.CreateKeyInput{}, all, `{}`},
		"tags and bool": {&kms.CreateKeyInput{
			BypassPolicyLockoutSafetyCheck: true, Tags: []types.Tag{{TagKey: aws.String("k"), TagValue: aws.String("")}},
		}, all, `{"bypassPolicyLockoutSafetyCheck":true,"tags":[{"tagKey":"k","tagValue":""}]}`},
		"date": {&kms.ImportKeyMaterialInput{
			ValidTo: aws.Time(time.Date(2022, 8, 10, 22, 38, 27, 0, time.UTC)), ImportToken: []byte("x"),
		}, all, `{"validTo":"Aug 10, 2022, 10:38:27 PM"}`},
		"secrets": {&kms.CreateCustomKeyStoreInput{
			CustomKeyStoreName: aws.String("n"), KeyStorePassword: aws.String("hunter22"),
			XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{
				AccessKeyId: aws.String("A"), RawSecretAccessKey: aws.String("S")},
		}, all, `{"customKeyStoreName":"n","xksProxyAuthenticationCredential":{}}`},
		"grant": {&kms.CreateGrantInput{
			Operations:  []types.GrantOperation{"Decrypt"},
			Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{"a": "b"}},
		}, all, `{"operations":["Decrypt"],"constraints":{"encryptionContextSubset":{"a":"b"}}}`},
		"metadata": {&kms.CreateKeyOutput{KeyMetadata: &types.KeyMetadata{AWSAccountId: aws.String("1")}},
			[]string{"KeyMetadata"}, `{"keyMetadata":{"aWSAccountId":"1"}}`},
		"no UTF-8": {&kms.EncryptInput{KeyId: aws.String("\xff")}, all, `{"keyId":"[not UTF-8]"}`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(AppendMembers([]byte("x"), c.in, c.members)); got != "x"+c.want {
				t.Errorf("got  %s\nwant x%s", got, c.want)
			}
		})
	}
}
