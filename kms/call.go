package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/sigv4"
	"github.com/trent-kms/trent/store"
)

// auditTimeout is how long a call waits for its audit record after its client
// has gone or its deadline has passed.
const auditTimeout = 15 * time.Second

// Call is one authenticated request on its way through an operation. It
// belongs to the goroutine that serves the request.
type Call struct {
	// Operation is the AWS operation's name, "" when the target named none.
	Operation string

	// Principal and AccessKeyID are who signed; Region is the signature
	// scope's.
	Principal   store.Principal
	AccessKeyID string
	Region      string

	RequestID string
	SourceIP  string
	UserAgent string
	TLS       *audit.TLSDetails

	// Input is the decoded request, nil when it could not be decoded;
	// Recorded are the names of its members that the audit record shows.
	Input    any
	Recorded []string

	// head is the change sequence that the caches reflected before anything
	// of this call was looked up.
	head int64

	// again repeats the call's authorisations on fresh rows.
	again []func(context.Context) error

	resources []audit.Resource
	keys      []keyRef // that were authorised
	response  jsontext.Value
	extra     jsontext.Value

	// recorded is true once the call's audit record is committed.
	recorded bool
}

// Head returns the change sequence to begin a call with; take it before the
// request is authenticated.
func (s *Service) Head() int64 { return s.cache.head.Load() }

// Begin makes the call of an authenticated request. call.Operation,
// RequestID, SourceIP, UserAgent and TLS are the caller's to fill in.
func (s *Service) Begin(ctx context.Context, head int64, id sigv4.Identity) (*Call, error) {
	cred, err := s.credential(ctx, id.AccessKeyID)
	if err != nil {
		return nil, err
	}
	call := &Call{Principal: cred.principal, AccessKeyID: id.AccessKeyID, Region: id.Region, head: head}
	call.again = append(call.again, func(ctx context.Context) error {
		fresh, err := s.credential(ctx, id.AccessKeyID)
		if errors.Is(err, sigv4.ErrUnknownAccessKey) {
			return unmodelled("UnrecognizedClientException", "The security token included in the request is invalid.")
		}
		if err == nil {
			call.Principal = fresh.principal
		}
		return err
	})
	return call, nil
}

