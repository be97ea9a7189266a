package softhsmtest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/jackc/pgx/v5"
)

// A key whose waiting period of seven days is over is gone, with its EKT and
// its alias; one that was cancelled, or is not due, is still there.
func TestDeletionWhenDue(t *testing.T) {
	d := newDeployment(t, "failpoint")
	clock := filepath.Join(d.dir, "clock")
	set := func(ahead string) { must(0, os.WriteFile(clock, []byte(ahead), 0o600))(t) }
	set("0s")
	d.serve(t, "TRENT_TEST_CLOCK="+clock)
	c := d.racingClient(t)
	ctx := context.Background()
	key, names := namedKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	cancelled, later := createKey(t, c), createKey(t, c)
	for id, days := range map[*string]int32{key.KeyId: 7, cancelled.KeyId: 7, later.KeyId: 8} {
		must(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: id, PendingWindowInDays: &days}))(t)
	}
	must(c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: cancelled.KeyId}))(t)
	set("167h59m")
	if seen := describe(t, c, *key.KeyId); seen.KeyState != types.KeyStatePendingDeletion {
		t.Fatalf("a minute before it is due the key is %s", seen.KeyState)
	}
	set("168h1m")
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantOneOf(t, err, "NotFoundException KMSInvalidStateException AccessDeniedException", "")
	waitGone(t, c, *key.KeyId)
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantOneOf(t, err, "NotFoundException AccessDeniedException", "does not exist")
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: aws.String(names["alias name"]), Plaintext: []byte("x")})
	wantError[*types.NotFoundException](t, err, "is not found.")
	_, err = c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId})
	wantError[*types.NotFoundException](t, err, "")
	d.wantRowsGone(t, *key.KeyId)
	wantDeleteRecord(t, d, key)
	must(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: cancelled.KeyId}))(t)
	encrypt(t, c, *cancelled.KeyId, marker, nil)
	if seen := describe(t, c, *later.KeyId); seen.KeyState != types.KeyStatePendingDeletion {
		t.Errorf("the key of 8 days is %s", seen.KeyState)
	}
	d.wantChains(t)
}

// waitGone waits for the sweep that deletes the key.
func waitGone(t *testing.T, c *kms.Client, id string) {
	t.Helper()
	var err error
	for range 600 {
		if _, err = c.DescribeKey(context.Background(), &kms.DescribeKeyInput{KeyId: &id}); err != nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	wantError[*types.NotFoundException](t, err, "does not exist")
}

func (d *deployment) wantRowsGone(t *testing.T, keyID string) {
	t.Helper()
	rows, err := d.pool.Query(context.Background(), `SELECT (SELECT count(*) FROM keys WHERE id = $1)
		+ (SELECT count(*) FROM backing_keys WHERE key_id = $1) + (SELECT count(*) FROM aliases WHERE key_id = $1)`, keyID)
	if err != nil {
		t.Fatal(err)
	}
	if left := must(pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64]))(t); left != 0 {
		t.Errorf("%d rows of the deleted key are left", left)
	}
}

func wantDeleteRecord(t *testing.T, d *deployment, key *types.KeyMetadata) {
	t.Helper()
	of := d.records(t, "record->>'eventName' = 'DeleteKey'")
	if len(of) != 1 {
		t.Fatalf("%d DeleteKey records, want 1", len(of))
	}
	if of[0].EventType != "AwsServiceEvent" || of[0].RequestID != "" ||
		len(of[0].Resources) != 1 || of[0].Resources[0].ARN != *key.Arn {
		t.Errorf("DeleteKey record %+v", of[0])
	}
}
