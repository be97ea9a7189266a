package kms

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/jackc/pgx/v5"
)

func enableRotation(t *testing.T, f *fleet, s *Service, id string, days int32) {
	t.Helper()
	_, err := do(f, s, "EnableKeyRotation", (*Service).EnableKeyRotation, &awskms.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: &days})
	if err != nil {
		t.Fatal(err)
	}
}

// wantOpens demands that every blob decrypts, the i-th with the i-th material.
func wantOpens(t *testing.T, f *fleet, s *Service, blobs [][]byte) {
	t.Helper()
	seen := map[string]bool{}
	for i, blob := range blobs {
		out, err := do(f, s, "Decrypt", (*Service).Decrypt, &awskms.DecryptInput{CiphertextBlob: blob})
		if err != nil || string(out.Plaintext) != fmt.Sprint("text ", i) {
			t.Fatalf("blob %d: %v", i, err)
		}
		if seen[*out.KeyMaterialId] {
			t.Errorf("blob %d was sealed with the material of an earlier one", i)
		}
		seen[*out.KeyMaterialId] = true
	}
}

func sweep(t *testing.T, s *Service) {
	t.Helper()
	if err := s.rotateDue(t.Context()); err != nil {
		t.Error(err)
	}
}

func status(t *testing.T, f *fleet, s *Service, id string) *awskms.GetKeyRotationStatusOutput {
	t.Helper()
	out, err := do(f, s, "GetKeyRotationStatus", (*Service).GetKeyRotationStatus, &awskms.GetKeyRotationStatusInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func materials(t *testing.T, f *fleet, s *Service, id string) []types.RotationsListEntry {
	t.Helper()
	out, err := do(f, s, "ListKeyRotations", (*Service).ListKeyRotations,
		&awskms.ListKeyRotationsInput{KeyId: &id, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial})
	if err != nil {
		t.Fatal(err)
	}
	return out.Rotations
}

// rotateEvents reads the RotateKey events of a key, in order.
func rotateEvents(t *testing.T, s *Service, id string) (details []map[string]string) {
	t.Helper()
	rows, _ := s.db.Pool().Query(t.Context(), `SELECT record->>'serviceEventDetails' FROM audit_records
		WHERE record->>'eventName' = 'RotateKey' AND record->'serviceEventDetails'->>'keyId' = $1 ORDER BY committed_at, seq`, id)
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		var d map[string]string
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		details = append(details, d)
	}
	return details
}

// Forty years of a key: it rotates once a year, never early, and everything
// that was ever sealed opens.
func TestAutomaticRotation(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	enableRotation(t, f, s, id, 365)
	blobs := [][]byte{seal(t, f, s, id, "text 0")}
	const years = 40
	for year := range years {
		f.pass(364.9)
		sweep(t, s)
		if n := len(materials(t, f, s, id)); n != year+1 {
			t.Fatalf("a little before rotation %d there are %d materials", year+1, n)
		}
		f.pass(0.1)
		sweep(t, s)
		sweep(t, s)
		blobs = append(blobs, seal(t, f, s, id, fmt.Sprint("text ", year+1)))
	}
	wantOpens(t, f, s, blobs)
	wantOpens(t, f, f.host(t, "b"), blobs) // with nothing cached
	all := materials(t, f, s, id)
	events := rotateEvents(t, s, id)
	if len(all) != years+1 || len(events) != years {
		t.Fatalf("%d materials, %d events", len(all), len(events))
	}
	for i, e := range all {
		first, last := i == 0, i == years
		if (e.RotationDate == nil) != first || (e.RotationType == types.RotationTypeAutomatic) == first ||
			(e.KeyMaterialState == types.KeyMaterialStateCurrent) != last {
			t.Errorf("material %d: %+v", i, e)
		}
		if !first && !e.RotationDate.Equal(f.started.Add(time.Duration(i)*365*day)) {
			t.Errorf("rotation %d on %v", i, e.RotationDate)
		}
		if !first && (events[i-1]["previousKeyMaterialId"] != *all[i-1].KeyMaterialId || events[i-1]["currentKeyMaterialId"] != *e.KeyMaterialId ||
			events[i-1]["rotationType"] != "AUTOMATIC" || events[i-1]["keyOrigin"] != "AWS_KMS") {
			t.Errorf("event %d: %v", i, events[i-1])
		}
	}
	if next := status(t, f, s, id).NextRotationDate; !next.Equal(f.started.Add((years + 1) * 365 * day)) {
		t.Errorf("next rotation on %v", next)
	}
}

// Many hosts that sweep at once, again and again, rotate each due key once.
func TestRotationIsOnceInAFleet(t *testing.T) {
	f := newFleet(t)
	var hosts []*Service
	for i := range 4 {
		hosts = append(hosts, f.host(t, fmt.Sprint("host-", i)))
	}
	var ids []string
	for i := range 12 {
		ids = append(ids, createKey(t, f, hosts[i%4]))
		enableRotation(t, f, hosts[i%4], ids[i], 90)
	}
	for round := range 3 {
		f.pass(90)
		var group sync.WaitGroup
		for _, s := range hosts {
			group.Go(func() {
				for range 2 {
					sweep(t, s)
				}
			})
		}
		group.Wait()
		for _, id := range ids {
			if all, events := materials(t, f, hosts[0], id), rotateEvents(t, hosts[0], id); len(all) != round+2 || len(events) != round+1 {
				t.Fatalf("round %d: %d materials, %d events", round, len(all), len(events))
			}
		}
	}
}

// What was missed while nothing ran, or while the key was disabled, is made
// up for by one rotation.
func TestRotationCatchesUp(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	count := func(id string) int { return len(materials(t, f, s, id)) - 1 }
	late, veryLate, off := createKey(t, f, s), createKey(t, f, s), createKey(t, f, s)
	enableRotation(t, f, s, late, 365)
	enableRotation(t, f, s, veryLate, 90)
	enableRotation(t, f, s, off, 365)
	if _, err := do(f, s, "DisableKey", (*Service).DisableKey, &awskms.DisableKeyInput{KeyId: &off}); err != nil {
		t.Fatal(err)
	}
	f.pass(400)
	sweep(t, s)
	sweep(t, s)
	if count(late) != 1 || count(veryLate) != 1 || count(off) != 0 {
		t.Errorf("rotations: %d, %d, %d", count(late), count(veryLate), count(off))
	}
	if next := status(t, f, s, late).NextRotationDate; !next.Equal(f.started.Add(730 * day)) {
		t.Errorf("35 days late: next on %v", next)
	}
	if next := status(t, f, s, veryLate).NextRotationDate; !next.Equal(f.started.Add(490 * day)) {
		t.Errorf("several periods late: next on %v", next)
	}
	if out := status(t, f, s, off); !out.KeyRotationEnabled || *out.RotationPeriodInDays != 365 {
		t.Errorf("status of a disabled key: %+v", out)
	}
	if _, err := do(f, s, "EnableKey", (*Service).EnableKey, &awskms.EnableKeyInput{KeyId: &off}); err != nil {
		t.Fatal(err)
	}
	sweep(t, s)
	if count(off) != 1 {
		t.Errorf("a key that was enabled when overdue has rotated %d times", count(off))
	}
}

// A key that is pending deletion does not rotate, and says so; when the
// deletion is cancelled it has its schedule back.
func TestRotationPendingDeletion(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	enableRotation(t, f, s, id, 90)
	f.pass(85)
	if _, err := do(f, s, "ScheduleKeyDeletion", (*Service).ScheduleKeyDeletion, &awskms.ScheduleKeyDeletionInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	f.pass(10)
	sweep(t, s)
	if out := status(t, f, s, id); out.KeyRotationEnabled || out.NextRotationDate != nil || out.RotationPeriodInDays != nil {
		t.Errorf("pending deletion: %+v", out)
	}
	if _, err := do(f, s, "CancelKeyDeletion", (*Service).CancelKeyDeletion, &awskms.CancelKeyDeletionInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	if out := status(t, f, s, id); !out.KeyRotationEnabled || *out.RotationPeriodInDays != 90 {
		t.Errorf("cancelled: %+v", out)
	}
	if n := len(materials(t, f, s, id)); n != 1 {
		t.Errorf("%d materials", n)
	}
}

func TestEnableKeyRotation(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	if out := status(t, f, s, id); out.KeyRotationEnabled || out.NextRotationDate != nil || *out.KeyId != s.keyARN(testAccount, testRegion, id) {
		t.Errorf("new key: %+v", out)
	}
	want := func(days int32, next time.Time) {
		t.Helper()
		if out := status(t, f, s, id); !out.KeyRotationEnabled || *out.RotationPeriodInDays != days || !out.NextRotationDate.Equal(next) {
			t.Errorf("%+v, want %d days, next on %v", out, days, next)
		}
	}
	if _, err := do(f, s, "EnableKeyRotation", (*Service).EnableKeyRotation, &awskms.EnableKeyRotationInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	want(365, f.started.Add(365*day))
	f.pass(10)
	enableRotation(t, f, s, id, 365) // the same again puts nothing off
	want(365, f.started.Add(365*day))
	enableRotation(t, f, s, id, 180)
	want(180, f.started.Add(190*day))
	if _, err := do(f, s, "DisableKeyRotation", (*Service).DisableKeyRotation, &awskms.DisableKeyRotationInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	f.pass(1000)
	sweep(t, s)
	if out := status(t, f, s, id); out.KeyRotationEnabled || len(materials(t, f, s, id)) != 1 {
		t.Errorf("switched off: %+v", out)
	}
}

// One key that cannot be rotated does not keep the others from it.
func TestSweepGoesOn(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	var ids []string
	for range 3 {
		ids = append(ids, createKey(t, f, s))
		enableRotation(t, f, s, ids[len(ids)-1], 90)
	}
	if _, err := s.db.Pool().Exec(t.Context(), "UPDATE keys SET description = 'x' WHERE id = $1", min(ids[0], ids[1], ids[2])); err != nil {
		t.Fatal(err)
	}
	f.pass(91)
	if err := s.rotateDue(t.Context()); err == nil {
		t.Error("the sweep does not report the altered row")
	}
	rotated := 0
	for _, id := range ids {
		rotated += len(rotateEvents(t, s, id))
	}
	if rotated != 2 {
		t.Errorf("%d keys rotated, want 2", rotated)
	}
}
