package softhsmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestConstraints(t *testing.T) {
	d := shared(t)
	const failed = " failed to satisfy constraint: Member must "
	for name, c := range map[string]struct{ operation, body, text string }{
		"required":       {"DescribeKey", `{}`, "1 validation error detected: Value null at 'keyId'" + failed + "not be null"},
		"null is absent": {"DescribeKey", `{"KeyId":null}`, "1 validation error detected: Value null at 'keyId'" + failed + "not be null"},
		"two":            {"Encrypt", `{}`, "2 validation errors detected: "},
		"length":         {"DescribeKey", `{"KeyId":"` + strings.Repeat("a", 2049) + `"}`, failed + "have length less than or equal to 2048"},
		"enum":           {"CreateKey", `{"KeyUsage":"RANDOM"}`, "1 validation error detected: Value 'RANDOM' at 'keyUsage'" + failed + "satisfy enum value set: ["},
		"range":          {"ListKeys", `{"Limit":0}`, "1 validation error detected: Value '0' at 'limit'" + failed + "have value greater than or equal to 1"},
		"pattern":        {"CreateAlias", `{"AliasName":"alias/a b","TargetKeyId":"a"}`, failed + "satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		"list member":    {"TagResource", `{"KeyId":"a","Tags":[{"TagKey":"a","TagValue":"b"},{"TagValue":"c"}]}`, "Value null at 'tags.2.member.tagKey'" + failed + "not be null"},
	} {
		t.Run(name, func(t *testing.T) {
			a := d.raw(t, request{operation: c.operation, body: []byte(c.body)})
			a.want(t, 400, "ValidationException")
			if !strings.Contains(a.text, c.text) {
				t.Errorf("text %q, want %q in it", a.text, c.text)
			}
			d.wantRecord(t, a.requestID, c.operation, "ValidationException")
		})
	}
}

// A sensitive blob that is too long is not shown back.
func TestRefusedPlaintextIsNotShown(t *testing.T) {
	d := shared(t)
	secret := bytes.Repeat([]byte(marker), 400)
	body, err := json.Marshal(map[string]any{"KeyId": "a", "Plaintext": secret})
	if err != nil {
		t.Fatal(err)
	}
	a := d.raw(t, request{operation: "Encrypt", body: body})
	a.want(t, 400, "ValidationException")
	if !strings.Contains(a.text, "Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096") {
		t.Errorf("text %q", a.text)
	}
}

func TestLenientBodies(t *testing.T) {
	d := shared(t)
	for name, body := range map[string]string{
		"empty": "", "object": "{}", "unknown member": `{"Foo":{"bar":[1]},"Limit":null}`, "spaces": " {\n} ",
	} {
		t.Run(name, func(t *testing.T) {
			if a := d.raw(t, request{operation: "ListKeys", body: []byte(body)}); a.status != 200 {
				t.Errorf("answered %d: %s", a.status, a.body)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	d := shared(t)
	target := func(v string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("X-Amz-Target", v) }
	}
	for _, v := range []string{"TrentService.Nothing", "TrentService.encrypt", "TrentService.", "Encrypt", "DynamoDB.Encrypt", "TrentService.Encrypt.x"} {
		a := d.raw(t, request{body: []byte("{}"), before: target(v)})
		a.want(t, 400, "UnknownOperationException")
	}
	if a := d.raw(t, request{body: []byte("{}")}); a.status != 404 && a.status != 400 || !strings.Contains(string(a.body), "UnknownOperationException") {
		t.Errorf("no target: %d %s", a.status, a.body)
	}
	for method, path := range map[string]string{http.MethodGet: "/", http.MethodPut: "/", http.MethodPost: "//", http.MethodOptions: "*"} {
		a := d.raw(t, request{operation: "ListKeys", method: method, before: func(r *http.Request) { r.URL.Path = path }})
		a.want(t, 404, "UnknownOperationException")
	}
}

func TestHugeBody(t *testing.T) {
	d := shared(t)
	body := []byte(`{"KeyId":"` + strings.Repeat("a", 10<<20) + `"}`)
	started := time.Now()
	req := d.signed(t, request{operation: "DescribeKey", body: body})
	resp, err := http.DefaultClient.Do(req)
	if err == nil { // or the server cut the connection while we were writing
		defer resp.Body.Close()
		if resp.StatusCode < 400 || resp.StatusCode >= 500 {
			t.Errorf("answered %d", resp.StatusCode)
		}
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("refusing took %s", took)
	}
	if _, err := d.client(t).ListKeys(context.Background(), nil); err != nil {
		t.Error("after a huge body:", err)
	}
}

func TestAnswerHeaders(t *testing.T) {
	d := shared(t)
	key := createKey(t, d.client(t))
	body := []byte(fmt.Sprintf(`{"KeyId":%q}`, *key.KeyId))
	a := d.raw(t, request{operation: "DescribeKey", body: body})
	for name, want := range map[string]string{
		"Content-Type": "application/x-amz-json-1.1", "Pragma": "no-cache", "Expires": "0",
		"Cache-Control": "no-cache, no-store, must-revalidate, private", "Content-Length": fmt.Sprint(len(a.body)),
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	when, err := http.ParseTime(a.header.Get("Date"))
	if err != nil || time.Since(when).Abs() > time.Minute {
		t.Errorf("Date %q is not now", a.header.Get("Date"))
	}
	if !bytes.Contains(a.body, []byte(`"MultiRegion":false`)) {
		t.Errorf("a false bool is not sent: %s", a.body)
	}
	if a := d.raw(t, request{operation: "EnableKey", body: body}); a.status != 200 || len(a.body) != 0 {
		t.Errorf("EnableKey answered %d with %q, want no body", a.status, a.body)
	}
	a = d.raw(t, request{operation: "Decrypt", body: []byte(`{"CiphertextBlob":"AAAA"}`)})
	a.want(t, 400, "InvalidCiphertextException")
	if a.hasText {
		t.Errorf("InvalidCiphertextException has a text: %s", a.body)
	}
}

// AWS's SDK for JavaScript runs in browsers, which ask before they send and
// keep from the page what the answer does not name.
func TestBrowser(t *testing.T) {
	d := shared(t)
	origin := func(r *http.Request) { r.Header.Set("Origin", "https://app.example") }
	const headers = "amz-sdk-invocation-id,authorization,content-type,x-amz-date,x-amz-target,x-amz-user-agent"
	asks := d.raw(t, request{method: http.MethodOptions, after: func(r *http.Request) {
		r.Header = http.Header{"Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {headers}}
		origin(r)
	}})
	if h := asks.header; asks.status != 200 || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Methods") != "POST" ||
		h.Get("Access-Control-Allow-Headers") != headers || h.Get("Access-Control-Max-Age") == "" {
		t.Errorf("asked whether a page may send, answered %d %v", asks.status, h)
	}
	for operation, status := range map[string]int{"ListKeys": 200, "DescribeKey": 400} {
		a := d.raw(t, request{operation: operation, body: []byte("{}"), after: origin})
		exposed := a.header.Get("Access-Control-Expose-Headers")
		if a.status != status || a.header.Get("Access-Control-Allow-Origin") != "*" || exposed != "x-amzn-RequestId,x-amzn-ErrorType,x-amzn-ErrorMessage,Date" {
			t.Errorf("%s from a page: %d %v", operation, a.status, a.header)
		}
	}
	if a := d.raw(t, request{operation: "ListKeys", body: []byte("{}")}); a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("who is no browser is answered like one")
	}
	a := d.raw(t, request{operation: "ListKeys", method: http.MethodOptions, after: origin})
	a.want(t, 404, "UnknownOperationException")
}
