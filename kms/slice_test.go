package kms

import (
	"errors"
	"fmt"
	"testing"
	"time"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
)

// forge writes n copies of a key's row that come before all others, and have to
// be refused.
func forge(t *testing.T, s *Service, id string, n int, due string) {
	t.Helper()
	_, err := s.db.Pool().Exec(t.Context(), `
		INSERT INTO keys SELECT (jsonb_populate_record(k, jsonb_build_object('account', '000000000000', 'id', 'forged-' || n) || $3::jsonb)).*
		FROM keys k, generate_series(1, $2) n WHERE id = $1`, id, n, due)
	if err != nil {
		t.Fatal(err)
	}
}

// TestForgedRowsHoldNothingUp: however many rows have to be refused, those
// behind them are reached, by the next sweep at the latest.
func TestForgedRowsHoldNothingUp(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id, gone := createKey(t, f, s), createKey(t, f, s)
	enableRotation(t, f, s, id, 90)
	if _, err := do(f, s, "ScheduleKeyDeletion", (*Service).ScheduleKeyDeletion, &awskms.ScheduleKeyDeletionInput{KeyId: &gone}); err != nil {
		t.Fatal(err)
	}
	forge(t, s, id, 120, `{}`)
	if _, err := s.db.Pool().Exec(t.Context(), "UPDATE keys SET deletion_date = '2001-01-01' WHERE account = '000000000000'"); err != nil {
		t.Fatal(err)
	}
	f.pass(91)
	for range 2 {
		if s.rotateDue(t.Context()) == nil || s.deleteDue(t.Context()) == nil {
			t.Error("a sweep does not report forged rows")
		}
	}
	if n := len(rotateEvents(t, s, id)); n != 1 {
		t.Errorf("a key behind forged rows was rotated %d times", n)
	}
	if _, err := s.db.Key(t.Context(), testAccount, testRegion, gone); err == nil {
		t.Error("a key behind forged rows was not deleted when it was due")
	}
}

// TestSlice: slices go on behind what they looked at, and begin anew at the end.
func TestSlice(t *testing.T) {
	const rows = 250
	find := func(after, limit int) (found []int, err error) {
		for n := after + 1; n <= rows && len(found) < limit; n++ {
			found = append(found, n)
		}
		return found, nil
	}
	from, seen := 0, map[int]int{}
	for range 4 {
		left := 90
		over := func() bool { left--; return left < 0 }
		err := slice(&from, over, find, func(n int) error {
			seen[n]++
			return fmt.Errorf("row %d", n)
		})
		if err == nil {
			t.Fatal("what was refused is not told")
		}
	}
	for n := 1; n <= rows; n++ {
		if seen[n] == 0 {
			t.Fatalf("row %d of %d was never reached", n, rows)
		}
	}
	broken := errors.New("the database is away")
	if err := slice(&from, within(t.Context(), time.Minute), func(int, int) ([]int, error) { return nil, broken }, nil); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}
