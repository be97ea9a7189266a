package softhsmtest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"golang.org/x/sys/unix"
)

func TestWrongSecret(t *testing.T) {
	d := shared(t)
	c := newClient(d.url, secretKey{d.admin.ID, strings.Repeat("x", 40)}, http.DefaultTransport)
	_, err := c.ListKeys(context.Background(), nil)
	wantCode(t, err, "InvalidSignatureException",
		"The request signature we calculated does not match the signature you provided.")
}

func TestUnknownAccessKey(t *testing.T) {
	d := shared(t)
	for _, id := range []string{"AKIAAAAAAAAAAAAAAAAA", "AKIA", "nobody", strings.Repeat("A", 200)} {
		c := newClient(d.url, secretKey{id, d.admin.Secret}, http.DefaultTransport)
		_, err := c.ListKeys(context.Background(), nil)
		wantCode(t, err, "UnrecognizedClientException", "The security token included in the request is invalid.")
	}
}

// A stranger's bytes that no database text can hold are his fault.
func TestAccessKeyOfNoText(t *testing.T) {
	d := shared(t)
	for _, id := range []string{"AKIA\xff\xfe", "AKIA\xc3\xa9", "AKIA AKIA", "%00"} {
		a := d.raw(t, request{operation: "ListKeys", body: []byte(`{}`), after: func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), d.admin.ID, id, 1))
		}})
		a.want(t, 400, "UnrecognizedClientException")
	}
}

func TestSignatureFaults(t *testing.T) {
	d := shared(t)
	set := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	edit := func(old, new string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, new, 1))
		}
	}
	cutSignature := func(r *http.Request) {
		head, _, _ := strings.Cut(r.Header.Get("Authorization"), ", Signature=")
		r.Header.Set("Authorization", head)
	}
	other := func(r *http.Request) {
		r.Body = io.NopCloser(bytes.NewReader([]byte(`{"Limit":2}`)))
		r.ContentLength = 11
	}
	for name, c := range map[string]struct {
		r    request
		code string
		text string
	}{
		"no header":        {request{after: func(r *http.Request) { r.Header.Del("Authorization") }}, "MissingAuthenticationTokenException", "Missing Authentication Token"},
		"bearer":           {request{after: set("Authorization", "Bearer abc")}, "IncompleteSignatureException", ""},
		"empty parameters": {request{after: set("Authorization", "AWS4-HMAC-SHA256")}, "IncompleteSignatureException", ""},
		"no signature":     {request{after: cutSignature}, "IncompleteSignatureException", "Authorization header requires 'Signature' parameter."},
		"short scope":      {request{after: edit("/aws4_request", "")}, "IncompleteSignatureException", "Credential must have exactly 5 slash-delimited elements"},
		"other body":       {request{after: other}, "InvalidSignatureException", ""},
		"other target":     {request{after: set("X-Amz-Target", "TrentService.ListAliases")}, "InvalidSignatureException", ""},
		"other date":       {request{after: set("X-Amz-Date", time.Now().UTC().Add(time.Minute).Format("20060102T150405Z"))}, "InvalidSignatureException", ""},
		"early":            {request{late: -6 * time.Minute}, "InvalidSignatureException", "Signature not yet current"},
		"late":             {request{late: 6 * time.Minute}, "InvalidSignatureException", "Signature expired"},
		"other service":    {request{service: "s3"}, "InvalidSignatureException", "Credential should be scoped to correct service: 'kms'."},
		"other region":     {request{region: "mars-1"}, "InvalidSignatureException", "Credential should be scoped to a valid region."},
		"session token":    {request{before: set("X-Amz-Security-Token", "abc")}, "UnrecognizedClientException", "The security token included in the request is invalid."},
	} {
		t.Run(name, func(t *testing.T) {
			c.r.operation = "ListKeys"
			c.r.body = []byte(`{"Limit":1}`)
			a := d.raw(t, c.r)
			a.want(t, 400, c.code)
			if !strings.Contains(a.text, c.text) {
				t.Errorf("text %q, want %q in it", a.text, c.text)
			}
			d.wantNoRecord(t, a.requestID)
		})
	}
}

// TestRefusedCallIsFound: the log has the request id that the caller was told,
// once so few are refused that it has them all.
func TestRefusedCallIsFound(t *testing.T) {
	d := shared(t)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		a := d.raw(t, request{operation: "ListKeys", body: []byte(`{}`), region: "mars-1"})
		if bytes.Contains(d.logs(t), []byte(`"requestID":"`+a.requestID+`"`)) {
			return
		}
	}
	t.Error("no refused call is in the log under its request id")
}

