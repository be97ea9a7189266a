package sigv4

import (
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestErrors(t *testing.T) {
	const (
		missing      = "MissingAuthenticationTokenException"
		incomplete   = "IncompleteSignatureException"
		unrecognized = "UnrecognizedClientException"
		invalid      = "InvalidSignatureException"
	)
	for name, c := range map[string]struct {
		change     func(*http.Request)
		code, text string
	}{
		"no header":  {func(r *http.Request) { r.Header.Del("Authorization") }, missing, "Missing Authentication Token"},
		"empty":      {func(r *http.Request) { r.Header.Set("Authorization", "") }, missing, ""},
		"two":        {func(r *http.Request) { r.Header.Add("Authorization", "x") }, incomplete, "once"},
		"huge":       {func(r *http.Request) { edit(r, "Signature", strings.Repeat("x", 5000)) }, incomplete, "at most"},
		"presigned":  {func(r *http.Request) { r.URL.RawQuery = "X-Amz-Signature=00" }, incomplete, "Presigned"},
		"basic":      {func(r *http.Request) { r.SetBasicAuth("a", "b") }, incomplete, "Unsupported AWS 'algorithm': 'Basic'"},
		"sigv4a":     {func(r *http.Request) { edit(r, "HMAC", "ECDSA-P256") }, incomplete, "algorithm"},
		"only name":  {func(r *http.Request) { r.Header.Set("Authorization", algorithm) }, incomplete, "missing equal-sign"},
		"no cred":    {func(r *http.Request) { drop(r, "Credential") }, incomplete, "requires 'Credential' parameter."},
		"no sig":     {func(r *http.Request) { drop(r, "Signature") }, incomplete, "requires 'Signature' parameter."},
		"no names":   {func(r *http.Request) { drop(r, "SignedHeaders") }, incomplete, "requires 'SignedHeaders' parameter."},
		"unknown":    {func(r *http.Request) { edit(r, "Signature=", "Extra=1, Signature=") }, incomplete, "unknown parameter"},
		"twice":      {func(r *http.Request) { edit(r, "Signature=", "Signature=1, Signature=") }, incomplete, "more than once"},
		"scope 4":    {func(r *http.Request) { edit(r, "/kms", "") }, incomplete, "exactly 5 slash-delimited elements"},
		"scope 6":    {func(r *http.Request) { edit(r, "/kms", "/kms/x") }, incomplete, "exactly 5 slash-delimited elements"},
		"terminator": {func(r *http.Request) { edit(r, "aws4_request", "aws5_request") }, invalid, "valid terminator"},
		"region":     {func(r *http.Request) { edit(r, region, "mars-1") }, invalid, "Credential should be scoped to a valid region."},
		"service":    {func(r *http.Request) { edit(r, "/kms/", "/s3/") }, invalid, "to correct service: 'kms'."},
		"scope date": {func(r *http.Request) { edit(r, "20260102/", "20260101/") }, invalid, "Date in Credential scope"},
		"no date":    {func(r *http.Request) { r.Header.Del("X-Amz-Date") }, incomplete, "'X-Amz-Date' or a 'Date' header"},
		"two dates":  {func(r *http.Request) { r.Header.Add("X-Amz-Date", "x") }, incomplete, "once"},
		"bad date":   {func(r *http.Request) { r.Header.Set("X-Amz-Date", "2026-01-02") }, incomplete, "basic format"},
		"host":       {func(r *http.Request) { edit(r, "host;", "") }, invalid, "'Host' or ':authority' must be"},
		"date":       {func(r *http.Request) { edit(r, ";x-amz-date", "") }, invalid, "'x-amz-date' must be"},
		"name twice": {func(r *http.Request) { edit(r, "host;", "host;host;") }, incomplete, "repeated"},
		"upper name": {func(r *http.Request) { edit(r, "host;", "Host;") }, incomplete, "not in lower case"},
		"odd name":   {func(r *http.Request) { edit(r, "host;", "host;a b;") }, incomplete, "malformed"},
		"empty name": {func(r *http.Request) { edit(r, "host;", "host;;") }, incomplete, "malformed"},
		"many names": {func(r *http.Request) { edit(r, "host;", "host;"+strings.Repeat("a;", 64)) }, incomplete, "at most 64"},
		"session":    {func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "t") }, unrecognized, "security token"},
		"unknown id": {func(r *http.Request) { edit(r, accessKeyID, "AKIAUNKNOWN") }, unrecognized, "security token included in the request is invalid."},
		"empty id":   {func(r *http.Request) { edit(r, accessKeyID, "") }, unrecognized, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := signed(t)
			c.change(r)
			_, err := verifier().verify(r, []byte(body))
			wantError(t, err, c.code, c.text)
		})
	}
}

func drop(r *http.Request, name string) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	var kept []string
	for part := range strings.SplitSeq(rest, ", ") {
		if !strings.HasPrefix(part, name) {
			kept = append(kept, part)
		}
	}
	r.Header.Set("Authorization", scheme+" "+strings.Join(kept, ", "))
}

func TestSkew(t *testing.T) {
	for _, c := range []struct {
		offset time.Duration
		text   string // "" = accepted
	}{
		{0, ""}, {5 * time.Minute, ""}, {-5 * time.Minute, ""},
		{-5*time.Minute - time.Second,
			"Signature expired: 20260101T235559Z is now earlier than 20260101T235600Z (20260102T000100Z - 5 min.)"},
		{5*time.Minute + time.Second,
			"Signature not yet current: 20260102T000601Z is still later than 20260102T000600Z (20260102T000100Z + 5 min.)"},
	} {
		r := sign(t, unsigned(t, body), body, now.Add(c.offset))
		_, err := verifier().verify(r, []byte(body))
		if c.text == "" && err != nil {
			t.Errorf("%v: %v", c.offset, err)
		}
		if c.text != "" {
			wantError(t, err, "InvalidSignatureException", c.text)
		}
	}
}

// A stranger who signs with the stand-in for unknown keys stays outside.
func TestNoKeyOpensNothing(t *testing.T) {
	r := signed(t)
	edit(r, accessKeyID, "AKIAUNKNOWN")
	names := "host;x-amz-date"
	canonical, _ := appendCanonicalRequest(nil, r, strings.Split(names, ";"), names, []byte(body))
	sum := signature(&canonical, noKey, now.Format(basicFormat), "20260102/"+region+"/kms/aws4_request")
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAUNKNOWN/20260102/"+region+
		"/kms/aws4_request, SignedHeaders="+names+", Signature="+hex.EncodeToString(sum))
	_, err := verifier().verify(r, []byte(body))
	wantError(t, err, "UnrecognizedClientException", "")
	for _, empty := range []*Key{nil, {}} {
		v := New(Config{
			Regions: []string{region}, Now: func() time.Time { return now },
			SigningKey: func(context.Context, string, string, string) (*Key, error) { return empty, nil },
		})
		_, err = v.verify(r, []byte(body))
		wantError(t, err, "UnrecognizedClientException", "")
	}
}

func TestSigningKeyFailureIsNotTheCallersFault(t *testing.T) {
	down := errors.New("database is down")
	v := New(Config{
		Regions: []string{region}, Now: func() time.Time { return now },
		SigningKey: func(context.Context, string, string, string) (*Key, error) { return nil, down },
	})
	if _, err := v.verify(signed(t), []byte(body)); !errors.Is(err, down) {
		t.Errorf("err = %v, want %v", err, down)
	}
}
