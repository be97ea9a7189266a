package store

import (
	"context"
	"time"
)

// Principal is who may call.
type Principal struct {
	ID      string // AIDA…
	Account string
	Name    string
	ARN     string
	Admin   bool
	Version int64
	Created time.Time
}

func (p *Principal) table() string    { return "principals" }
func (p *Principal) identity() string { return p.Account + "/" + p.ID }
func (p *Principal) columns() []column {
	return []column{
		{"account", &p.Account}, {"id", &p.ID}, {"name", &p.Name}, {"arn", &p.ARN},
		{"admin", &p.Admin}, {"version", &p.Version}, {"created", &p.Created},
	}
}

var principalSQL = statementsFor(&Principal{}, "account", "id")

// Principal returns a principal, or ErrNotFound.
func (db *DB) Principal(ctx context.Context, account, id string) (Principal, error) {
	return loadOne[Principal](ctx, db, principalSQL.selectAll, equal{"account", account}, equal{"id", id})
}

// Principals returns all principals of an account, by name.
func (db *DB) Principals(ctx context.Context, account string) ([]Principal, error) {
	return load[Principal](ctx, db, principalSQL.selectAll+"WHERE account = $1 ORDER BY name", account)
}

// InsertPrincipal adds a principal. Commit answers ErrExists if its id or its
// name in the account is taken.
func (c *Change) InsertPrincipal(ctx context.Context, p Principal) error {
	c.touched(p.Account, "", KindPrincipal, p.ID)
	return c.insert(ctx, &p, &p.Version, principalSQL)
}

// UpdatePrincipal replaces the principal of version p.Version.
func (c *Change) UpdatePrincipal(ctx context.Context, p Principal) error {
	c.touched(p.Account, "", KindPrincipal, p.ID)
	return c.update(ctx, &p, &p.Version, principalSQL)
}

// Statuses of an access key, in AWS's words.
const (
	AccessKeyActive   = "Active"
	AccessKeyInactive = "Inactive"
)

// AccessKey is the credential of a principal.
type AccessKey struct {
	ID          string // AKIA…
	Account     string
	PrincipalID string
	Secret      []byte // the EKT of the secret
	Status      string
	Version     int64
	Created     time.Time
}

func (k *AccessKey) table() string    { return "access_keys" }
func (k *AccessKey) identity() string { return k.ID }
func (k *AccessKey) columns() []column {
	return []column{
		{"id", &k.ID}, {"account", &k.Account}, {"principal_id", &k.PrincipalID},
		{"secret", &k.Secret}, {"status", &k.Status}, {"version", &k.Version}, {"created", &k.Created},
	}
}

var accessKeySQL = statementsFor(&AccessKey{}, "id")

// AccessKey returns an access key, or ErrNotFound.
func (db *DB) AccessKey(ctx context.Context, id string) (AccessKey, error) {
	return loadOne[AccessKey](ctx, db, accessKeySQL.selectAll, equal{"id", id})
}

// AccessKeys returns all access keys of a principal, by id.
func (db *DB) AccessKeys(ctx context.Context, account, principalID string) ([]AccessKey, error) {
	return load[AccessKey](ctx, db,
		accessKeySQL.selectAll+"WHERE account = $1 AND principal_id = $2 ORDER BY id", account, principalID)
}

// InsertAccessKey adds an access key.
func (c *Change) InsertAccessKey(ctx context.Context, k AccessKey) error {
	c.touched(k.Account, "", KindAccessKey, k.ID)
	return c.insert(ctx, &k, &k.Version, accessKeySQL)
}

// UpdateAccessKey replaces the access key of version k.Version.
func (c *Change) UpdateAccessKey(ctx context.Context, k AccessKey) error {
	c.touched(k.Account, "", KindAccessKey, k.ID)
	return c.update(ctx, &k, &k.Version, accessKeySQL)
}

// DeleteAccessKey removes the access key of version k.Version.
func (c *Change) DeleteAccessKey(_ context.Context, k AccessKey) error {
	c.touched(k.Account, "", KindAccessKey, k.ID)
	c.queue(oneRow, "DELETE FROM access_keys WHERE id = $1 AND version = $2", k.ID, k.Version)
	return nil
}
