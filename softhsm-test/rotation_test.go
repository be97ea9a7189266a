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
)

// allMaterial lists the key's material, the oldest first.
func allMaterial(t testing.TB, c *kms.Client, id string) (all []types.RotationsListEntry) {
	t.Helper()
	pages := kms.NewListKeyRotationsPaginator(c, &kms.ListKeyRotationsInput{
		KeyId: &id, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial, Limit: aws.Int32(2),
	})
	for pages.HasMorePages() {
		all = append(all, must(pages.NextPage(context.Background()))(t).Rotations...)
	}
	return all
}

func TestRotationOnDemand(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	ctx := context.Background()
	key := createKey(t, c)
	blobs := [][]byte{encrypt(t, c, *key.KeyId, marker, nil)}
	for range 4 {
		out := must(c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.Arn}))(t)
		if aws.ToString(out.KeyId) != *key.Arn {
			t.Errorf("answer %q", aws.ToString(out.KeyId))
		}
		blobs = append(blobs, encrypt(t, c, *key.KeyId, marker, nil))
	}
	for _, blob := range blobs {
		wantDecrypt(t, c, blob, marker, nil)
	}
	all := allMaterial(t, c, *key.KeyId)
	if len(all) != 5 || *all[0].KeyMaterialId != *key.CurrentKeyMaterialId || all[0].RotationDate != nil || all[0].RotationType != "" {
		t.Fatalf("material %+v", all)
	}
	for i, e := range all {
		state := types.KeyMaterialStateNonCurrent
		if i == 4 {
			state = types.KeyMaterialStateCurrent
		}
		if e.KeyMaterialState != state || *e.KeyId != *key.Arn || (i > 0 && (e.RotationType != types.RotationTypeOnDemand || e.RotationDate == nil)) {
			t.Errorf("material %d: %+v", i, e)
		}
		out := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blobs[i]}))(t)
		if *out.KeyMaterialId != *e.KeyMaterialId {
			t.Errorf("blob %d was opened with material %s", i, *out.KeyMaterialId)
		}
	}
	if now := describe(t, c, *key.KeyId); *now.CurrentKeyMaterialId != *all[4].KeyMaterialId {
		t.Errorf("current material %s", *now.CurrentKeyMaterialId)
	}
	out := must(c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: key.KeyId}))(t)
	if len(out.Rotations) != 4 || out.Truncated {
		t.Errorf("rotations %+v", out)
	}
	events := d.records(t, "record->>'eventName' = 'RotateKey' AND record->'serviceEventDetails'->>'keyId' = $1", *key.KeyId)
	if len(events) != 4 || events[0].EventType != "AwsServiceEvent" || events[0].RequestID != "" || events[0].Resources[0].ARN != *key.Arn {
		t.Errorf("events %+v", events)
	}
	moved := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blobs[0], DestinationKeyId: key.KeyId}))(t)
	if *moved.SourceKeyMaterialId != *all[0].KeyMaterialId || *moved.DestinationKeyMaterialId != *all[4].KeyMaterialId {
		t.Errorf("ReEncrypt to the same key: %+v", moved)
	}
	d.wantChains(t)
}

func TestRotationInput(t *testing.T) {
	d := shared(t)
	c := d.client(t)
	ctx := context.Background()
	key := createKey(t, c)
	for _, days := range []int32{89, 2561, 0, -1} {
		_, err := c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key.KeyId, RotationPeriodInDays: &days})
		wantCode(t, err, "ValidationException", "rotationPeriodInDays")
	}
	_, err := c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: key.KeyId, Marker: aws.String("x")})
	wantError[*types.InvalidMarkerException](t, err, "")
	_, err = c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: key.KeyId, Limit: aws.Int32(1001)})
	wantCode(t, err, "ValidationException", "limit")
	_, err = c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: key.KeyId, IncludeKeyMaterial: "SOME"})
	wantCode(t, err, "ValidationException", "includeKeyMaterial")
	if out := must(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key.KeyId}))(t); out.KeyRotationEnabled {
		t.Errorf("refused calls switched rotation on: %+v", out)
	}
	for _, days := range []int32{90, 2560} {
		must(c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key.KeyId, RotationPeriodInDays: &days}))(t)
		out := must(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key.KeyId}))(t)
		if !out.KeyRotationEnabled || aws.ToInt32(out.RotationPeriodInDays) != days || daysUntil(out.NextRotationDate) != int(days) {
			t.Errorf("%+v", out)
		}
	}
	missing := "00000000-0000-4000-8000-000000000000"
	_, err = c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &missing})
	wantError[*types.NotFoundException](t, err, "does not exist")
	_, err = c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: aws.String("alias/x")})
	wantError[*types.NotFoundException](t, err, "")
}

