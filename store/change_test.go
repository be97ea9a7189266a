package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func alias(k Key, name string) Alias {
	return Alias{Account: k.Account, Region: k.Region, Name: name, KeyID: k.ID, Created: time.Now(), Updated: time.Now()}
}

func TestConflictWritesNothing(t *testing.T) {
	db, _ := open(t)
	k, _ := insertKey(t, db, "k1")
	before, err := db.ChangeSequence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stale := k
	k.Description = "first"
	must(t, db, func(c *Change) error { return c.UpdateKey(t.Context(), k) })
	_, err = try(t, db, func(c *Change) error {
		return errors.Join(c.InsertAlias(t.Context(), alias(k, "alias/a")), c.UpdateKey(t.Context(), stale))
	})
	if !errors.Is(err, ErrConflict) {
		t.Errorf("stale update: %v", err)
	}
	if _, err = try(t, db, func(c *Change) error { return c.DeleteKey(t.Context(), stale) }); !errors.Is(err, ErrConflict) {
		t.Errorf("stale deletion: %v", err)
	}
	if n := count(t, db, "aliases"); n != 0 {
		t.Errorf("%d aliases of a change that failed", n)
	}
	if after, err := db.ChangeSequence(t.Context()); after != before+1 || err != nil {
		t.Errorf("sequence went from %d to %d, %v", before, after, err)
	}
}

// TestPausedInAChange is a process that stops for a while in the middle of a
// change: neither does it keep others from the rows for longer than a second,
// nor does it commit after that, since a right that it had may have been revoked.
func TestPausedInAChange(t *testing.T) {
	db, _ := open(t)
	k, _ := insertKey(t, db, "k1")
	since, err := db.ChangeSequence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := db.NewChange()
	if err := c.UpdateKey(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	c.RequireRights(since)
	paused, over := make(chan struct{}), make(chan struct{})
	c.queue(func(r pgx.BatchResults) ([]Changed, error) {
		_, err := anyRows(r)
		close(paused)
		<-over
		return nil, err
	}, "SELECT")
	revoked := make(chan error, 1)
	go func() {
		defer close(over)
		<-paused
		_, err := try(t, db, func(c *Change) error {
			return c.InsertPrincipal(t.Context(), Principal{ID: "p", Account: "1", Name: "p"})
		})
		locked := err == nil
		for begun := time.Now(); locked && time.Since(begun) < 20*time.Second; locked = errors.Is(err, ErrLocked) {
			_, err = try(t, db, func(c *Change) error { return c.UpdateKey(t.Context(), k) })
		}
		revoked <- err
	}()
	_, err = db.Commit(t.Context(), c, nil) // is told why, if it is not too late even for that
	if said := fault(&pgconn.PgError{Code: "25P03"}); !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrConflict) || errors.Is(err, ErrInDoubt) || !errors.Is(said, ErrConflict) {
		t.Errorf("a change that was overtaken by a revocation: %v, or %v", err, said)
	}
	if err := <-revoked; err != nil {
		t.Errorf("another change of the same row: %v", err)
	}
	if now, err := db.Key(t.Context(), k.Account, k.Region, k.ID); err != nil || now.Version != k.Version+1 {
		t.Errorf("the key has version %d, %v", now.Version, err)
	}
}

func TestAliases(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	k1, _ := insertKey(t, db, "k1")
	k2, _ := insertKey(t, db, "k2")
	for i := range MaxAliases {
		must(t, db, func(c *Change) error { return c.InsertAlias(ctx, alias(k1, fmt.Sprintf("alias/%02d", i))) })
	}
	insert := func(k Key, name string) error {
		_, err := try(t, db, func(c *Change) error { return c.InsertAlias(ctx, alias(k, name)) })
		return err
	}
	var quota *ErrQuota
	if err := insert(k1, "alias/more"); !errors.As(err, &quota) || quota.What != QuotaAliases {
		t.Errorf("alias over the quota: %v", err)
	}
	if err := insert(k2, "alias/00"); !errors.Is(err, ErrExists) {
		t.Errorf("taken name: %v", err)
	}
	gone := k1
	gone.ID = "nowhere"
	if err := insert(gone, "alias/more"); !errors.Is(err, ErrConflict) {
		t.Errorf("alias of no key: %v", err)
	}
	page, err := db.ListAliases(ctx, k1.Account, k1.Region, k1.ID, "alias/47", 10)
	if err != nil || len(page) != 2 || page[0].Name != "alias/48" {
		t.Errorf("page %v, %v", page, err)
	}
	page[0].KeyID = k2.ID
	must(t, db, func(c *Change) error { return c.UpdateAlias(ctx, page[0]) })
	must(t, db, func(c *Change) error { return c.DeleteAlias(ctx, page[1]) })
	if page, err = db.ListAliases(ctx, k1.Account, k1.Region, "", "", 100); err != nil || len(page) != MaxAliases-1 {
		t.Errorf("%d aliases, %v", len(page), err)
	}
	a, err := db.Alias(ctx, k1.Account, k1.Region, "alias/48")
	if err != nil || a.KeyID != k2.ID || a.Version != 2 {
		t.Errorf("moved alias %+v, %v", a, err)
	}
}

