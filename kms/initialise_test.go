package kms

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/internal/testenv"
	"github.com/trent-kms/trent/store"
)

// emptyToken opens an empty token.
func emptyToken(t *testing.T) *hsm.Token {
	t.Helper()
	tok := testenv.SoftHSM(t)
	token, err := hsm.Open(t.Context(), hsm.Config{Module: tok.Module, TokenLabel: tok.Label, PIN: hsm.NewPIN([]byte(tok.PIN))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = token.Close() })
	return token
}

func openDatabase(t *testing.T, url string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{URL: url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

// initialise is one run of trent init.
func initialise(ctx context.Context, token *hsm.Token, db *store.DB, show func() error) error {
	return Initialise(ctx, InitConfig{
		Token: token, DB: db, Account: testAccount, Partition: "aws", Admin: "admin", Host: "init",
		Show:     func(string, []byte) error { return show() },
		Progress: func(string) {},
	})
}

// TestInitialiseAtOnce runs several at once: all but one are refused, and what
// that one has made is whole.
func TestInitialiseAtOnce(t *testing.T) {
	token, url := emptyToken(t), testenv.Postgres(t)
	openDatabase(t, url)
	var failed, all sync.WaitGroup
	failed.Add(2)
	answers := make(chan error, 3)
	for range 3 {
		db := openDatabase(t, url)
		all.Go(func() {
			err := initialise(t.Context(), token, db, func() error {
				failed.Wait() // holds the set-up open until the others have given up
				return nil
			})
			if err != nil {
				failed.Done()
			}
			answers <- err
		})
	}
	all.Wait()
	close(answers)
	for err := range answers {
		if err != nil && !errors.Is(err, store.ErrInitRunning) {
			t.Error(err)
		}
	}
	if err := initialise(t.Context(), token, openDatabase(t, url), func() error { return nil }); !errors.Is(err, ErrAlreadyInitialised) {
		t.Errorf("a later run: %v", err)
	}
	ids, err := token.Domains(t.Context())
	if err != nil || len(ids) != 1 {
		t.Fatalf("domains %v, %v", ids, err)
	}
	if _, err := token.OpenDomain(t.Context(), ids[0]); err != nil {
		t.Error(err)
	}
}

// TestInitialiseSetBack demands that whoever writes to the database cannot
// have the next init make an administrator.
func TestInitialiseSetBack(t *testing.T) {
	f := newFleet(t)
	db := openDatabase(t, f.url)
	shown := func() error { t.Error("an administrator was made"); return nil }
	for _, sql := range []string{
		"UPDATE deployment SET state = 'initialising', mac = ''",
		"UPDATE deployment SET state = 'initialising', mac = '', version = 1",
		"UPDATE deployment SET state = 'initialising'",
	} {
		if _, err := db.Pool().Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		err := initialise(t.Context(), f.token, openDatabase(t, f.url), shown)
		var tampered *store.ErrTampered
		if !errors.As(err, &tampered) || !strings.Contains(err.Error(), "set back") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	var keys int
	if err := db.Pool().QueryRow(t.Context(), "SELECT count(*) FROM access_keys WHERE id = $1", f.admin).Scan(&keys); err != nil || keys != 1 {
		t.Errorf("the administrator has %d access keys, %v", keys, err)
	}
}

// TestInitialiseResumed interrupts a set-up before it is active, which must
// leave no mark, so that the next run can go on.
func TestInitialiseResumed(t *testing.T) {
	token, db := emptyToken(t), openDatabase(t, testenv.Postgres(t))
	unseen := errors.New("the terminal has gone")
	if err := initialise(t.Context(), token, db, func() error { return unseen }); !errors.Is(err, unseen) {
		t.Fatal(err)
	}
	d, err := db.Deployment(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	member, err := token.OpenDomain(t.Context(), d.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := MarkActive(t.Context(), member, d); err == nil {
		t.Error("a deployment that is only half set up was marked")
	}
	wantMark(t, token, d.ID, false)
	if err := initialise(t.Context(), token, db, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	wantMark(t, token, d.ID, true)
}

func wantMark(t *testing.T, token *hsm.Token, id hsm.DomainID, want bool) {
	t.Helper()
	if got, err := token.Active(t.Context(), id); err != nil || got != want {
		t.Errorf("mark of an active deployment: %v, %v", got, err)
	}
}
