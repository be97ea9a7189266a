package sigv4

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go"
)

const (
	accessKeyID = "AKIAIOSFODNN7EXAMPLE"
	secret      = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	region      = "eu-central-1"
	body        = `{"KeyId":"alias/x"}`
)

var now = time.Date(2026, 1, 2, 0, 1, 0, 0, time.UTC)

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func signingKey(_ context.Context, id, date, region string) (*Key, error) {
	if id != accessKeyID {
		return nil, ErrUnknownAccessKey
	}
	return DeriveSigningKey(mac([]byte("AWS4"+secret), date), region, "kms"), nil
}

func verifier() *Verifier {
	return New(Config{
		Regions: []string{"us-east-1", region}, SigningKey: signingKey, Now: func() time.Time { return now },
	})
}

// unsigned is a request as the SDK builds it, before it is signed.
func unsigned(t testing.TB, payload string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:4600/", strings.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "TrentService.DescribeKey")
	return r
}

// sign signs with the SDK's own signer.
func sign(t testing.TB, r *http.Request, payload string, at time.Time) *http.Request {
	t.Helper()
	sum := sha256.Sum256([]byte(payload))
	credentials := aws.Credentials{AccessKeyID: accessKeyID, SecretAccessKey: secret}
	if err := v4.NewSigner().SignHTTP(t.Context(), credentials, r, hex.EncodeToString(sum[:]), "kms", region, at); err != nil {
		t.Fatal(err)
	}
	return r
}

// verify is all that a server does with a request.
func (v *Verifier) verify(r *http.Request, body []byte) (Identity, error) {
	claim, err := v.Check(r)
	if err != nil {
		return Identity{}, err
	}
	return v.Verify(r, claim, body)
}

func signed(t testing.TB) *http.Request { return sign(t, unsigned(t, body), body, now) }

// wantError checks the AWS code, and that the message contains text.
func wantError(t *testing.T, err error, code, text string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != code || !strings.Contains(api.ErrorMessage(), text) {
		t.Errorf("err = %v, want %s with %q", err, code, text)
	}
}

func TestVerify(t *testing.T) {
	got, err := verifier().verify(signed(t), []byte(body))
	if want := (Identity{accessKeyID, region, now}); err != nil || got != want {
		t.Errorf("Verify = %+v, %v, want %+v", got, err, want)
	}
}

// Through a real server, with whatever net/http does to headers on both sides.
func TestVerifyOverHTTP(t *testing.T) {
	v := verifier()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		payload, _ := io.ReadAll(r.Body)
		if _, err := v.verify(r, payload); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	}))
	defer server.Close()
	for name, change := range map[string]func(*http.Request){
		"plain":           func(*http.Request) {},
		"spaces":          func(r *http.Request) { r.Header.Set("X-Odd", "  a   b\tc  ") },
		"repeated header": func(r *http.Request) { r.Header["X-Odd"] = []string{"b", " a "} },
		"empty header":    func(r *http.Request) { r.Header["X-Odd"] = []string{""} },
		"other host":      func(r *http.Request) { r.Host = "kms.example.com:8443" },
		"path and query": func(r *http.Request) {
			r.URL.Path, r.URL.RawPath = "/a b/c%d", "/a%20b/c%25d"
			r.URL.RawQuery = "b=2&a=x%20y&a=%2B&empty"
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := unsigned(t, body)
			r.URL.Host, r.Host = server.Listener.Addr().String(), ""
			change(r)
			response, err := server.Client().Do(sign(t, r, body, now))
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if text, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
				t.Errorf("refused: %s", text)
			}
		})
	}
}

func TestVerifyDateHeader(t *testing.T) {
	// Clients that cannot set X-Amz-Date sign Date in HTTP's format.
	r := unsigned(t, body)
	r.Header.Set("Date", now.Format(http.TimeFormat))
	signManually(t, r, "date;host", now)
	if _, err := verifier().verify(r, []byte(body)); err != nil {
		t.Error(err)
	}
}

// signManually signs the named headers only, as curl does.
func signManually(t testing.TB, r *http.Request, names string, at time.Time) {
	t.Helper()
	canonical, ok := appendCanonicalRequest(nil, r, strings.Split(names, ";"), names, []byte(body))
	if !ok {
		t.Fatalf("request lacks one of %s", names)
	}
	scope := at.Format("20060102") + "/" + region + "/kms/aws4_request"
	key, err := signingKey(t.Context(), accessKeyID, at.Format("20060102"), region)
	if err != nil {
		t.Fatal(err)
	}
	sum := signature(&canonical, key, at.Format(basicFormat), scope)
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+accessKeyID+"/"+scope+
		",SignedHeaders="+names+",Signature="+hex.EncodeToString(sum[:]))
}

func TestVerifyMinimalHeaders(t *testing.T) {
	r := unsigned(t, body)
	r.Header.Set("X-Amz-Date", now.Format(basicFormat))
	signManually(t, r, "content-type;host;x-amz-date", now)
	if _, err := verifier().verify(r, []byte(body)); err != nil {
		t.Error(err)
	}
}

func TestVerifyTransferEncoding(t *testing.T) {
	r := unsigned(t, body)
	r.Header.Set("X-Amz-Date", now.Format(basicFormat))
	r.TransferEncoding = []string{"chunked"}
	signManually(t, r, "host;transfer-encoding;x-amz-date", now)
	if _, err := verifier().verify(r, []byte(body)); err != nil {
		t.Error(err)
	}
}

func TestVerifyRefusesChanges(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"method":         func(r *http.Request) { r.Method = http.MethodPut },
		"path":           func(r *http.Request) { r.URL.Path = "/other" },
		"query":          func(r *http.Request) { r.URL.RawQuery = "a=b" },
		"host":           func(r *http.Request) { r.Host = "evil.example.com" },
		"port":           func(r *http.Request) { r.Host = "127.0.0.1:4601" },
		"no host":        func(r *http.Request) { r.Host = "" },
		"target":         func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.DisableKey") },
		"target doubled": func(r *http.Request) { r.Header.Add("X-Amz-Target", "TrentService.DisableKey") },
		"target gone":    func(r *http.Request) { r.Header.Del("X-Amz-Target") },
		"length":         func(r *http.Request) { r.ContentLength++ },
		"time":           func(r *http.Request) { r.Header.Set("X-Amz-Date", "20260102T000059Z") },
		"declared hash":  func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") },
		"signature":      func(r *http.Request) { flipLast(r) },
		"upper case":     func(r *http.Request) { upperSignature(r) },
		"signature long": func(r *http.Request) { edit(r, "Signature=", "Signature=00") },
		"other region":   func(r *http.Request) { edit(r, region, "us-east-1") },
	} {
		t.Run(name, func(t *testing.T) {
			r := signed(t)
			change(r)
			_, err := verifier().verify(r, []byte(body))
			wantError(t, err, "InvalidSignatureException", "The request signature we calculated does not match")
		})
	}
	_, err := verifier().verify(signed(t), []byte(body+" "))
	wantError(t, err, "InvalidSignatureException", "The request signature we calculated does not match")
}

func edit(r *http.Request, from, to string) {
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), from, to, 1))
}

func flipLast(r *http.Request) {
	a := []byte(r.Header.Get("Authorization"))
	a[len(a)-1] ^= 1
	r.Header.Set("Authorization", string(a))
}

func upperSignature(r *http.Request) {
	before, hexDigits, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
	r.Header.Set("Authorization", before+"Signature="+strings.ToUpper(hexDigits))
}
