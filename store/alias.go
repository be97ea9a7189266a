package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Alias is another name of a key.
type Alias struct {
	Account, Region  string
	Name             string // alias/…
	KeyID            string
	Version          int64
	Created, Updated time.Time
}

func (a *Alias) table() string    { return "aliases" }
func (a *Alias) identity() string { return a.Account + "/" + a.Region + "/" + a.Name }
func (a *Alias) columns() []column {
	return []column{
		{"account", &a.Account}, {"region", &a.Region}, {"name", &a.Name}, {"key_id", &a.KeyID},
		{"version", &a.Version}, {"created", &a.Created}, {"updated", &a.Updated},
	}
}

var aliasSQL = statementsFor(&Alias{}, "account", "region", "name")

// Alias returns an alias, or ErrNotFound.
func (db *DB) Alias(ctx context.Context, account, region, name string) (Alias, error) {
	return loadOne[Alias](ctx, db, aliasSQL.selectAll, equal{"account", account}, equal{"region", region}, equal{"name", name})
}

// ListAliases returns up to limit aliases after afterName, sorted by name: those
// of keyID, or all if it is "".
func (db *DB) ListAliases(ctx context.Context, account, region, keyID, afterName string, limit int) ([]Alias, error) {
	if keyID == "" {
		return load[Alias](ctx, db, aliasSQL.selectAll+`
			WHERE account = $1 AND region = $2 AND name > $3
			ORDER BY name LIMIT $4`, account, region, afterName, limit)
	}
	return load[Alias](ctx, db, aliasSQL.selectAll+`
		WHERE account = $1 AND region = $2 AND key_id = $3 AND name > $4
		ORDER BY name LIMIT $5`, account, region, keyID, afterName, limit)
}

// InsertAlias adds an alias. Commit answers ErrExists if its name is taken,
// ErrConflict if the key has gone, *ErrQuota if the key has MaxAliases.
func (c *Change) InsertAlias(ctx context.Context, a Alias) error {
	c.touched(a.Account, a.Region, KindAlias, a.Name)
	c.lockKey(a)
	if err := c.insert(ctx, &a, &a.Version, aliasSQL); err != nil {
		return err
	}
	c.countAliases(a)
	return nil
}

// UpdateAlias replaces the alias of version a.Version. Errors of Commit as for
// InsertAlias.
func (c *Change) UpdateAlias(ctx context.Context, a Alias) error {
	c.touched(a.Account, a.Region, KindAlias, a.Name)
	c.lockKey(a)
	if err := c.update(ctx, &a, &a.Version, aliasSQL); err != nil {
		return err
	}
	c.countAliases(a)
	return nil
}

// DeleteAlias removes the alias of version a.Version.
func (c *Change) DeleteAlias(_ context.Context, a Alias) error {
	c.touched(a.Account, a.Region, KindAlias, a.Name)
	c.queue(oneRow, "DELETE FROM aliases WHERE account = $1 AND region = $2 AND name = $3 AND version = $4",
		a.Account, a.Region, a.Name, a.Version)
	return nil
}

// lockKey keeps others from adding aliases to the key, or deleting it, until
// the transaction ends: the count that follows stays true.
func (c *Change) lockKey(a Alias) {
	c.queue(oneRow, "SELECT FROM keys WHERE account = $1 AND region = $2 AND id = $3 FOR UPDATE",
		a.Account, a.Region, a.KeyID)
}

func (c *Change) countAliases(a Alias) {
	c.queue(oneRowOr(&ErrQuota{QuotaAliases}), `
		SELECT FROM aliases
		WHERE account = $1 AND region = $2 AND key_id = $3
		HAVING count(*) <= $4`, a.Account, a.Region, a.KeyID, MaxAliases)
}

// aliasesGone notes the names that a DELETE … RETURNING name has removed.
func aliasesGone(account, region string) check {
	return func(r pgx.BatchResults) ([]Changed, error) {
		rows, _ := r.Query() // its error comes out of CollectRows
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("deleting aliases: %w", err)
		}
		var gone []Changed
		for _, name := range names {
			gone = append(gone, Changed{Account: account, Region: region, Kind: KindAlias, ID: name})
		}
		return gone, nil
	}
}