// TestBodyOfAStranger: a request that its headers alone give away is answered
// before any of its body is there, which is taken all the same: most clients
// send all of it before they read.
func TestBodyOfAStranger(t *testing.T) {
	d := shared(t)
	for code, r := range map[string]request{
		"MissingAuthenticationTokenException": {after: func(r *http.Request) { r.Header.Del("Authorization") }},
		"IncompleteSignatureException":        {after: func(r *http.Request) { r.Header.Set("Authorization", "Bearer abc") }},
		"InvalidSignatureException":           {late: 6 * time.Minute},
		"UnrecognizedClientException":         {before: func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "abc") }},
	} {
		r.operation = "ListKeys"
		signed := d.signed(t, r)
		var head bytes.Buffer
		fmt.Fprintf(&head, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000\r\n", signed.URL.Host)
		must(0, signed.Header.Write(&head))(t)
		conn := must(net.Dial("tcp", signed.URL.Host))(t)
		defer conn.Close() //nolint:errcheck // nothing is lost
		must(0, conn.SetDeadline(time.Now().Add(10*time.Second)))(t)
		must(conn.Write(append(head.Bytes(), "\r\n"...)))(t)
		answer, err := http.ReadResponse(bufio.NewReader(conn), signed)
		if err != nil {
			t.Errorf("%s: %v", code, err)
			continue
		}
		defer answer.Body.Close() //nolint:errcheck // nothing is lost
		parseAnswer(answer, must(io.ReadAll(answer.Body))(t)).want(t, 400, code)
		must(0, conn.(*net.TCPConn).SetWriteBuffer(16<<10))(t)
		if _, err := conn.Write(make([]byte, 1_000_000)); err != nil {
			t.Errorf("%s: sending the body: %v", code, err)
		}
	}
}

func TestClockWindow(t *testing.T) {
	d := shared(t)
	for _, late := range []time.Duration{-4 * time.Minute, 4 * time.Minute} {
		if a := d.raw(t, request{operation: "ListKeys", late: late}); a.status != 200 {
			t.Errorf("%s late: %d %s", late, a.status, a.body)
		}
	}
}

// The region in the signature's scope is the region that the client means.
func TestRegionsAreApart(t *testing.T) {
	d := shared(t)
	home := d.client(t)
	key := createKey(t, home)
	away := newRegionClient(d.url, otherRegion, d.admin, http.DefaultTransport)
	_, err := away.DescribeKey(context.Background(), &kms.DescribeKeyInput{KeyId: key.KeyId})
	wantCode(t, err, "NotFoundException", "arn:aws:kms:"+otherRegion+":"+account+":key/"+*key.KeyId)
	_, err = away.DescribeKey(context.Background(), &kms.DescribeKeyInput{KeyId: key.Arn})
	wantCode(t, err, "NotFoundException", "Invalid arn "+region)
	there := createKey(t, away)
	if !strings.Contains(*there.Arn, ":"+otherRegion+":") {
		t.Errorf("key ARN %s", *there.Arn)
	}
	blob := encrypt(t, home, *key.KeyId, marker, nil)
	_, err = away.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: blob})
	if err == nil {
		t.Error("a ciphertext of one region was decrypted in another")
	}
}

// TestNoFilesLeft: that no connection can be taken is said in the log, since
// nothing else answers then, and passes with its cause.
func TestNoFilesLeft(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	must(0, unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}, nil))(t)
	address := strings.TrimPrefix(d.url, "http://")
	var held []net.Conn
	for range 100 {
		conn := must(net.Dial("tcp", address))(t)
		defer conn.Close() //nolint:errcheck // closed below
		held = append(held, conn)
	}
	for deadline := time.Now().Add(30 * time.Second); !bytes.Contains(d.logs(t), []byte("no connection can be taken")); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing says that the files are used up")
		}
	}
	began, before := time.Now(), bytes.Count(d.logs(t), []byte("no connection can be taken"))
	for i := range held { // whoever comes and goes does not fill the log
		must(0, held[i].Close())(t)
		held[i] = must(net.Dial("tcp", address))(t)
		time.Sleep(10 * time.Millisecond)
	}
	said := bytes.Count(d.logs(t), []byte("no connection can be taken")) - before
	if most := int(time.Since(began)/time.Second) + 2; said > most {
		t.Errorf("it was said %d times in %s", said, time.Since(began))
	}
	for _, conn := range held {
		must(0, conn.Close())(t)
	}
	createKey(t, d.client(t))
}
