package sigv4

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/smithy-go"
)

// FuzzVerify changes a signed request. Whatever it does, Verify must not
// panic, must answer with one of its four errors, and must accept nothing
// whose canonical request is another one.
func FuzzVerify(f *testing.F) {
	good := signed(f)
	authorization, date := good.Header.Get("Authorization"), good.Header.Get("X-Amz-Date")
	f.Add(authorization, date, "/", "", "TrentService.DescribeKey", "127.0.0.1:4600", body)
	f.Add(strings.ReplaceAll(authorization, ", ", ","), date, "/", "a=b", "", "", "")
	f.Add("AWS4-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=;, Signature=0", "2", "//../%", "%zz&=&+", "  a  ", "x", "y")
	f.Add("", "", "", "X-Amz-Signature=", "", "", "")
	v := verifier()
	f.Fuzz(func(t *testing.T, authorization, date, path, query, target, host, payload string) {
		r := &http.Request{
			Method: http.MethodPost, URL: &url.URL{Path: path, RawQuery: query}, Host: host,
			ContentLength: int64(len(payload)),
			Header: http.Header{
				"Authorization": {authorization}, "X-Amz-Date": {date}, "X-Amz-Target": {target},
				"Content-Type": {"application/x-amz-json-1.1"},
			},
		}
		identity, err := v.verify(r, []byte(payload))
		if err == nil {
			same := payload == body && identity.AccessKeyID == accessKeyID && len(appendQuery(nil, query)) == 0 &&
				strings.Join(strings.Fields(target), " ") == "TrentService.DescribeKey"
			if !same {
				t.Fatalf("accepted %+v, %q", r, payload)
			}
			return
		}
		var api *smithy.GenericAPIError
		if !errors.As(err, &api) {
			t.Fatalf("err = %v, want an AWS error", err)
		}
		switch api.Code {
		case "MissingAuthenticationTokenException", "IncompleteSignatureException",
			"UnrecognizedClientException", "InvalidSignatureException":
		default:
			t.Fatalf("err = %v", err)
		}
	})
}

// cachedKey stands for the caller's cache of signing keys.
func cachedKey(key *Key) func(context.Context, string, string, string) (*Key, error) {
	return func(context.Context, string, string, string) (*Key, error) { return key, nil }
}

func BenchmarkVerify(b *testing.B) {
	r, v, payload := signed(b), verifier(), []byte(body)
	key, err := signingKey(b.Context(), accessKeyID, "20260102", region)
	if err != nil {
		b.Fatal(err)
	}
	v.config.SigningKey = cachedKey(key)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.verify(r, payload); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyUnknownKey(b *testing.B) {
	r, v, payload := signed(b), verifier(), []byte(body)
	edit(r, accessKeyID, "AKIAUNKNOWN")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.verify(r, payload); err == nil {
			b.Fatal("accepted")
		}
	}
}