// Finish has the call's audit record committed, unless a change has committed
// it already, and returns what the caller is to be told: err, or the reason
// why a success may not be answered.
func (s *Service) Finish(ctx context.Context, call *Call, err error) error {
	if call.recorded {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	r := s.record(call, err)
	seq, auditErr := s.audit.Record(ctx, r)
	if auditErr != nil {
		return fmt.Errorf("recording %s: %w", call.Operation, auditErr)
	}
	call.recorded = true
	if err == nil && seq != call.head {
		err = s.reauthorize(ctx, call, seq)
	}
	if err == nil {
		s.usages.note(call, r)
	}
	return err
}

// reauthorize repeats the authorisations of a call that succeeded on rows
// which may have changed meanwhile (design: I5). When they no longer hold, a
// second record with the same requestID says that the answer was withheld.
func (s *Service) reauthorize(ctx context.Context, call *Call, seq int64) error {
	if err := s.cache.advance(ctx, seq); err != nil {
		return fmt.Errorf("following the change sequence: %w", err)
	}
	for _, check := range call.again {
		if err := check(ctx); err != nil {
			if _, auditErr := s.audit.Record(ctx, s.record(call, err)); auditErr != nil {
				return fmt.Errorf("recording that %s was withheld: %w", call.Operation, auditErr)
			}
			return err
		}
	}
	return nil
}

// commit writes change, the call's audit record and the events that come of it
// in one transaction. ErrConflict means that nothing was written.
func (s *Service) commit(ctx context.Context, call *Call, change *store.Change, events ...*audit.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
	defer cancel()
	seq, err := s.audit.Commit(ctx, s.record(call, nil), change, events...)
	if err != nil {
		return fromCommit(err)
	}
	call.recorded = true
	if err := s.cache.advance(ctx, seq); err != nil {
		// The change holds; this host follows it at the next call or tick.
		s.log.Warn("following own change", "operation", call.Operation, "error", err)
	}
	return nil
}

// changeAttempts bounds how often a change is tried again after another one
// has come first.
const changeAttempts = 5

// change runs attempt, which authorises the call on fresh rows and commits,
// until no other change has come between.
func (s *Service) change(ctx context.Context, call *Call, attempt func() error) error {
	for range changeAttempts {
		if err := s.refresh(ctx, call); err != nil {
			return err
		}
		err := attempt()
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return unmodelled("ThrottlingException", "The key is being changed by many requests at once. Try again.")
}

// refresh makes the caches as fresh as the database is now, for calls that
// show or change rows, and forgets what the call had noted before.
func (s *Service) refresh(ctx context.Context, call *Call) error {
	seq, err := s.db.ChangeSequence(ctx)
	if err != nil {
		return fmt.Errorf("reading the change sequence: %w", err)
	}
	if err := s.cache.advance(ctx, seq); err != nil {
		return err
	}
	call.resources, call.keys, call.response, call.extra = nil, nil, nil, nil
	call.again = call.again[:1]
	return call.again[0](ctx)
}

func (s *Service) record(call *Call, err error) *audit.Record {
	model, _ := awsjson.Operation(call.Operation)
	r := &audit.Record{
		UserIdentity: audit.UserIdentity{
			Type:        "IAMUser",
			PrincipalID: call.Principal.ID,
			ARN:         call.Principal.ARN,
			AccountID:   call.Principal.Account,
			AccessKeyID: call.AccessKeyID,
			UserName:    call.Principal.Name,
		},
		EventTime:           s.now().UTC(),
		EventName:           call.Operation,
		AWSRegion:           call.Region,
		SourceIPAddress:     call.SourceIP,
		UserAgent:           call.UserAgent,
		AdditionalEventData: call.extra,
		RequestID:           call.RequestID,
		ReadOnly:            model.ReadOnly,
		Resources:           call.resources,
		RecipientAccountID:  s.cfg.Account,
		TLSDetails:          call.TLS,
	}
	if r.Resources == nil {
		r.Resources = []audit.Resource{}
	}
	if call.Input != nil && len(call.Recorded) > 0 {
		r.RequestParameters = awsjson.AppendMembers(nil, call.Input, call.Recorded)
	}
	if err != nil {
		api := APIError(err)
		r.ErrorCode, r.ErrorMessage = api.ErrorCode(), api.ErrorMessage()
		if r.ErrorCode == "AccessDeniedException" {
			r.ErrorCode = "AccessDenied" // as CloudTrail shows it
		}
		r.AdditionalEventData = nil
		return r
	}
	r.ResponseElements = call.response
	return r
}

// touch notes that the call concerns a key, for the audit record.
func (call *Call) touch(account, arn string) {
	for _, r := range call.resources {
		if r.ARN == arn {
			return
		}
	}
	call.resources = append(call.resources, audit.Resource{AccountID: account, ARN: arn})
}

// answeredKey notes the responseElements that AWS logs for changes that
// answer nothing: the key's ARN.
func (call *Call) answeredKey(arn string) {
	call.response = appendStringMember(nil, "keyId", arn)
}

// usedMaterial notes which key material did the work.
func (call *Call) usedMaterial(id string) {
	call.extra = appendStringMember(nil, "keyMaterialId", id)
}

func appendStringMember(dst []byte, name, value string) []byte {
	dst = append(append(append(dst, `{"`...), name...), `":`...)
	dst, err := jsontext.AppendQuote(dst, value)
	if err != nil { // invalid UTF-8: AppendQuote has put U+FFFD in its place
		slog.Debug("quoting an audit value", "error", err)
	}
	return append(dst, '}')
}
