package awsjson

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestDecode(t *testing.T) {
	for name, c := range map[string]struct {
		body      string
		got, want any
	}{
		"empty body":      {``, &kms.EncryptInput{}, &kms.EncryptInput{}},
		"empty object":    {` {} `, &kms.EncryptInput{}, &kms.EncryptInput{}},
		"null is absent":  {`{"KeyId":null,"Plaintext":null,"DryRun":null}`, &kms.EncryptInput{}, &kms.EncryptInput{}},
		"unknown members": {`{"Other":{"a":[1,{}]},"keyId":"x"}`, &kms.EncryptInput{}, &kms.EncryptInput{}},
		"empty is present": {`{"KeyId":"","Plaintext":"","EncryptionContext":{},"GrantTokens":[]}`, &kms.EncryptInput{},
			&kms.EncryptInput{KeyId: aws.String(""), Plaintext: []byte{}, EncryptionContext: map[string]string{}, GrantTokens: []string{}}},
		"escapes": {`{"Key\u0049d":"\u00e9\ud83d\ude00\n","EncryptionContext":{"\"k\\":"\t","a":"b"}}`, &kms.EncryptInput{},
			&kms.EncryptInput{KeyId: aws.String("é😀\n"), EncryptionContext: map[string]string{"\"k\\": "\t", "a": "b"}}},
		"escaped base64": {`{"Plaintext":"aGk\u003d"}`, &kms.EncryptInput{}, &kms.EncryptInput{Plaintext: []byte("hi")}},
		"bools": {`{"MultiRegion":false,"BypassPolicyLockoutSafetyCheck":true}`, &kms.CreateKeyInput{},
			&kms.CreateKeyInput{MultiRegion: aws.Bool(false), BypassPolicyLockoutSafetyCheck: true}},
		"integer": {`{"PendingWindowInDays":7}`, &kms.ScheduleKeyDeletionInput{}, &kms.ScheduleKeyDeletionInput{PendingWindowInDays: aws.Int32(7)}},
		"lists": {`{"Tags":[{"TagKey":"a","TagValue":""},{}]}`, &kms.CreateKeyInput{},
			&kms.CreateKeyInput{Tags: []types.Tag{{TagKey: aws.String("a"), TagValue: aws.String("")}, {}}}},
		"explicit empty enum": {`{"KeySpec":""}`, &kms.CreateKeyInput{}, &kms.CreateKeyInput{KeySpec: explicitEmpty}},
		"time": {`{"ValidTo":1680000000.123}`, &kms.ImportKeyMaterialInput{},
			&kms.ImportKeyMaterialInput{ValidTo: aws.Time(time.UnixMilli(1680000000123).UTC())}},
		"time with exponent": {`{"ValidTo":1.68E9}`, &kms.ImportKeyMaterialInput{},
			&kms.ImportKeyMaterialInput{ValidTo: aws.Time(time.Unix(1680000000, 0).UTC())}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Decode([]byte(c.body), c.got); err != nil {
				t.Fatal(err)
			}
			sameStruct(t, c.got, c.want)
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		in   any
		text string
	}{
		"no JSON":             {`hello`, &kms.EncryptInput{}, "not well-formed"},
		"only space":          {` `, &kms.EncryptInput{}, "not well-formed"},
		"cut short":           {`{"KeyId":"a"`, &kms.EncryptInput{}, "not well-formed"},
		"cut in a list":       {`{"GrantTokens":[`, &kms.EncryptInput{}, "not well-formed"},
		"cut in a map":        {`{"EncryptionContext":{"a"`, &kms.EncryptInput{}, "not well-formed"},
		"trailing comma":      {`{"KeyId":"a",}`, &kms.EncryptInput{}, "not well-formed"},
		"two documents":       {`{}{}`, &kms.EncryptInput{}, "not well-formed"},
		"trailing text":       {`{} x`, &kms.EncryptInput{}, "not well-formed"},
		"comment":             {`{/**/}`, &kms.EncryptInput{}, "not well-formed"},
		"byte order mark":     {"\ufeff{}", &kms.EncryptInput{}, "not well-formed"},
		"invalid UTF-8":       {"{\"KeyId\":\"\xff\"}", &kms.EncryptInput{}, "not well-formed"},
		"lone surrogate":      {`{"KeyId":"\ud800"}`, &kms.EncryptInput{}, "not well-formed"},
		"bad UTF-8, ignored":  {"{\"Other\":\"\xff\"}", &kms.EncryptInput{}, "not well-formed"},
		"duplicate":           {`{"KeyId":"a","KeyId":"b"}`, &kms.EncryptInput{}, "has a member twice"},
		"duplicate, escaped":  {`{"KeyId":"a","Key\u0049d":"b"}`, &kms.EncryptInput{}, "has a member twice"},
		"duplicate in a map":  {`{"EncryptionContext":{"a":"1","a":"2"}}`, &kms.EncryptInput{}, "has a member twice"},
		"list at the top":     {`[]`, &kms.EncryptInput{}, "Start of list found where not expected."},
		"string at the top":   {`"x"`, &kms.EncryptInput{}, "STRING_VALUE can not be converted to a Structure"},
		"null at the top":     {`null`, &kms.EncryptInput{}, "NULL_VALUE can not be converted to a Structure"},
		"number for string":   {`{"KeyId":1}`, &kms.EncryptInput{}, "NUMBER_VALUE can not be converted to a String"},
		"bool for string":     {`{"KeyId":true}`, &kms.EncryptInput{}, "TRUE_VALUE can not be converted to a String"},
		"object for string":   {`{"KeyId":{}}`, &kms.EncryptInput{}, "Start of structure or map found where not expected."},
		"list for string":     {`{"KeyId":[]}`, &kms.EncryptInput{}, "Start of list found where not expected."},
		"number for blob":     {`{"Plaintext":1}`, &kms.EncryptInput{}, "NUMBER_VALUE"},
		"base64 no padding":   {`{"Plaintext":"aGk"}`, &kms.EncryptInput{}, "base64"},
		"base64 URL":          {`{"Plaintext":"-_-_"}`, &kms.EncryptInput{}, "base64"},
		"base64 line break":   {`{"Plaintext":"aG\nk="}`, &kms.EncryptInput{}, "base64"},
		"base64 loose bits":   {`{"Plaintext":"aGl="}`, &kms.EncryptInput{}, "base64"},
		"base64 after the ==": {`{"Plaintext":"aGk=aGk="}`, &kms.EncryptInput{}, "base64"},
		"string for bool":     {`{"DryRun":"true"}`, &kms.EncryptInput{}, "STRING_VALUE can not be converted to a Boolean"},
		"string for integer":  {`{"Limit":"5"}`, &kms.ListKeysInput{}, "STRING_VALUE can not be converted to an Integer"},
		"fraction":            {`{"Limit":1.5}`, &kms.ListKeysInput{}, "NUMBER_VALUE can not be converted to an Integer"},
		"too big":             {`{"Limit":2147483648}`, &kms.ListKeysInput{}, "NUMBER_VALUE can not be converted to an Integer"},
		"huge":                {`{"Limit":1e999}`, &kms.ListKeysInput{}, "NUMBER_VALUE can not be converted to an Integer"},
		"NaN":                 {`{"Limit":NaN}`, &kms.ListKeysInput{}, "not well-formed"},
		"string for time":     {`{"ValidTo":"2026-01-01T00:00:00Z"}`, &kms.ImportKeyMaterialInput{}, "STRING_VALUE"},
		"endless time":        {`{"ValidTo":1e400}`, &kms.ImportKeyMaterialInput{}, "NUMBER_VALUE can not be converted to a Timestamp"},
		"time after 9999":     {`{"ValidTo":253402300800}`, &kms.ImportKeyMaterialInput{}, "NUMBER_VALUE can not be converted to a Timestamp"},
		"object for list":     {`{"Tags":{}}`, &kms.CreateKeyInput{}, "Start of structure or map"},
		"null in a list":      {`{"GrantTokens":[null]}`, &kms.EncryptInput{}, "NULL_VALUE can not be converted to a String"},
		"null in structures":  {`{"Tags":[null]}`, &kms.CreateKeyInput{}, "NULL_VALUE can not be converted to a Structure"},
		"null in a map":       {`{"EncryptionContext":{"a":null}}`, &kms.EncryptInput{}, "NULL_VALUE can not be converted to a String"},
		"list for map":        {`{"EncryptionContext":[]}`, &kms.EncryptInput{}, "Start of list"},
		"deep, ignored":       {`{"Other":` + strings.Repeat("[", 1<<20) + `}`, &kms.EncryptInput{}, "not well-formed"},
		"deep objects":        {strings.Repeat(`{"KeyId":`, 1<<18), &kms.EncryptInput{}, "Start of structure or map"},
	} {
		t.Run(name, func(t *testing.T) {
			var serialization *SerializationError
			err := Decode([]byte(c.body), c.in)
			if !errors.As(err, &serialization) || !strings.Contains(serialization.Message, c.text) {
				t.Errorf("err = %v, want a SerializationError with %q", err, c.text)
			}
		})
	}
}

func TestDecodeIntoWhatIsNoStruct(t *testing.T) {
	var nothing *kms.EncryptInput
	for _, in := range []any{nil, nothing, kms.EncryptInput{}, new(string)} {
		if err := Decode([]byte(`{}`), in); !errors.Is(err, errNotStruct) {
			t.Errorf("%T: err = %v, want %v", in, err, errNotStruct)
		}
	}
}

// Neither the body nor another request's strings shine through.
func TestDecodeCopies(t *testing.T) {
	body := []byte(`{"KeyId":"first","Plaintext":"aGk=","EncryptionContext":{"a":"b\\"}}`)
	var in kms.EncryptInput
	if err := Decode(body, &in); err != nil {
		t.Fatal(err)
	}
	clear(body)
	if err := Decode([]byte(`{"KeyId":"\u0041"}`), &kms.EncryptInput{}); err != nil {
		t.Fatal(err)
	}
	sameStruct(t, &in, &kms.EncryptInput{
		KeyId: aws.String("first"), Plaintext: []byte("hi"), EncryptionContext: map[string]string{"a": `b\`},
	})
}
