package kms

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/jackc/pgx/v5"
)

// A primary key waits for its replicas, whose own deletion it outlives by its
// whole waiting period.
func TestReplicaDeletion(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	away, third := f.in(awayRegion), f.in(thirdRegion)
	id := multiRegionKey(t, f, s, nil)
	mustReplicate(t, f, s, id, awayRegion, thirdRegion)
	blob := seal(t, f, s, id, "text 0")
	schedule := func(f *fleet, days int32) *awskms.ScheduleKeyDeletionOutput {
		t.Helper()
		out, err := do(f, s, "ScheduleKeyDeletion", (*Service).ScheduleKeyDeletion, &awskms.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: &days})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	sweepDeletions := func() {
		t.Helper()
		if err := s.deleteDue(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if out := schedule(f, 10); out.KeyState != types.KeyStatePendingReplicaDeletion || out.DeletionDate != nil || *out.PendingWindowInDays != 10 {
		t.Errorf("answer %+v", out)
	}
	if m := metadata(t, f, s, id); m.DeletionDate != nil || aws.ToInt32(m.PendingDeletionWindowInDays) != 10 || m.KeyState != types.KeyStatePendingReplicaDeletion {
		t.Errorf("%+v", m)
	}
	wantCode(t, opens(f, s, blob), "KMSInvalidStateException")
	wantCode(t, onlyError(replicate(f, s, id, "sa-east-1")), "KMSInvalidStateException")
	wantCode(t, setPrimary(f, s, id, awayRegion), "KMSInvalidStateException")
	if _, err := do(f, s, "CancelKeyDeletion", (*Service).CancelKeyDeletion, &awskms.CancelKeyDeletionInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	wantState(t, f, s, id, types.KeyStateDisabled)
	schedule(f, 10)
	f.pass(100)
	sweepDeletions()
	wantState(t, f, s, id, types.KeyStatePendingReplicaDeletion)
	if out := schedule(away, 7); out.KeyState != types.KeyStatePendingDeletion || !out.DeletionDate.Equal(f.now().Add(7*day)) {
		t.Errorf("answer for a replica %+v", out)
	}
	f.pass(7)
	sweepDeletions()
	wantRoles(t, f, s, id, testRegion, thirdRegion)
	wantCode(t, opens(away, s, blob), "AccessDeniedException")
	wantState(t, f, s, id, types.KeyStatePendingReplicaDeletion)
	if err := opens(third, s, blob); err != nil {
		t.Errorf("the replica that is left: %v", err)
	}
	schedule(third, 7)
	f.pass(8)
	sweepDeletions()
	wantRoles(t, f, s, id, testRegion)
	if m := metadata(t, f, s, id); m.KeyState != types.KeyStatePendingDeletion || m.DeletionDate == nil || !m.DeletionDate.Equal(f.now().Add(10*day)) || m.PendingDeletionWindowInDays != nil {
		t.Errorf("after the last replica: %+v", m)
	}
	f.pass(10)
	sweepDeletions()
	_, err := do(f, s, "DescribeKey", (*Service).DescribeKey, &awskms.DescribeKeyInput{KeyId: &id})
	wantCode(t, err, "NotFoundException")
	rows, _ := s.db.Pool().Query(t.Context(), "SELECT (SELECT count(*) FROM backing_keys) + (SELECT count(*) FROM encryption_budgets)")
	if n, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int]); err != nil || n != 0 {
		t.Errorf("%d rows are left, %v", n, err)
	}
	if n := recorded(t, s, "DeleteKey", testRegion) + recorded(t, s, "DeleteKey", awayRegion) + recorded(t, s, "DeleteKey", thirdRegion); n != 3 {
		t.Errorf("%d records of DeleteKey", n)
	}
}
