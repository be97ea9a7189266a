// Package sigv4 verifies AWS Signature Version 4 in the Authorization header.
// It knows neither where signing keys come from nor what they open: the caller
// gives a function for the first and learns an identity for the second. Its
// errors are AWS's own, as *smithy.GenericAPIError.
package sigv4

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says what a Verifier accepts.
type Config struct {
	// Service is the service name in the credential scope, "kms" by default.
	Service string
	// Regions are the region names that may stand in a scope; none = no
	// request is accepted.
	Regions []string
	// Now is the clock; nil = time.Now.
	Now func() time.Time
	// Skew is how far a signature's time may be from now, either way;
	// 0 = 5 minutes.
	Skew time.Duration
	// SigningKey returns the signing key of an access key for a day (YYYYMMDD)
	// and region, see DeriveSigningKey; to return the same one again spares
	// work. It returns (or wraps) ErrUnknownAccessKey for ids that are unknown
	// or inactive; any other error comes out of Verify wrapped.
	SigningKey func(ctx context.Context, accessKeyID, date, region string) (*Key, error)
}

// Identity is what a good signature proves.
type Identity struct {
	AccessKeyID string
	Region      string    // of the credential scope
	SignedAt    time.Time // UTC
}

// Verifier checks requests. It may be used concurrently.
type Verifier struct {
	config  Config
	scratch sync.Pool // *[]byte, for canonical requests
}

// New returns a Verifier.
func New(c Config) *Verifier {
	if c.Service == "" {
		c.Service = "kms"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Skew == 0 {
		c.Skew = 5 * time.Minute
	}
	c.Regions = slices.Clone(c.Regions)
	return &Verifier{config: c, scratch: sync.Pool{New: func() any {
		b := make([]byte, 0, 2048)
		return &b
	}}}
}

// Claim is who a request says has signed it, and when. Nothing proves it yet.
type Claim struct {
	authorization
	names    []string // of the signed headers
	signedAt time.Time
	dateText string // of signedAt, as it was signed
}

// Check refuses r for what its headers alone show, so that its body need not be
// read. r.Body is not touched.
func (v *Verifier) Check(r *http.Request) (c Claim, err error) {
	if c.authorization, err = parseAuthorization(r); err != nil {
		return Claim{}, err
	}
	if c.signedAt, c.dateText, err = signingTime(r.Header); err != nil {
		return Claim{}, err
	}
	if err := v.checkScope(c.authorization, c.dateText); err != nil {
		return Claim{}, err
	}
	if c.names, err = c.headerNames(r.Header); err != nil {
		return Claim{}, err
	}
	if err := checkSkew(c.signedAt, v.config.Now().UTC(), v.config.Skew); err != nil {
		return Claim{}, err
	}
	// There are no temporary credentials, so no session token is a good one.
	if len(r.Header["X-Amz-Security-Token"]) > 0 {
		return Claim{}, unrecognized()
	}
	return c, nil
}

// Verify checks the signature of r, of which Check has made c, and whose whole
// body is body. The body's hash is always computed, never taken from a header.
// r.Body is not read.
func (v *Verifier) Verify(r *http.Request, c Claim, body []byte) (Identity, error) {
	if err := v.checkSignature(r, c, body); err != nil {
		return Identity{}, err
	}
	return Identity{AccessKeyID: c.accessKeyID, Region: c.region, SignedAt: c.signedAt}, nil
}

// checkScope holds the credential scope against the date and the Config.
func (v *Verifier) checkScope(a authorization, dateText string) error {
	switch {
	case a.terminator != terminator:
		return invalid("Credential should be scoped with a valid terminator: '%s', not '%s'.", terminator, clip(a.terminator))
	case !slices.Contains(v.config.Regions, a.region):
		return invalid("Credential should be scoped to a valid region.")
	case a.service != v.config.Service:
		return invalid("Credential should be scoped to correct service: '%s'.", v.config.Service)
	case a.date != dateText[:len("20060102")]:
		return invalid("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "+
			"'%s' != '%s', from '%s'.", clip(a.date), dateText[:len("20060102")], dateText)
	}
	return nil
}

// headerNames splits SignedHeaders and demands what must be signed. Other
// headers are signed or not as the client likes: curl leaves out even
// X-Amz-Target.
func (a authorization) headerNames(h http.Header) ([]string, error) {
	names := strings.Split(a.signedHeaders, ";")
	if len(names) > maxSignedHeaders {
		return nil, incomplete("SignedHeaders must have at most %d names.", maxSignedHeaders)
	}
	dateName := "x-amz-date"
	if len(h["X-Amz-Date"]) == 0 {
		dateName = "date"
	}
	var host, date bool
	for i, name := range names {
		if !validName(name) || slices.Contains(names[:i], name) {
			return nil, incomplete("SignedHeaders has a name that is malformed, not in lower case or repeated: '%s'.", clip(name))
		}
		host = host || name == "host"
		date = date || name == dateName
	}
	if !host {
		return nil, invalid("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	if !date {
		return nil, invalid("'%s' must be a 'SignedHeader' in the AWS Authorization.", dateName)
	}
	return names, nil
}

// validName accepts the lower-case tokens of RFC 9110 section 5.6.2.
func validName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return name != ""
}

func (v *Verifier) checkSignature(r *http.Request, c Claim, body []byte) error {
	key, err := v.config.SigningKey(r.Context(), c.accessKeyID, c.date, c.region)
	unknown := errors.Is(err, ErrUnknownAccessKey) || (err == nil && key.empty())
	if err != nil && !unknown {
		return fmt.Errorf("finding the signing key of %q: %w", clip(c.accessKeyID), err)
	}
	if unknown {
		key = noKey
	}
	buffer := v.scratch.Get().(*[]byte)
	defer v.release(buffer)
	complete := false
	if *buffer, complete = appendCanonicalRequest((*buffer)[:0], r, c.names, c.signedHeaders, body); complete {
		complete = declaredHashMatches(r.Header, (*buffer)[len(*buffer)-64:])
	}
	want := signature(buffer, key, c.dateText, c.scope)
	good := hmac.Equal(want, c.signature[:])
	switch {
	case unknown:
		return unrecognized()
	case !good || !c.wellFormed || !complete:
		return mismatch()
	}
	return nil
}

// release keeps usual buffers only: a stranger's giant headers shall not stay.
func (v *Verifier) release(buffer *[]byte) {
	if cap(*buffer) <= 16<<10 {
		v.scratch.Put(buffer)
	}
}

// declaredHashMatches compares X-Amz-Content-Sha256, where sent, with the
// real hash. UNSIGNED-PAYLOAD and its like are therefore refused.
func declaredHashMatches(h http.Header, bodyHash []byte) bool {
	declared := h["X-Amz-Content-Sha256"]
	return len(declared) == 0 || (len(declared) == 1 && declared[0] == string(bodyHash))
}

// signature replaces the canonical request in buffer by its string to sign, and
// that by its HMAC, which it returns.
func signature(buffer *[]byte, key *Key, dateText, scope string) []byte {
	hash := sha256.Sum256(*buffer)
	b := append((*buffer)[:0], algorithm...)
	b = append(b, '\n')
	b = append(b, dateText...)
	b = append(b, '\n')
	b = append(b, scope...)
	b = append(b, '\n')
	b = hex.AppendEncode(b, hash[:])
	*buffer = key.appendMAC(b[:0], b)
	return *buffer
}