func TestDeleteKeyTakesAllWithIt(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	k, hbk := insertKey(t, db, "k1")
	insertKey(t, db, "k2")
	head := must(t, db, func(c *Change) error { return c.InsertAlias(ctx, alias(k, "alias/a")) })
	due, err := db.KeysDueForDeletion(ctx, time.Now().Add(time.Hour), KeyRef{}, 1)
	if err != nil || len(due) != 1 || due[0].ID != "k1" {
		t.Errorf("due %v, %v", due, err)
	}
	must(t, db, func(c *Change) error { return c.DeleteKey(ctx, k) })
	for table, want := range map[string]int{"keys": 1, "backing_keys": 1, "encryption_budgets": 1, "aliases": 0, "account_regions WHERE key_count = 1": 1} {
		if n := count(t, db, table); n != want {
			t.Errorf("%s: %d", table, n)
		}
	}
	if _, _, err := db.ReserveEncryptions(ctx, hbk.ID, 1, 10); !errors.Is(err, ErrNotFound) {
		t.Errorf("budget of a deleted key: %v", err)
	}
	changes, _, complete, err := db.ChangesSince(ctx, head)
	want := []Changed{
		{Seq: head + 1, Account: k.Account, Region: k.Region, Kind: KindAlias, ID: "alias/a"},
		{Seq: head + 1, Account: k.Account, Region: k.Region, Kind: KindKey, ID: "k1"},
	}
	if err != nil || !complete {
		t.Fatalf("changes %v, %v, %v", changes, complete, err)
	}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Error(diff)
	}
}

func TestKeyQuotaAndPaging(t *testing.T) {
	db, _ := open(t)
	for _, name := range []string{"b", "a", "C"} {
		insertKey(t, db, name)
	}
	page, err := db.ListKeys(t.Context(), "111122223333", "eu-central-1", "C", 1)
	if diff := cmp.Diff([]string{"a"}, page); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	exec(t, db, "UPDATE account_regions SET key_count = $1", MaxKeys-1)
	insertKey(t, db, "d")
	k, hbk := sampleKey("e")
	_, err = try(t, db, func(c *Change) error {
		return errors.Join(c.InsertKey(t.Context(), k), c.InsertBackingKey(t.Context(), hbk))
	})
	var quota *ErrQuota
	if !errors.As(err, &quota) || quota.What != QuotaKeys || count(t, db, "keys WHERE id = 'e'") != 0 {
		t.Errorf("key over the quota: %v", err)
	}
}

func TestChangesSince(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	for i := range 5 {
		insertKey(t, db, fmt.Sprint(i))
	}
	if changes, head, complete, err := db.ChangesSince(ctx, 5); len(changes) != 0 || head != 5 || !complete || err != nil {
		t.Errorf("nothing new: %v %d %v %v", changes, head, complete, err)
	}
	if err := db.PruneChanges(ctx, 2); err != nil {
		t.Fatal(err)
	}
	for since, want := range map[int64]bool{0: false, 2: false, 3: true, 6: false} {
		changes, head, complete, err := db.ChangesSince(ctx, since)
		if err != nil || head != 5 || complete != want || complete && len(changes) != int(5-since) {
			t.Errorf("since %d: %v, head %d, complete %v, %v", since, changes, head, complete, err)
		}
	}
}

// TestSequenceOrder demands that no reader who has seen a number ever finds a
// smaller one appear later.
func TestSequenceOrder(t *testing.T) {
	db, _ := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for n := range 40 {
				c := db.NewChange()
				name := fmt.Sprint(i, "-", n)
				if err := c.InsertPrincipal(t.Context(), Principal{ID: name, Account: "1", Name: name}); err != nil {
					t.Error(err)
				}
				if _, err := db.Commit(t.Context(), c, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		var at int64
		for ctx.Err() == nil {
			changes, head, complete, err := db.ChangesSince(t.Context(), at)
			if err != nil || !complete || int64(len(changes)) != head-at {
				t.Errorf("since %d: %d changes, head %d, %v", at, len(changes), head, err)
				return
			}
			at = head
		}
	})
	writers.Wait()
	cancel()
	reader.Wait()
	if head, err := db.ChangeSequence(t.Context()); head != 160 || err != nil {
		t.Errorf("head %d, %v", head, err)
	}
}

