package awsjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// structsOf makes an empty input and output of the SDK for an operation.
func structsOf(t testing.TB, operation string) (in, out any) {
	t.Helper()
	method, ok := reflect.TypeFor[*kms.Client]().MethodByName(operation)
	if !ok {
		t.Fatalf("the SDK has no operation %s", operation)
	}
	return reflect.New(method.Type.In(2).Elem()).Interface(), reflect.New(method.Type.Out(0).Elem()).Interface()
}

// fixture returns the JSON body of a fixture that ships inside the SDK module.
func fixture(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(sdkDir(t), path))
	if err != nil {
		t.Fatal(err)
	}
	_, body, ok := bytes.Cut(raw, []byte("\n\n"))
	if head, rest, more := bytes.Cut(body, []byte("\n\n")); more && bytes.Contains(head, []byte("Content-Type")) {
		body = rest
	}
	if !ok {
		t.Fatalf("%s has no body", path)
	}
	return body
}

func sdkDir(t testing.TB) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/aws/aws-sdk-go-v2/service/kms").Output()
	if err != nil {
		t.Fatalf("finding the SDK module: %v", err)
	}
	return strings.TrimSpace(string(dir))
}

// call sends in through the SDK's own client and gives the bytes of the
// request to answer, whose result the client then parses.
func call(t testing.TB, operation string, in any, answer func(request []byte) []byte) any {
	t.Helper()
	client := kms.New(kms.Options{
		Region: "us-east-1", BaseEndpoint: aws.String("http://127.0.0.1"),
		Credentials: credentials.NewStaticCredentialsProvider("AKIAEXAMPLE", "secret", ""),
		HTTPClient: smithyhttp.ClientDoFunc(func(r *http.Request) (*http.Response, error) {
			request, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, fmt.Errorf("reading the request: %w", err)
			}
			body := answer(request)
			return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, ContentLength: int64(len(body)),
				Body: io.NopCloser(bytes.NewReader(body))}, nil
		}),
	})
	results := reflect.ValueOf(client).MethodByName(operation).Call(
		[]reflect.Value{reflect.ValueOf(t.Context()), reflect.ValueOf(in)})
	if err, _ := results[1].Interface().(error); err != nil {
		t.Fatal(err)
	}
	return results[0].Interface()
}

// sameStruct compares what the wire carries of two SDK structs.
func sameStruct(t testing.TB, got, want any) {
	t.Helper()
	notOnTheWire := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".ResultMetadata" }, cmp.Ignore())
	unexported := cmp.FilterPath(func(p cmp.Path) bool {
		f, ok := p.Last().(cmp.StructField)
		return ok && f.Name() == "noSmithyDocumentSerde"
	}, cmp.Ignore())
	if diff := cmp.Diff(want, got, notOnTheWire, unexported, cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func sameJSON(t testing.TB, got, want []byte) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal(got, &g); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if err := json.Unmarshal(want, &w); err != nil {
		t.Fatalf("%v in %s", err, want)
	}
	if diff := cmp.Diff(w, g); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestRequestFixtures(t *testing.T) {
	for _, op := range Operations() {
		t.Run(op.Name, func(t *testing.T) {
			body := fixture(t, "request_snapshot/"+op.Name+".request.snap")
			in, _ := structsOf(t, op.Name)
			if err := Decode(body, in); err != nil {
				t.Fatal(err)
			}
			again, err := Encode(in)
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, again, body)
			// What the SDK's client makes of the struct decodes to the same.
			call(t, op.Name, in, func(request []byte) []byte {
				got, _ := structsOf(t, op.Name)
				if err := Decode(request, got); err != nil {
					t.Error(err)
				}
				sameStruct(t, got, in)
				return []byte("{}")
			})
		})
	}
}

func TestResponseFixtures(t *testing.T) {
	for _, op := range Operations() {
		if !op.HasOutput {
			continue
		}
		t.Run(op.Name, func(t *testing.T) {
			body := fixture(t, "response_snapshot/"+op.Name+".response.snap")
			in, out := structsOf(t, op.Name)
			if err := Decode(fixture(t, "request_snapshot/"+op.Name+".request.snap"), in); err != nil {
				t.Fatal(err)
			}
			if err := Decode(body, out); err != nil {
				t.Fatal(err)
			}
			again, err := Encode(out)
			if err != nil {
				t.Fatal(err)
			}
			sameJSON(t, again, body)
			sameStruct(t, call(t, op.Name, in, func([]byte) []byte { return again }), out)
		})
	}
}
