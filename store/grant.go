package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Grant allows a principal operations on a key. It never changes: it is made,
// and some day retired or revoked. Whether a row that verifies is a grant of
// its key now is said by the key's set of grants: see grantPage.
type Grant struct {
	Account, Region, KeyID string
	ID                     string // 64 lower-case hex digits, random: none comes twice
	Version                int64

	Name              string // "" if it has none
	Grantee           string // a principal's ARN, or a service's name
	RetiringPrincipal string // likewise, or "" if there is none
	IssuingAccount    string // ARN
	Operations        string // AWS's GrantOperation, separated by commas
	Constraints       string // JSON of AWS's GrantConstraints, "" if there are none
	RequestDigest     []byte // of all that CreateGrant was asked for
	Created           time.Time
}

// GrantRef names a grant of some key in an account and region.
type GrantRef struct{ KeyID, ID string }

func (g *Grant) table() string    { return "grants" }
func (g *Grant) identity() string { return g.Account + "/" + g.Region + "/" + g.KeyID + "/" + g.ID }
func (g *Grant) columns() []column {
	return []column{
		{"account", &g.Account}, {"region", &g.Region}, {"key_id", &g.KeyID}, {"id", &g.ID},
		{"version", &g.Version}, {"name", &g.Name}, {"grantee", &g.Grantee},
		{"retiring_principal", &g.RetiringPrincipal}, {"issuing_account", &g.IssuingAccount},
		{"operations", &g.Operations}, {"constraints", &g.Constraints},
		{"request_digest", &g.RequestDigest}, {"created", &g.Created},
	}
}

var grantSQL = statementsFor(&Grant{}, "account", "region", "key_id", "id")

// Grant returns a grant that k has, or ErrNotFound. ErrConflict if k has
// changed since it was loaded.
func (db *DB) Grant(ctx context.Context, k Key, id string) (Grant, error) {
	found, err := db.grants(ctx, k, []string{id})
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Grant{}, err
	}
	return found[0], nil
}

// GrantOfRequest returns a named grant of k that was made for the same
// request, or ErrNotFound. ErrConflict if k has changed since it was loaded.
// It does not show whether such a grant has been hidden: the caller would make
// a second one, and ListGrants would refuse both.
func (db *DB) GrantOfRequest(ctx context.Context, k Key, requestDigest []byte) (Grant, error) {
	rows, _ := db.pool.Query(ctx, `
		SELECT id FROM grants
		WHERE account = $1 AND region = $2 AND key_id = $3 AND request_digest = $4 AND name <> ''
		ORDER BY id LIMIT 1`, k.Account, k.Region, k.ID, requestDigest)
	id, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[string])
	if err != nil {
		return Grant{}, fmt.Errorf("looking for a grant of the same name: %w", fault(err))
	}
	g, err := db.Grant(ctx, k, id)
	if err == nil && !bytes.Equal(g.RequestDigest, requestDigest) {
		err = db.tamperedRow(g.table(), g.identity(), "a grant of another request was asked for")
	}
	return g, err
}

// ListGrants returns up to limit grants of k after the id after, sorted by id.
// They are all that k has in that range: one that is missing, and one that k
// has no more, are *ErrTampered. ErrConflict if k has changed since it was
// loaded.
func (db *DB) ListGrants(ctx context.Context, k Key, after string, limit int) ([]Grant, error) {
	ids, err := db.grantIDs(ctx, k, after, limit)
	if err != nil {
		return nil, err
	}
	last := "g" // no id is greater
	if len(ids) == limit {
		last = ids[limit-1]
	}
	found, err := load[Grant](ctx, db, grantSQL.selectAll+`
		WHERE account = $1 AND region = $2 AND key_id = $3 AND id > $4 AND id <= $5
		ORDER BY id LIMIT $6`, k.Account, k.Region, k.ID, after, last, limit+1)
	if err != nil {
		return nil, err
	}
	if !sameIDs(found, ids) {
		return nil, db.grantsDiffer(ctx, k)
	}
	return found, nil
}

