package sigv4

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// vectors are requests of AWS's published Signature Version 4 test suite, with
// the signatures given there.
var vectors = []struct {
	name, start, headers, body, signed, signature string
}{
	{"get-vanilla", "GET / HTTP/1.1", "", "", "host;x-amz-date",
		"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{"post-vanilla", "POST / HTTP/1.1", "", "", "host;x-amz-date",
		"5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
	{"get-header-value-trim", "GET / HTTP/1.1", "My-Header1: value1\r\nMy-Header2: \"a   b   c\"\r\n", "",
		"host;my-header1;my-header2;x-amz-date", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
	{"get-header-key-duplicate", "GET / HTTP/1.1", "My-Header1:value2\r\nMy-Header1:value2\r\nMy-Header1:value1\r\n", "",
		"host;my-header1;x-amz-date", "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
	{"get-slash-pointless-dot", "GET /./example HTTP/1.1", "", "", "host;x-amz-date",
		"ef75d96142cf21edca26f06005da7988e4f8dc83a165a80865db7089db637ec5"},
	{"get-relative-relative", "GET /example1/example2/../.. HTTP/1.1", "", "", "host;x-amz-date",
		"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
	{"get-slashes", "GET //example// HTTP/1.1", "", "", "host;x-amz-date",
		"9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84"},
	{"get-unreserved", "GET /-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz HTTP/1.1", "", "",
		"host;x-amz-date", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
	{"get-vanilla-query", "GET /?Param1=value1 HTTP/1.1", "", "", "host;x-amz-date",
		"a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"},
	{"get-vanilla-query-order-key-case", "GET /?Param2=value2&Param1=value1 HTTP/1.1", "", "", "host;x-amz-date",
		"b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
	{"get-vanilla-query-order-encoded", "GET /?Param-3=Value3&Param=Value2&%E1%88%B4=Value1 HTTP/1.1", "", "",
		"host;x-amz-date", "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"},
	{"get-vanilla-utf8-query", "GET /?ሴ=bar HTTP/1.1", "", "", "host;x-amz-date",
		"2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
	{"post-x-www-form-urlencoded", "POST / HTTP/1.1", "Content-Type:application/x-www-form-urlencoded\r\n" +
		"Content-Length:13\r\nX-Amz-Content-Sha256:9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e\r\n",
		"Param1=value1", "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
		"d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"},
}

func TestPublishedVectors(t *testing.T) {
	v := New(Config{
		Service: "service", Regions: []string{"us-east-1"},
		Now: func() time.Time { return time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC) },
		SigningKey: func(_ context.Context, id, date, region string) (*Key, error) {
			return DeriveSigningKey(mac([]byte("AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), date), region, "service"), nil
		},
	})
	for _, vector := range vectors {
		t.Run(vector.name, func(t *testing.T) {
			text := vector.start + "\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\n" + vector.headers +
				"Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=" +
				vector.signed + ", Signature=" + vector.signature + "\r\n\r\n" + vector.body
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.verify(r, body); err != nil {
				t.Error(err)
			}
		})
	}
}
