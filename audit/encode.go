package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// CloudTrail's limits, in bytes.
const (
	maxText       = 1 << 10
	maxParameters = 100 << 10
	maxAdditional = 28 << 10
)

// Append appends r as one line of JSON, without the line feed. Whatever the
// caller sent, the line is valid JSON that Postgres's jsonb takes: invalid
// UTF-8 and NUL become U+FFFD. (jsonb takes no number above 1e131072; what we
// record has none, since the wire's shapes have none.)
func (r *Record) Append(dst []byte) []byte {
	dst = append(dst, `{"eventVersion":"1.11","userIdentity":{`...)
	dst = r.UserIdentity.append(dst)
	dst = append(dst, `},"eventTime":"`...)
	dst = r.EventTime.UTC().AppendFormat(dst, time.RFC3339)
	dst = append(dst, '"')
	dst = appendText(dst, `,"eventSource":`, orElse(r.EventSource, "kms.amazonaws.com"))
	dst = appendText(dst, `,"eventName":`, r.EventName)
	dst = appendText(dst, `,"awsRegion":`, r.AWSRegion)
	dst = appendText(dst, `,"sourceIPAddress":`, r.SourceIPAddress)
	dst = appendText(dst, `,"userAgent":`, r.UserAgent)
	dst = appendSome(dst, `,"errorCode":`, r.ErrorCode)
	dst = appendSome(dst, `,"errorMessage":`, r.ErrorMessage)
	dst = appendRaw(dst, `,"requestParameters":`, r.RequestParameters, maxParameters)
	dst = appendRaw(dst, `,"responseElements":`, r.ResponseElements, maxParameters)
	if r.AdditionalEventData != nil {
		dst = appendRaw(dst, `,"additionalEventData":`, r.AdditionalEventData, maxAdditional)
	}
	dst = appendSome(dst, `,"requestID":`, r.RequestID)
	dst = appendText(dst, `,"eventID":`, r.EventID)
	dst = strconv.AppendBool(append(dst, `,"readOnly":`...), r.ReadOnly)
	dst = r.appendResources(dst)
	dst = appendText(dst, `,"eventType":`, orElse(r.EventType, "AwsApiCall"))
	dst = append(dst, `,"managementEvent":true`...)
	dst = appendText(dst, `,"recipientAccountId":`, r.RecipientAccountID)
	dst = appendSome(dst, `,"sharedEventID":`, r.SharedEventID)
	dst = appendSome(dst, `,"vpcEndpointId":`, r.VPCEndpointID)
	if r.ServiceEventDetails != nil {
		dst = appendRaw(dst, `,"serviceEventDetails":`, r.ServiceEventDetails, maxParameters)
	}
	dst = append(dst, `,"eventCategory":"Management"`...)
	if r.TLSDetails != nil {
		dst = r.TLSDetails.append(dst)
	}
	return append(dst, '}')
}

func (u *UserIdentity) append(dst []byte) []byte {
	if u.InvokedBy != "" && u.Type == "" { // the service's own event: nobody called
		dst = appendText(dst, `"accountId":`, u.AccountID)
		return appendText(dst, `,"invokedBy":`, u.InvokedBy)
	}
	dst = appendText(dst, `"type":`, orElse(u.Type, "Unknown"))
	dst = appendSome(dst, `,"principalId":`, u.PrincipalID)
	dst = appendSome(dst, `,"arn":`, u.ARN)
	dst = appendSome(dst, `,"accountId":`, u.AccountID)
	dst = appendSome(dst, `,"accessKeyId":`, u.AccessKeyID)
	dst = appendSome(dst, `,"userName":`, u.UserName)
	return appendSome(dst, `,"invokedBy":`, u.InvokedBy)
}

func (r *Record) appendResources(dst []byte) []byte {
	if r.Resources == nil {
		return append(dst, `,"resources":null`...)
	}
	dst = append(dst, `,"resources":[`...)
	for i, resource := range r.Resources {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendText(dst, `{"accountId":`, resource.AccountID)
		dst = appendText(dst, `,"type":`, orElse(resource.Type, "AWS::KMS::Key"))
		dst = append(appendText(dst, `,"ARN":`, resource.ARN), '}')
	}
	return append(dst, ']')
}

func (d *TLSDetails) append(dst []byte) []byte {
	dst = append(dst, `,"tlsDetails":{`...)
	start := len(dst)
	dst = appendSome(dst, `,"tlsVersion":`, d.TLSVersion)
	dst = appendSome(dst, `,"cipherSuite":`, d.CipherSuite)
	dst = appendSome(dst, `,"clientProvidedHostHeader":`, d.ClientProvidedHostHeader)
	dst = appendSome(dst, `,"keyExchange":`, d.KeyExchange)
	if len(dst) > start {
		dst = append(dst[:start], dst[start+1:]...) // the first comma
	}
	return append(dst, '}')
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// appendSome leaves an empty member out.
func appendSome(dst []byte, name, s string) []byte {
	if s == "" {
		return dst
	}
	return appendText(dst, name, s)
}

// appendText appends a member whose value is s, cut at maxText bytes.
func appendText(dst []byte, name, s string) []byte {
	if len(s) > maxText {
		end := maxText
		for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	dst = append(dst, name...)
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		if c := s[i]; c >= 0x20 && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		var width int
		dst, width = appendRune(dst, s[i:])
		i += width
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

const hexDigits = "0123456789abcdef"

// appendRune appends the first rune of s, which needs care.
func appendRune(dst []byte, s string) ([]byte, int) {
	switch c := s[0]; {
	case c == '"' || c == '\\':
		return append(dst, '\\', c), 1
	case c == 0:
		return append(dst, "\ufffd"...), 1 // JSON has NUL, jsonb has not
	case c < 0x20 || c == 0x7f:
		return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15]), 1
	}
	r, width := utf8.DecodeRuneInString(s)
	return utf8.AppendRune(dst, r), width // U+FFFD for invalid UTF-8
}

// appendRaw appends a member whose value is JSON already. What would break the
// line or the log's readers, which only a fault of ours can produce, and what
// is over the limit, is replaced by its digest.
func appendRaw(dst []byte, name string, raw jsontext.Value, limit int) []byte {
	dst = append(dst, name...)
	switch {
	case raw == nil:
		return append(dst, "null"...)
	case len(raw) > limit:
		return appendDigest(dst, raw, "too large")
	case !raw.IsValid():
		return appendDigest(dst, raw, "not JSON")
	}
	start := len(dst)
	if bytes.IndexByte(raw, '\n') >= 0 || bytes.IndexByte(raw, '\r') >= 0 {
		raw = raw.Clone()
		_ = raw.Compact() // it is valid
	}
	dst = append(dst, raw...)
	replaceNUL(dst[start:])
	return dst
}

func appendDigest(dst []byte, raw []byte, reason string) []byte {
	sum := sha256.Sum256(raw)
	dst = appendText(dst, `{"omitted":`, reason)
	return append(appendText(dst, `,"sha256":`, hex.EncodeToString(sum[:])), '}')
}

// replaceNUL turns each escaped NUL into an escaped U+FFFD, in place.
func replaceNUL(raw []byte) {
	for i := 0; ; {
		n := bytes.Index(raw[i:], []byte(`\u0000`))
		if n < 0 {
			return
		}
		at := i + n
		slashes := 0
		for at-1-slashes >= 0 && raw[at-1-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 { // otherwise it is an escaped backslash and text
			copy(raw[at:], `\ufffd`)
		}
		i = at + 2
	}
}