// Two real hosts and a clock that jumps over years: each due key is rotated
// once by the sweep, a host that was down for years included.
func TestAutomaticRotationInAFleet(t *testing.T) {
	d := newDeployment(t, "failpoint")
	clock := filepath.Join(d.dir, "clock")
	set := func(ahead string) { must(0, os.WriteFile(clock, []byte(ahead), 0o600))(t) }
	set("0s")
	both := func() (*server, *server) {
		return d.serve(t, "TRENT_HOST=host-a", "TRENT_TEST_CLOCK="+clock), d.serve(t, "TRENT_HOST=host-b", "TRENT_TEST_CLOCK="+clock)
	}
	a, b := both()
	c := d.client(t)
	ctx := context.Background()
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	must(c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key.KeyId}))(t)
	waitMaterials := func(c *kms.Client, want int) {
		t.Helper()
		var n int
		for range 600 {
			if n = len(allMaterial(t, c, *key.KeyId)); n >= want {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n != want {
			t.Fatalf("%d materials, want %d", n, want)
		}
	}
	set("8761h") // a year
	waitMaterials(c, 2)
	must(0, a.stop())(t)
	must(0, b.stop())(t)
	set("43800h") // five years, of which four passed while nothing ran
	a, b = both()
	c = d.client(t)
	waitMaterials(c, 3)
	time.Sleep(11 * time.Second) // another sweep finds nothing to do
	waitMaterials(c, 3)
	wantDecrypt(t, c, blob, marker, nil)
	if events := d.records(t, "record->>'eventName' = 'RotateKey'"); len(events) != 2 {
		t.Errorf("%d RotateKey events", len(events))
	}
	d.wantChains(t)
	must(0, a.stop())(t)
	must(0, b.stop())(t)
}

// A rotation that is killed on its way leaves the key as it was, and one that
// was committed leaves it with exactly one more backing key.
func TestCrashInRotation(t *testing.T) {
	d, key, blob := stoppedWithKey(t)
	want := 1
	for _, point := range []string{"hbk.generated", "hbk.wrapped", "rotation.sealed", "change.before_commit", "change.after_commit"} {
		t.Run(point, func(t *testing.T) {
			err := d.kills(t, point, func(c *kms.Client) error {
				_, err := c.RotateKeyOnDemand(context.Background(), &kms.RotateKeyOnDemandInput{KeyId: key.KeyId})
				return err
			})
			if err == nil {
				t.Fatal("a dead server answered")
			}
			if point == "change.after_commit" {
				want++
			}
			s := d.serve(t)
			c := d.client(t)
			if n := len(allMaterial(t, c, *key.KeyId)); n != want {
				t.Errorf("%d materials, want %d", n, want)
			}
			if n := len(d.records(t, "record->>'eventName' = 'RotateKey'")); n != want-1 {
				t.Errorf("%d events, want %d", n, want-1)
			}
			wantDecrypt(t, c, blob, marker, nil)
			wantAllKeysWork(t, c)
			d.wantNoOrphans(t)
			d.wantChains(t)
			must(0, s.stop())(t)
		})
	}
}

// The last use is noted on shutdown, and seen by the next process.
func TestLastUsage(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	c := d.client(t)
	ctx := context.Background()
	key, unused := createKey(t, c), createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	wantDecrypt(t, c, blob, marker, nil)
	must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId}))(t) // does not count
	want := func(c *kms.Client) {
		t.Helper()
		out := must(c.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: key.Arn}))(t)
		last := out.KeyLastUsage
		if *out.KeyId != *key.KeyId || !out.KeyCreationDate.Equal(*key.CreationDate) || !out.TrackingStartDate.Equal(*key.CreationDate) ||
			last == nil || last.Operation != "Decrypt" || time.Since(*last.Timestamp) > time.Minute {
			t.Fatalf("%+v, %+v", out, last)
		}
		of := d.records(t, "record->>'eventID' = $1", aws.ToString(last.CloudTrailEventId))
		if len(of) != 1 || of[0].RequestID != aws.ToString(last.KmsRequestId) || of[0].EventName != "Decrypt" {
			t.Errorf("event id %v names %+v", *last.CloudTrailEventId, of)
		}
		none := must(c.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: unused.KeyId}))(t)
		if none.KeyLastUsage == nil || none.KeyLastUsage.Timestamp != nil || none.KeyLastUsage.Operation != "" {
			t.Errorf("unused key: %+v", none.KeyLastUsage)
		}
	}
	want(c)
	must(0, s.stop())(t)
	d.serve(t)
	want(d.client(t))
}
