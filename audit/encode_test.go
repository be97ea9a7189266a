package audit

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

// sample is an Encrypt call with every usual member.
func sample() *Record {
	return &Record{
		UserIdentity: UserIdentity{
			Type: "IAMUser", PrincipalID: "AIDAEXAMPLE", ARN: "arn:aws:iam::111122223333:user/alice",
			AccountID: "111122223333", AccessKeyID: "AKIAEXAMPLE", UserName: "alice",
		},
		EventTime: time.Date(2025, 5, 20, 20, 46, 16, 5, time.UTC), EventName: "Encrypt", AWSRegion: "eu-central-1",
		SourceIPAddress: "192.0.2.1", UserAgent: "Boto3/1.42 md/Botocore#1.42 ua/2.1 os/linux#6.1 lang/python#3.11",
		RequestParameters: jsontext.Value(`{"keyId":"alias/app","encryptionAlgorithm":"SYMMETRIC_DEFAULT","encryptionContext":{"tenant":"a"}}`),
		RequestID:         "7d9b8b6e-0a0a-4f5e-9a58-1f2d3c4b5a69", EventID: "c2a9a6d7-77ee-4a5b-8d1f-000000000001",
		ReadOnly: true, RecipientAccountID: "111122223333",
		AdditionalEventData: jsontext.Value(`{"keyMaterialId":"ab12"}`),
		Resources:           []Resource{{AccountID: "111122223333", ARN: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"}},
		TLSDetails:          &TLSDetails{TLSVersion: "TLSv1.3", CipherSuite: "TLS_AES_128_GCM_SHA256", ClientProvidedHostHeader: "kms.example"},
	}
}

func TestRecordShape(t *testing.T) {
	const want = `{"eventVersion":"1.11","userIdentity":{"type":"IAMUser","principalId":"AIDAEXAMPLE",` +
		`"arn":"arn:aws:iam::111122223333:user/alice","accountId":"111122223333","accessKeyId":"AKIAEXAMPLE","userName":"alice"},` +
		`"eventTime":"2025-05-20T20:46:16Z","eventSource":"kms.amazonaws.com","eventName":"Encrypt","awsRegion":"eu-central-1",` +
		`"sourceIPAddress":"192.0.2.1","userAgent":"Boto3/1.42 md/Botocore#1.42 ua/2.1 os/linux#6.1 lang/python#3.11",` +
		`"requestParameters":{"keyId":"alias/app","encryptionAlgorithm":"SYMMETRIC_DEFAULT","encryptionContext":{"tenant":"a"}},` +
		`"responseElements":null,"additionalEventData":{"keyMaterialId":"ab12"},"requestID":"7d9b8b6e-0a0a-4f5e-9a58-1f2d3c4b5a69",` +
		`"eventID":"c2a9a6d7-77ee-4a5b-8d1f-000000000001","readOnly":true,"resources":[{"accountId":"111122223333",` +
		`"type":"AWS::KMS::Key","ARN":"arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"}],` +
		`"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"111122223333","eventCategory":"Management",` +
		`"tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"TLS_AES_128_GCM_SHA256","clientProvidedHostHeader":"kms.example"}}`
	if diff := cmp.Diff(want, string(sample().Append(nil))); diff != "" {
		t.Error(diff)
	}
	const empty = `{"eventVersion":"1.11","userIdentity":{"type":"Unknown"},"eventTime":"0001-01-01T00:00:00Z",` +
		`"eventSource":"kms.amazonaws.com","eventName":"","awsRegion":"","sourceIPAddress":"","userAgent":"",` +
		`"requestParameters":null,"responseElements":null,"eventID":"","readOnly":false,"resources":null,` +
		`"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"","eventCategory":"Management"}`
	if diff := cmp.Diff(empty, string((&Record{}).Append(nil))); diff != "" {
		t.Error(diff)
	}
}

func TestRawValues(t *testing.T) {
	long := jsontext.Value(`{"a":"` + strings.Repeat("x", maxParameters) + `"}`)
	for _, c := range []struct{ raw, want string }{
		{`{"a":"\u0000b\\u0000c\\\u0000"}`, `{"a":"\ufffdb\\u0000c\\\ufffd"}`},
		{"{\n \"a\":\r\n 1}", `{"a":1}`},
		{`{"a":`, `{"omitted":"not JSON","sha256":"`},
		{`{"a":1}{"b":2}`, `{"omitted":"not JSON","sha256":"`},
		{`{"a":"` + "\xff" + `"}`, `{"omitted":"not JSON","sha256":"`},
		{string(long), `{"omitted":"too large","sha256":"`},
	} {
		got := string(appendRaw(nil, "", jsontext.Value(c.raw), maxParameters))
		if !strings.HasPrefix(got, c.want) || !json.Valid([]byte(got)) {
			t.Errorf("%.40q became %.80q, want %.80q", c.raw, got, c.want)
		}
	}
}

// FuzzRecord demands one line of valid JSON that says what went in.
func FuzzRecord(f *testing.F) {
	f.Add("agent\"\\\x00\x7f\xff\u2028\n", []byte(`{"a":1}`))
	f.Add(strings.Repeat("é", 700), []byte("{\"a\":\n\"\\u0000\"}"))
	f.Add("", []byte(`{"\u0000":1,"\ufffd":2}`)) // become one name, of which readers take the last
	f.Add("", []byte(strings.Repeat("[", 10000)+strings.Repeat("]", 10000)))
	const deepest = 10_000 // that Go reads; what we record has a few levels
	f.Fuzz(func(t *testing.T, agent string, parameters []byte) {
		if bytes.Count(parameters, []byte("["))+bytes.Count(parameters, []byte("{")) >= deepest {
			return
		}
		r := sample()
		r.UserAgent, r.ErrorMessage, r.RequestParameters = agent, agent, parameters
		line := r.Append(nil)
		var got struct {
			UserAgent string `json:"userAgent"`
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if strings.ContainsAny(string(line), "\r\n\x00") || !jsontext.Value(line).IsValid(jsontext.AllowDuplicateNames(true)) {
			t.Fatalf("not one clean line: %q", line)
		}
		want := strings.ReplaceAll(strings.ToValidUTF8(agent, "\ufffd"), "\x00", "\ufffd")
		if len(agent) <= maxText && len([]rune(got.UserAgent)) < len([]rune(want)) {
			t.Fatalf("user agent %q became %q", agent, got.UserAgent)
		}
		if len(got.UserAgent) > 3*maxText {
			t.Fatalf("user agent has %d bytes", len(got.UserAgent))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	r, line := sample(), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		line = r.Append(line[:0])
	}
	b.SetBytes(int64(len(line)))
}
