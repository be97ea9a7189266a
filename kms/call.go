package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/aws/smithy-go"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/awsjson"
	"github.com/trent-kms/trent/sigv4"
	"github.com/trent-kms/trent/store"
)

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

	// again repeats the call's decisions on fresh rows.
	again []func(context.Context) error

	// recipient is what the input's Recipient comes to; see Service.attested.
	recipient recipient

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
	call := &Call{AccessKeyID: id.AccessKeyID, Region: id.Region, head: head}
	if err := s.identify(ctx, call); err != nil {
		return nil, err
	}
	return call, nil
}

// identify sets call.Principal from the access key as it is now.
func (s *Service) identify(ctx context.Context, call *Call) error {
	cred, err := s.credential(ctx, call.AccessKeyID)
	if errors.Is(err, sigv4.ErrUnknownAccessKey) {
		return unmodelled("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	if err == nil {
		call.Principal = cred.principal
	}
	return err
}

// attempts bounds how often a call is run again because rows that it was
// decided on have changed meanwhile.
const attempts = 5

// errOvertaken says that what a call was decided on has changed, and that it
// must run again on fresh rows to know its answer.
var errOvertaken = errors.New("overtaken by a change")

// Do runs an operation and has the call recorded, whatever comes of it; only
// then may its answer leave. A refusal that was decided on cached rows is
// decided again on fresh ones if any have changed. A success whose decision
// no longer holds once it is recorded is withheld: a second record, with the
// same requestID, has what the caller is told instead.
func (s *Service) Do(ctx context.Context, call *Call, run func() ([]byte, error)) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		answer, err := guard(call, run)
		if err != nil && attempt < attempts && s.stale(ctx, call, err) {
			continue
		}
		err = s.finish(ctx, call, err)
		if err == nil {
			return answer, nil
		}
		clear(answer) // may hold plaintext
		if !errors.Is(err, errOvertaken) {
			return nil, err
		}
		if attempt >= attempts { // the records so far say success
			call.recorded = false
			return nil, s.finish(ctx, call, fmt.Errorf("%s: %w", call.Operation, store.ErrConflict))
		}
		if err := s.restart(ctx, call); err != nil {
			return nil, s.finish(ctx, call, err)
		}
	}
}

// guard turns a panic into an error of ours.
func guard(call *Call, run func() ([]byte, error)) (answer []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			answer, err = nil, fmt.Errorf("panic in %s: %v\n%s", call.Operation, p, debug.Stack())
		}
	}()
	return run()
}

// stale reports whether a refusal was decided on rows that have changed, and
// makes call ready to run again if so.
func (s *Service) stale(ctx context.Context, call *Call, err error) bool {
	if call.recorded || APIError(err).ErrorFault() != smithy.FaultClient {
		return false
	}
	seq, err := s.db.ChangeSequence(ctx)
	if err != nil || seq == call.head {
		return false
	}
	return s.cache.advance(ctx, seq) == nil && s.restart(ctx, call) == nil
}

// restart makes call ready to run on the rows that the caches reflect now.
func (s *Service) restart(ctx context.Context, call *Call) error {
	call.head = s.Head()
	call.recorded = false
	call.again, call.resources, call.keys, call.response, call.extra = nil, nil, nil, nil, nil
	return s.identify(ctx, call)
}

// refresh makes the caches as fresh as the database is now, for calls that
// show or change rows, and restarts call on them.
func (s *Service) refresh(ctx context.Context, call *Call) error {
	seq, err := s.db.ChangeSequence(ctx)
	if err != nil {
		return fmt.Errorf("reading the change sequence: %w", err)
	}
	if err := s.cache.advance(ctx, seq); err != nil {
		return err
	}
	return s.restart(ctx, call)
}

// finish has the call's audit record committed, unless a change has committed
// it already, and returns what the caller is to be told: err, or the reason
// why a success may not be answered.
func (s *Service) finish(ctx context.Context, call *Call, err error) error {
	if call.recorded {
		return err
	}
	// The record is due although the client may have gone; the writer bounds
	// each commit in time.
	ctx = context.WithoutCancel(ctx)
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

// reauthorize repeats the decisions of a call that succeeded on rows which may
// have changed meanwhile (design: I5).
func (s *Service) reauthorize(ctx context.Context, call *Call, seq int64) error {
	err := s.cache.advance(ctx, seq)
	if err == nil {
		err = s.identify(ctx, call)
	}
	for i := 0; err == nil && i < len(call.again); i++ {
		err = call.again[i](ctx)
	}
	if err == nil || errors.Is(err, errOvertaken) {
		return err
	}
	if _, auditErr := s.audit.Record(ctx, s.record(call, err)); auditErr != nil {
		return fmt.Errorf("recording that %s was withheld: %w", call.Operation, auditErr)
	}
	return err
}

// commit writes change, the call's audit record and the events that come of it
// in one transaction, if the caller still has the rights it had. ErrConflict
// means that nothing was written.
func (s *Service) commit(ctx context.Context, call *Call, change *store.Change, events ...*audit.Record) error {
	ctx = context.WithoutCancel(ctx) // as in finish
	change.RequireRights(call.head)
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

// change runs attempt, which authorises the call on fresh rows and commits,
// until no other change has come between.
func (s *Service) change(ctx context.Context, call *Call, attempt func() error) error {
	for range attempts {
		if err := s.refresh(ctx, call); err != nil {
			return err
		}
		err := attempt()
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("%s: %w", call.Operation, store.ErrConflict)
}

// usualParameters has room in bytes for the requestParameters of a cryptographic
// operation.
const usualParameters = 192

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
		AdditionalEventData: call.additional(),
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
		r.RequestParameters = awsjson.AppendMembers(make([]byte, 0, usualParameters), call.Input, call.Recorded)
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
	call.response = stringMember("keyId", arn)
}

// usedMaterial notes which key material did the work.
func (call *Call) usedMaterial(id string) {
	call.extra = stringMember("keyMaterialId", id)
}

// stringMember is a JSON object with one member.
func stringMember(name, value string) jsontext.Value {
	object := make([]byte, 0, len(name)+len(value)+len(`{"":""}`))
	object = append(append(append(object, `{"`...), name...), `":`...)
	object, err := jsontext.AppendQuote(object, value)
	if err != nil { // invalid UTF-8: AppendQuote has put U+FFFD in its place
		slog.Debug("quoting an audit value", "error", err)
	}
	return append(object, '}')
}
