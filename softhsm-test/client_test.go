package softhsmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
)

const (
	account = "111122223333"
	region  = "us-east-1"
	// marker is the plaintext that the suites encrypt; no record and no log
	// line may ever hold it.
	marker = "hoge_password"
)

// A secretKey is one access key as its owner holds it.
type secretKey struct{ ID, Secret string }

// A call is one answered request as its client saw it.
type call struct {
	Operation, RequestID, ErrorCode string
	Status                          int
}

// A recorder remembers every answer that passes through it.
type recorder struct {
	mu    sync.Mutex // guards calls
	calls []call
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	var fault struct {
		Type string `json:"__type"`
	}
	if resp.StatusCode != http.StatusOK {
		_ = json.Unmarshal(body, &fault)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call{
		Operation: strings.TrimPrefix(req.Header.Get("X-Amz-Target"), "TrentService."),
		RequestID: resp.Header.Get("X-Amzn-Requestid"),
		ErrorCode: fault.Type,
		Status:    resp.StatusCode,
	})
	return resp, nil
}

func (r *recorder) all() []call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]call(nil), r.calls...)
}

// newClient returns an SDK client that never retries, so that one call is one
// request.
func newClient(url string, key secretKey, through http.RoundTripper) *kms.Client {
	return newRegionClient(url, region, key, through)
}

func newRegionClient(url, in string, key secretKey, through http.RoundTripper) *kms.Client {
	return kms.New(kms.Options{
		Region:       in,
		BaseEndpoint: aws.String(url),
		Credentials:  credentials.NewStaticCredentialsProvider(key.ID, key.Secret, ""),
		HTTPClient:   &http.Client{Transport: through, Timeout: 30 * time.Second},
		Retryer:      aws.NopRetryer{},
	})
}

// patientClient retries as the SDK does by default.
func patientClient(url string, key secretKey) *kms.Client {
	return kms.New(kms.Options{
		Region:       region,
		BaseEndpoint: aws.String(url),
		Credentials:  credentials.NewStaticCredentialsProvider(key.ID, key.Secret, ""),
		Retryer:      retry.NewStandard(),
	})
}

// wantError demands an error of the SDK's type E whose text holds fragment.
func wantError[E error](t testing.TB, err error, fragment string) {
	t.Helper()
	var want E
	if !errors.As(err, &want) {
		t.Fatalf("error = %v, want a %T", err, want)
	}
	if !strings.Contains(want.Error(), fragment) {
		t.Fatalf("error text = %q, want %q in it", want.Error(), fragment)
	}
}

// wantCode demands one of AWS's errors that the model does not list.
func wantCode(t testing.TB, err error, code, fragment string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) {
		t.Fatalf("error = %v, want an API error %s", err, code)
	}
	if api.ErrorCode() != code || !strings.Contains(api.ErrorMessage(), fragment) {
		t.Fatalf("error = %s: %q, want %s with %q", api.ErrorCode(), api.ErrorMessage(), code, fragment)
	}
}

// errorCode is the AWS code of err: "" for nil, "-" for anything else.
func errorCode(err error) string {
	var api smithy.APIError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &api):
		return api.ErrorCode()
	}
	return "-"
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// createKey makes a key and returns its metadata.
func createKey(t testing.TB, c *kms.Client) *types.KeyMetadata {
	t.Helper()
	return must(c.CreateKey(context.Background(), &kms.CreateKeyInput{}))(t).KeyMetadata
}

// encrypt seals text under keyID and returns the blob.
func encrypt(t testing.TB, c *kms.Client, keyID, text string, with map[string]string) []byte {
	t.Helper()
	return must(c.Encrypt(context.Background(), &kms.EncryptInput{
		KeyId: &keyID, Plaintext: []byte(text), EncryptionContext: with,
	}))(t).CiphertextBlob
}

// wantDecrypt demands that blob opens to text.
func wantDecrypt(t testing.TB, c *kms.Client, blob []byte, text string, with map[string]string) {
	t.Helper()
	out := must(c.Decrypt(context.Background(), &kms.DecryptInput{
		CiphertextBlob: blob, EncryptionContext: with,
	}))(t)
	if string(out.Plaintext) != text {
		t.Fatalf("decrypted %d bytes that are not what was encrypted", len(out.Plaintext))
	}
}

// wantOneOf demands one of the space-separated codes, where AWS's choice is
// not known for sure.
func wantOneOf(t testing.TB, err error, codes, fragment string) {
	t.Helper()
	code := errorCode(err)
	if code == "" || !strings.Contains(" "+codes+" ", " "+code+" ") {
		t.Fatalf("error = %v, want %s", err, codes)
	}
	if !strings.Contains(err.Error(), fragment) {
		t.Fatalf("error = %v, want %q in it", err, fragment)
	}
}

// Retrieve makes a secretKey a credentials provider.
func (k secretKey) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret}, nil
}
