package sigv4

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// appendCanonicalRequest appends the canonical request of the SigV4
// specification:
//
//	method LF uri LF query LF *(name ":" value LF) LF names LF hex(sha256(body))
//
// It reports false when a signed header is not in the request.
func appendCanonicalRequest(dst []byte, r *http.Request, names []string, signedHeaders string, body []byte) ([]byte, bool) {
	dst = append(dst, r.Method...)
	dst = append(dst, '\n')
	dst = appendPath(dst, r.URL.EscapedPath())
	dst = append(dst, '\n')
	dst = appendQuery(dst, r.URL.RawQuery)
	dst = append(dst, '\n')
	for _, name := range names {
		var ok bool
		dst = append(dst, name...)
		dst = append(dst, ':')
		if dst, ok = appendHeader(dst, r, name); !ok {
			return dst, false
		}
		dst = append(dst, '\n')
	}
	dst = append(dst, '\n')
	dst = append(dst, signedHeaders...)
	dst = append(dst, '\n')
	sum := sha256.Sum256(body)
	return hex.AppendEncode(dst, sum[:]), true
}

// appendHeader appends the values of a header, trimmed, with runs of spaces
// collapsed, joined by commas. net/http moves some headers out of the map.
func appendHeader(dst []byte, r *http.Request, name string) ([]byte, bool) {
	switch name {
	case "host":
		return appendTrimmed(dst, r.Host), r.Host != ""
	case "transfer-encoding":
		return append(dst, strings.Join(r.TransferEncoding, ",")...), len(r.TransferEncoding) > 0
	}
	values, ok := r.Header[headerKey(name)]
	if !ok {
		if name == "content-length" && r.ContentLength >= 0 {
			return strconv.AppendInt(dst, r.ContentLength, 10), true
		}
		return dst, false
	}
	for i, value := range values {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendTrimmed(dst, value)
	}
	return dst, true
}

// headerKey spares textproto the work for what clients really sign.
func headerKey(name string) string {
	switch name {
	case "content-type":
		return "Content-Type"
	case "content-length":
		return "Content-Length"
	case "x-amz-date":
		return "X-Amz-Date"
	case "x-amz-target":
		return "X-Amz-Target"
	case "amz-sdk-invocation-id":
		return "Amz-Sdk-Invocation-Id"
	case "amz-sdk-request":
		return "Amz-Sdk-Request"
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

func appendTrimmed(dst []byte, value string) []byte {
	value = strings.Trim(value, " \t")
	if !strings.Contains(value, "  ") {
		return append(dst, value...)
	}
	space := false
	for i := range len(value) {
		if value[i] == ' ' && space {
			continue
		}
		space = value[i] == ' '
		dst = append(dst, value[i])
	}
	return dst
}

// appendPath appends the canonical URI: the path as sent, without dot segments
// and empty segments, each segment percent-encoded once more (every service
// but S3 encodes twice).
func appendPath(dst []byte, path string) []byte {
	if path == "" || path == "/" {
		return append(dst, '/')
	}
	var segments []string
	for segment := range strings.SplitSeq(path, "/") {
		switch segment {
		case "", ".":
		case "..":
			segments = segments[:max(0, len(segments)-1)]
		default:
			segments = append(segments, segment)
		}
	}
	for _, segment := range segments {
		dst = append(dst, '/')
		dst = appendEscaped(dst, segment)
	}
	if len(segments) == 0 || strings.HasSuffix(path, "/") {
		dst = append(dst, '/')
	}
	return dst
}

// appendQuery appends the parameters, encoded once and sorted by name, then
// value.
func appendQuery(dst []byte, raw string) []byte {
	if raw == "" {
		return dst
	}
	var pairs []string
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		// \x00 sorts a name before its own extensions, as sorting by name must.
		pair := appendEscaped(nil, unescape(name))
		pair = append(pair, 0)
		pairs = append(pairs, string(appendEscaped(pair, unescape(value))))
	}
	slices.Sort(pairs)
	for i, pair := range pairs {
		if i > 0 {
			dst = append(dst, '&')
		}
		dst = append(dst, strings.Replace(pair, "\x00", "=", 1)...)
	}
	return dst
}

// unescape leaves what is not valid percent-encoding as it is: such a request
// gets a canonical form too, which only its own signer can have signed.
func unescape(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return s
}

// appendEscaped percent-encodes everything but RFC 3986's unreserved bytes.
func appendEscaped(dst []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9',
			c == '-', c == '_', c == '.', c == '~':
			dst = append(dst, c)
		default:
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		}
	}
	return dst
}