func TestReserveEncryptions(t *testing.T) {
	db, _ := open(t)
	ctx := t.Context()
	_, hbk := insertKey(t, db, "k1")
	var mu sync.Mutex
	taken := map[int64]bool{}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				from, to, err := db.ReserveEncryptions(ctx, hbk.ID, 10, 95)
				if errors.Is(err, ErrBudgetExhausted) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for n := from; n < to; n++ {
					if taken[n] {
						t.Errorf("%d reserved twice", n)
					}
					taken[n] = true
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if len(taken) != 95 {
		t.Errorf("%d reserved of 95", len(taken))
	}
	exec(t, db, "DELETE FROM encryption_budgets")
	var tampered *ErrTampered
	if _, _, err := db.ReserveEncryptions(ctx, hbk.ID, 10, 95); !errors.As(err, &tampered) {
		t.Errorf("budget removed: %v", err)
	}
}

func TestRenewedMACKey(t *testing.T) {
	db, s := open(t)
	old, _ := insertKey(t, db, "k1")
	s.generation = 2
	insertKey(t, db, "k2")
	if n := count(t, db, "keys WHERE mac_generation = 2"); n != 1 {
		t.Errorf("%d keys under the new generation", n)
	}
	if _, err := db.Key(t.Context(), old.Account, old.Region, old.ID); err != nil {
		t.Errorf("key under the old generation: %v", err)
	}
}

func TestIllHSMIsNotTampering(t *testing.T) {
	db, s := open(t)
	k, _ := insertKey(t, db, "k1")
	s.ill = errors.New("device removed")
	_, err := db.Key(t.Context(), k.Account, k.Region, k.ID)
	var tampered *ErrTampered
	if !errors.Is(err, s.ill) || errors.As(err, &tampered) {
		t.Errorf("load with the HSM away: %v", err)
	}
}

// dyingSealer cannot be asked from the call of Verify number last on.
type dyingSealer struct {
	*fixedSealer
	last int
}

var errBusy = errors.New("the HSM's queue is full")

func (s *dyingSealer) Verify(ctx context.Context, generation uint32, message, mac []byte) (bool, error) {
	if s.last--; s.last < 0 {
		return false, errBusy
	}
	return s.fixedSealer.Verify(ctx, generation, message, mac)
}

// TestHSMLostWhileVerifying loses the HSM at each step of looking at a row that
// was altered: only an answer is tampering.
func TestHSMLostWhileVerifying(t *testing.T) {
	db, s := open(t)
	k, _ := insertKey(t, db, "k1")
	exec(t, db, "UPDATE keys SET state = 'Disabled'")
	before := counted(t, db, "keys")
	var tampered *ErrTampered
	for last := range 3 {
		db.SetSealer(testDeployment, &dyingSealer{s, last})
		if _, err := db.Key(t.Context(), k.Account, k.Region, k.ID); !errors.Is(err, errBusy) || errors.As(err, &tampered) {
			t.Errorf("lost after %d answers: %v", last, err)
		}
	}
	if counted(t, db, "keys") != before {
		t.Error("counted as tampering")
	}
	db.SetSealer(testDeployment, &dyingSealer{s, 3})
	if _, err := db.Key(t.Context(), k.Account, k.Region, k.ID); !errors.As(err, &tampered) {
		t.Errorf("altered row: %v", err)
	}
}

// TestSwappedRows puts the sealed content of one key under another's name.
func TestSwappedRows(t *testing.T) {
	db, _ := open(t)
	k, _ := insertKey(t, db, "k1")
	insertKey(t, db, "k2")
	exec(t, db, `UPDATE keys SET policy = o.policy, current_backing_key = o.current_backing_key, mac = o.mac
		FROM keys o WHERE o.id = 'k2' AND keys.id = 'k1'`)
	var tampered *ErrTampered
	if _, err := db.Key(t.Context(), k.Account, k.Region, k.ID); !errors.As(err, &tampered) {
		t.Errorf("swapped row: %v", err)
	}
	db.SetSealer([16]byte{0xff}, &fixedSealer{generation: 1})
	if _, err := db.Key(t.Context(), k.Account, k.Region, "k2"); !errors.As(err, &tampered) {
		t.Errorf("row of another deployment: %v", err)
	}
}
