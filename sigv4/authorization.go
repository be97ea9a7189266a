package sigv4

import (
	"encoding/hex"
	"net/http"
	"strings"
	"time"
)

const (
	algorithm   = "AWS4-HMAC-SHA256"
	terminator  = "aws4_request"
	basicFormat = "20060102T150405Z"

	// No client comes near these; they bound the work for strangers.
	maxAuthorization = 4096 // bytes
	maxSignedHeaders = 64
)

// authorization is a parsed Authorization header.
//
//	authorization  = "AWS4-HMAC-SHA256" SP part *("," part)  ; spaces around parts
//	part           = "Credential=" credential / "SignedHeaders=" names / "Signature=" 64LHEX
//	credential     = access-key-id "/" date "/" region "/" service "/aws4_request"
//	names          = name *(";" name)                        ; lower case
//
// Each part occurs once, in any order.
type authorization struct {
	accessKeyID   string
	date          string // YYYYMMDD
	region        string
	service       string
	terminator    string
	scope         string // date/region/service/terminator, as sent
	signedHeaders string // as sent
	signature     [32]byte
	wellFormed    bool // the signature is 64 lower-case hex digits
}

// parseAuthorization finds and splits the Authorization header.
func parseAuthorization(r *http.Request) (authorization, error) {
	var a authorization
	if strings.Contains(strings.ToLower(r.URL.RawQuery), "x-amz-signature=") ||
		strings.Contains(strings.ToLower(r.URL.RawQuery), "x-amz-algorithm=") {
		return a, incomplete("Presigned requests are not supported. Sign the request with an Authorization header.")
	}
	headers := r.Header["Authorization"]
	if len(headers) == 0 || headers[0] == "" {
		return a, missingToken()
	}
	if len(headers) > 1 || len(headers[0]) > maxAuthorization {
		return a, incomplete("Authorization header must occur once and have at most %d bytes.", maxAuthorization)
	}
	scheme, rest, _ := strings.Cut(strings.TrimSpace(headers[0]), " ")
	if scheme != algorithm {
		return a, incomplete("Unsupported AWS 'algorithm': '%s'.", clip(scheme))
	}
	parts, err := splitParts(rest)
	if err != nil {
		return a, err
	}
	a.signedHeaders = parts.signedHeaders
	if len(parts.signature) == hex.EncodedLen(len(a.signature)) && parts.signature == strings.ToLower(parts.signature) {
		_, err := hex.Decode(a.signature[:], []byte(parts.signature))
		a.wellFormed = err == nil
	}
	return a, a.parseCredential(parts.credential)
}

type parts struct{ credential, signedHeaders, signature string }

func splitParts(s string) (parts, error) {
	var p parts
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return p, incomplete("'%s' not a valid key=value pair (missing equal-sign) in Authorization header.", clip(part))
		}
		var target *string
		switch name {
		case "Credential":
			target = &p.credential
		case "SignedHeaders":
			target = &p.signedHeaders
		case "Signature":
			target = &p.signature
		default:
			return p, incomplete("Authorization header has an unknown parameter '%s'.", clip(name))
		}
		if *target != "" {
			return p, incomplete("Authorization header has '%s' parameter more than once.", name)
		}
		*target = value
	}
	var missing []string
	for _, m := range []struct{ name, value string }{
		{"Credential", p.credential}, {"Signature", p.signature}, {"SignedHeaders", p.signedHeaders},
	} {
		if m.value == "" {
			missing = append(missing, "Authorization header requires '"+m.name+"' parameter.")
		}
	}
	if missing != nil {
		return p, incomplete("%s", strings.Join(missing, " "))
	}
	return p, nil
}

func (a *authorization) parseCredential(credential string) error {
	if strings.Count(credential, "/") != 4 {
		return incomplete("Credential must have exactly 5 slash-delimited elements, "+
			"e.g. keyid/date/region/service/term, got '%s'", clip(credential))
	}
	var rest string
	a.accessKeyID, a.scope, _ = strings.Cut(credential, "/")
	a.date, rest, _ = strings.Cut(a.scope, "/")
	a.region, rest, _ = strings.Cut(rest, "/")
	a.service, a.terminator, _ = strings.Cut(rest, "/")
	return nil
}

// signingTime returns the time the client signed at, and its text in the
// string to sign. X-Amz-Date wins over Date.
func signingTime(h http.Header) (time.Time, string, error) {
	values := h["X-Amz-Date"]
	if len(values) == 0 {
		values = h["Date"]
	}
	if len(values) == 0 {
		return time.Time{}, "", incomplete(
			"Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
	}
	if len(values) > 1 {
		return time.Time{}, "", incomplete("The date header must occur once.")
	}
	text := strings.TrimSpace(values[0])
	t, err := time.Parse(basicFormat, text)
	if err == nil && len(text) == len(basicFormat) {
		return t, text, nil
	}
	if len(h["X-Amz-Date"]) == 0 {
		if t, err := http.ParseTime(text); err == nil {
			return t.UTC(), t.UTC().Format(basicFormat), nil
		}
	}
	return time.Time{}, "", incomplete("Date must be in ISO-8601 'basic format'. Got '%s'. "+
		"See http://en.wikipedia.org/wiki/ISO_8601", clip(text))
}

// clip bounds what an error message repeats of the request.
func clip(s string) string {
	const limit = 256
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