// RetirableGrants returns up to limit grants, of all keys of the account and
// region, that name a retiring principal: those after the grant after, sorted
// by key and id. Each is verified to be one that its key has now. What cannot
// show here is a grant that was removed from the database, or whose retiring
// principal was altered: no set binds the grants of a principal across keys.
// ListGrants of its key, and its use, show it. ErrConflict if one of the keys
// has changed meanwhile.
func (db *DB) RetirableGrants(ctx context.Context, account, region, principal string, after GrantRef, limit int) ([]Grant, error) {
	rows, _ := db.pool.Query(ctx, `
		SELECT key_id, id FROM grants
		WHERE account = $1 AND region = $2 AND retiring_principal = $3 AND (key_id, id) > ($4, $5)
		ORDER BY key_id, id LIMIT $6`, account, region, principal, after.KeyID, after.ID, limit)
	refs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[GrantRef])
	if err != nil {
		return nil, fmt.Errorf("looking for retirable grants: %w", fault(err))
	}
	var all []Grant
	for len(refs) > 0 {
		keyID := refs[0].KeyID
		var ids []string
		for len(refs) > 0 && refs[0].KeyID == keyID {
			ids = append(ids, refs[0].ID)
			refs = refs[1:]
		}
		found, err := db.grantsOfKey(ctx, KeyRef{account, region, keyID}, ids)
		if err != nil {
			return nil, err
		}
		for i := range found {
			if err := db.wasAskedFor(&found[i], equal{"retiring_principal", principal}); err != nil {
				return nil, err
			}
		}
		all = append(all, found...)
	}
	return all, nil
}

// grantsOfKey is grants for a key that has not been loaded.
func (db *DB) grantsOfKey(ctx context.Context, ref KeyRef, ids []string) ([]Grant, error) {
	k, err := db.Key(ctx, ref.Account, ref.Region, ref.ID)
	if err == nil {
		var found []Grant
		if found, err = db.grants(ctx, k, ids); err == nil && len(found) != len(ids) {
			err = ErrConflict // some are gone since
		}
		if err == nil {
			return found, nil
		}
	}
	if errors.Is(err, ErrNotFound) {
		err = ErrConflict
	}
	return nil, err
}

// grants returns those of ids that k has, sorted by id.
func (db *DB) grants(ctx context.Context, k Key, ids []string) ([]Grant, error) {
	members, err := db.membersAmong(ctx, k, ids)
	if err != nil {
		return nil, err
	}
	found, err := load[Grant](ctx, db, grantSQL.selectAll+`
		WHERE account = $1 AND region = $2 AND key_id = $3 AND id = ANY($4) ORDER BY id`,
		k.Account, k.Region, k.ID, ids)
	if err != nil {
		return nil, err
	}
	if !sameIDs(found, members) {
		return nil, db.grantsDiffer(ctx, k)
	}
	return found, nil
}

func sameIDs(found []Grant, ids []string) bool {
	if len(found) != len(ids) {
		return false
	}
	for i, g := range found {
		if g.ID != ids[i] {
			return false
		}
	}
	return true
}

// InsertGrant adds a grant to k, the key as it was loaded. *ErrQuota if k has
// MaxGrants grants; ErrConflict, here or of Commit, if k has changed since.
// Its cost does not depend on how many grants k has.
func (c *Change) InsertGrant(ctx context.Context, k Key, g Grant) error {
	if k.GrantCount >= MaxGrants {
		return &ErrQuota{QuotaGrants}
	}
	g.Account, g.Region, g.KeyID = k.Account, k.Region, k.ID
	if err := c.changeGrants(ctx, k, g.ID, true); err != nil {
		return err
	}
	return c.insert(ctx, &g, &g.Version, grantSQL)
}

// DeleteGrant takes a grant, which Grant returned with k, from k. ErrConflict,
// here or of Commit, if k has changed since.
func (c *Change) DeleteGrant(ctx context.Context, k Key, g Grant) error {
	if err := c.changeGrants(ctx, k, g.ID, false); err != nil {
		return err
	}
	c.queue(oneRow, "DELETE FROM grants WHERE account = $1 AND region = $2 AND key_id = $3 AND id = $4 AND version = $5",
		k.Account, k.Region, k.ID, g.ID, g.Version)
	return nil
}
