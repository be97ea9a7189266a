package kms

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

func TestRotateKeyOnDemand(t *testing.T) {
	f := newFleet(t)
	s, other := f.host(t, "a"), f.host(t, "b")
	id := createKey(t, f, s)
	enableRotation(t, f, s, id, 365)
	rotate := func(s *Service) error {
		out, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id})
		if err == nil && *out.KeyId != s.keyARN(testAccount, testRegion, id) {
			t.Errorf("answer %+v", out)
		}
		return err
	}
	blobs := [][]byte{seal(t, f, other, id, "text 0")}
	for i := range maxOnDemandRotations {
		host := []*Service{s, other}[i%2]
		if err := rotate(host); err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, seal(t, f, host, id, fmt.Sprint("text ", i+1)))
	}
	wantOpens(t, f, other, blobs)
	var limit *types.LimitExceededException
	if err := rotate(s); !errors.As(err, &limit) {
		t.Errorf("one too many: %v", err)
	}
	if next := status(t, f, s, id).NextRotationDate; !next.Equal(f.started.Add(365 * day)) {
		t.Errorf("the schedule moved to %v", next)
	}
	events := rotateEvents(t, s, id)
	if len(events) != maxOnDemandRotations || events[0]["rotationType"] != "ON_DEMAND" {
		t.Errorf("%d events, %v", len(events), events[0])
	}
	out, err := do(f, s, "ListKeyRotations", (*Service).ListKeyRotations, &awskms.ListKeyRotationsInput{KeyId: &id, Limit: aws.Int32(20)})
	if err != nil || len(out.Rotations) != 20 || !out.Truncated {
		t.Fatalf("first page: %+v, %v", out, err)
	}
	out, err = do(f, s, "ListKeyRotations", (*Service).ListKeyRotations, &awskms.ListKeyRotationsInput{KeyId: &id, Limit: aws.Int32(20), Marker: out.NextMarker})
	if err != nil || len(out.Rotations) != 5 || out.Truncated || out.NextMarker != nil {
		t.Errorf("second page: %+v, %v", out, err)
	}
	id = createKey(t, f, s)
	enableRotation(t, f, s, id, 90)
	f.pass(90 - 1.0/96) // 15 minutes before it is due
	var conflict *types.ConflictException
	if err := rotate(s); !errors.As(err, &conflict) {
		t.Errorf("beside an automatic rotation: %v", err)
	}
}

// Rotations on demand by many hosts at once are each made, or refused.
func TestRotateKeyOnDemandAtOnce(t *testing.T) {
	f := newFleet(t)
	hosts := []*Service{f.host(t, "a"), f.host(t, "b"), f.host(t, "c")}
	id := createKey(t, f, hosts[0])
	var done atomic.Int64
	var group sync.WaitGroup
	for _, s := range hosts {
		group.Go(func() {
			for range 4 {
				if _, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id}); err == nil {
					done.Add(1)
				} else if APIError(err).ErrorCode() != "ThrottlingException" {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if n, events := len(materials(t, f, hosts[0], id)), len(rotateEvents(t, hosts[0], id)); int64(n) != done.Load()+1 || n != events+1 {
		t.Errorf("%d answers, %d materials, %d events", done.Load(), n, events)
	}
}
