package kms

import (
	"context"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestGetKeyLastUsage(t *testing.T) {
	f := newFleet(t)
	s, other := f.host(t, "a"), f.host(t, "b")
	id, to := createKey(t, f, s), createKey(t, f, s)
	last := func(s *Service, id string) *awskms.GetKeyLastUsageOutput {
		t.Helper()
		out, err := do(f, s, "GetKeyLastUsage", (*Service).GetKeyLastUsage, &awskms.GetKeyLastUsageInput{KeyId: &id})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := last(s, id); *out.KeyLastUsage != (types.KeyLastUsageData{}) || *out.KeyId != id ||
		!out.KeyCreationDate.Equal(f.started) || out.TrackingStartDate.Before(f.started) {
		t.Errorf("unused key: %+v", out)
	}
	blob := seal(t, f, s, id, "x")
	f.pass(1)
	_, err := do(f, s, "Decrypt", (*Service).Decrypt, &awskms.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"a": "b"}})
	if err == nil {
		t.Fatal("wrong context accepted")
	}
	if got := last(s, id).KeyLastUsage; got.Operation != "Encrypt" || !got.Timestamp.Equal(f.started) {
		t.Errorf("after a failed call: %+v", got)
	}
	if got := last(other, id).KeyLastUsage; got.Timestamp != nil {
		t.Errorf("another host knows what was not written: %+v", got)
	}
	if err := s.usages.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = do(f, other, "ReEncrypt", (*Service).ReEncrypt, &awskms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &to})
	if err != nil {
		t.Fatal(err)
	}
	if got := last(s, id).KeyLastUsage; got.Operation != "Encrypt" {
		t.Errorf("written: %+v", got)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	other.usages.run(ended, time.Minute, func(err error) { t.Error(err) }) // as when a host stops
	for _, id := range []string{id, to} {
		got := last(s, id).KeyLastUsage
		if got.Operation != "ReEncrypt" || !got.Timestamp.Equal(f.now()) {
			t.Errorf("both keys of ReEncrypt: %+v", got)
		}
		var event string
		err := s.db.Pool().QueryRow(t.Context(), "SELECT record->>'eventName' FROM audit_records WHERE record->>'eventID' = $1 AND record->>'requestID' = $2",
			aws.ToString(got.CloudTrailEventId), aws.ToString(got.KmsRequestId)).Scan(&event)
		if err != nil || event != "ReEncrypt" {
			t.Errorf("event id %v names %q, %v", got.CloudTrailEventId, event, err)
		}
	}
}
