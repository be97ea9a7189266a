package softhsmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// A request is one that no SDK would send. The zero value of a field means
// what an SDK would do.
type request struct {
	operation string
	body      []byte
	key       *secretKey    // nil = the administrator's
	late      time.Duration // how long ago it was signed
	region    string
	service   string
	method    string
	before    func(*http.Request) // called before signing
	after     func(*http.Request) // called on the signed request
}

// An answer is what came back, with the error taken apart.
type answer struct {
	status              int
	header              http.Header
	body                []byte
	requestID           string
	code, text          string
	hasText, parsedJSON bool
}

// raw signs r with the SDK's own signer and sends it.
func (d *deployment) raw(t testing.TB, r request) answer {
	t.Helper()
	return must(d.send(&http.Client{Timeout: 60 * time.Second}, r))(t)
}

// send is raw for tests that send from many goroutines.
func (d *deployment) send(through *http.Client, r request) (answer, error) {
	req, err := d.sign(r)
	if err != nil {
		return answer{}, err
	}
	resp, err := through.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return parseAnswer(resp, body), err
}

func (d *deployment) signed(t testing.TB, r request) *http.Request {
	t.Helper()
	return must(d.sign(r))(t)
}

func (d *deployment) sign(r request) (*http.Request, error) {
	method := r.method
	if method == "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(context.Background(), method, d.url+"/", bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	if r.operation != "" {
		req.Header.Set("X-Amz-Target", "TrentService."+r.operation)
	}
	if r.before != nil {
		r.before(req)
	}
	key := d.admin
	if r.key != nil {
		key = *r.key
	}
	in, service := region, "kms"
	if r.region != "" {
		in = r.region
	}
	if r.service != "" {
		service = r.service
	}
	sum := sha256.Sum256(r.body)
	err = v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: key.ID, SecretAccessKey: key.Secret},
		req, hex.EncodeToString(sum[:]), service, in, time.Now().Add(-r.late))
	if err != nil {
		return nil, err
	}
	if r.after != nil {
		r.after(req)
	}
	return req, nil
}

func parseAnswer(resp *http.Response, body []byte) answer {
	a := answer{
		status: resp.StatusCode, header: resp.Header, body: body,
		requestID: resp.Header.Get("X-Amzn-Requestid"),
	}
	var members map[string]json.RawMessage
	a.parsedJSON = json.Unmarshal(body, &members) == nil
	_ = json.Unmarshal(members["__type"], &a.code)
	for _, name := range []string{"message", "Message"} {
		if raw, ok := members[name]; ok {
			a.hasText = json.Unmarshal(raw, &a.text) == nil
		}
	}
	return a
}

// want demands a status and an error code.
func (a answer) want(t testing.TB, status int, code string) {
	t.Helper()
	if a.status != status || a.code != code {
		t.Fatalf("answered %d %s (%.300s), want %d %s", a.status, a.code, a.body, status, code)
	}
	if a.requestID == "" {
		t.Fatal("the answer has no x-amzn-RequestId")
	}
}
