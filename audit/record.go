package audit

import (
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Record is one audit record in CloudTrail's shape, version 1.11.
// Its zero fields are left out where CloudTrail leaves them out.
type Record struct {
	UserIdentity UserIdentity
	EventTime    time.Time
	EventSource  string // "" = kms.amazonaws.com
	EventName    string
	AWSRegion    string

	SourceIPAddress string
	UserAgent       string // capped at 1 KB
	ErrorCode       string // "" = the call succeeded
	ErrorMessage    string // capped at 1 KB

	// Raw JSON; nil = null (AdditionalEventData and ServiceEventDetails: left
	// out). Never plaintext, ciphertext or key material.
	RequestParameters   jsontext.Value // capped at 100 KB
	ResponseElements    jsontext.Value // capped at 100 KB
	AdditionalEventData jsontext.Value // capped at 28 KB
	ServiceEventDetails jsontext.Value // capped at 100 KB

	RequestID string // "" = left out
	EventID   string // "" = a fresh UUID
	ReadOnly  bool
	Resources []Resource // nil = null

	EventType          string // "" = AwsApiCall
	RecipientAccountID string
	SharedEventID      string
	VPCEndpointID      string
	TLSDetails         *TLSDetails
}

// UserIdentity is the caller. Empty members are left out.
type UserIdentity struct {
	Type        string // IAMUser, Root, AWSService, Unknown …
	PrincipalID string
	ARN         string
	AccountID   string
	AccessKeyID string
	UserName    string
	InvokedBy   string
}

// Resource is a key (or alias) that the call touched.
type Resource struct {
	AccountID string
	Type      string // "" = AWS::KMS::Key
	ARN       string
}

// TLSDetails describes the caller's connection. Empty members are left out.
type TLSDetails struct {
	TLSVersion               string
	CipherSuite              string
	ClientProvidedHostHeader string
	KeyExchange              string
}
