package store

import (
	"errors"
	"testing"
)

// TestResealGoesPast: rows that somebody else wrote are told once and hold up
// none of ours.
func TestResealGoesPast(t *testing.T) {
	db, sealer := open(t)
	ctx := t.Context()
	fill(t, db)
	sealer.generation = 2
	uses, err := db.GenerationUses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const forged = 5
	exec(t, db, `CREATE TABLE saved AS SELECT * FROM aliases`)
	exec(t, db, `DELETE FROM aliases`)
	exec(t, db, `INSERT INTO aliases SELECT a.* FROM generate_series(1, 5) n,
		LATERAL (SELECT (jsonb_populate_record(s, jsonb_build_object('name', 'alias/' || n))).* FROM saved s) a`)
	exec(t, db, `INSERT INTO aliases SELECT * FROM saved`)
	done, refused, from := 0, 0, ResealFrom{}
	for more := true; more; {
		r, err := db.Reseal(ctx, 2, 2, from)
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range r.Refused {
			var tampered *ErrTampered
			if !errors.As(err, &tampered) || tampered.Table != "aliases" {
				t.Error(err)
			}
		}
		done, refused, more = done+r.Done, refused+len(r.Refused), r.More
	}
	if want := int(uses[1].MACs); done != want || refused != forged {
		t.Errorf("%d rows sealed and %d refused, want %d and %d", done, refused, want, forged)
	}
}
