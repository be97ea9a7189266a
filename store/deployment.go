package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// States of a deployment.
const (
	StateInitialising = "initialising" // trent init has begun
	StateActive       = "active"
)

// Deployment is the one row that says whose database this is.
type Deployment struct {
	ID                 [16]byte // also names the domain in the HSM
	Account, Partition string
	State              string
	Version            int64
	Created            time.Time
	DomainSet          []byte // see domainSet
}

func (d *Deployment) table() string    { return "deployment" }
func (d *Deployment) identity() string { return fmt.Sprintf("%x", d.ID) }
func (d *Deployment) columns() []column {
	return []column{
		{"id", &d.ID}, {"account", &d.Account}, {"partition", &d.Partition},
		{"state", &d.State}, {"version", &d.Version}, {"created", &d.Created},
		{"domain_set", &d.DomainSet},
	}
}

func (d *Deployment) later() []string { return []string{"domain_set"} }

var deploymentSQL = statementsFor(&Deployment{}, "id")

// InsertDeployment writes the deployment row, unsealed: the MAC key does not
// exist before it. ErrExists if there is one.
func (db *DB) InsertDeployment(ctx context.Context, d Deployment) error {
	d.Version, d.State = 1, StateInitialising
	settle(&d)
	_, err := db.pool.Exec(ctx, deploymentSQL.insert, arguments(&d, seal{})...)
	if err != nil {
		return fmt.Errorf("inserting the deployment row: %w", fault(err))
	}
	return nil
}

// Deployment returns the deployment row; ErrNotFound before trent init. Before
// SetSealer it is not verified, and good only to find the domain in the HSM:
// read it again afterwards. An unsealed row is accepted only while State is
// StateInitialising.
func (db *DB) Deployment(ctx context.Context) (Deployment, error) {
	var d Deployment
	var s seal
	rows, _ := db.pool.Query(ctx, deploymentSQL.selectAll) // its error comes out of the loop below
	defer rows.Close()
	found := 0
	for rows.Next() {
		var err error
		if s, err = scan(rows, &d); err != nil {
			return Deployment{}, db.loadFault("deployment", nil, err)
		}
		found++
	}
	switch err := rows.Err(); {
	case err != nil:
		return Deployment{}, db.loadFault("deployment", nil, err)
	case found == 0:
		return Deployment{}, ErrNotFound
	case found > 1:
		return Deployment{}, db.tamperedRow("deployment", d.identity(), "there are several")
	}
	rows.Close() // gives the connection back before the HSM is asked
	unsealed := len(s.mac) == 0 && d.State == StateInitialising
	if keys := db.sealing.Load(); keys == nil || unsealed {
		return d, nil
	}
	return d, db.verify(ctx, &d, s)
}

// SetBack counts and reports a deployment that the token knows to be active
// but whose row says that it is not.
func (db *DB) SetBack(d Deployment) error {
	return db.tamperedRow(d.table(), d.identity(), "it is half set up, but the token knows that it has been active")
}

// UpdateDeployment replaces the row of version d.Version and seals it.
func (c *Change) UpdateDeployment(ctx context.Context, d Deployment) error {
	if d.State != StateActive && d.State != StateInitialising {
		return errors.New("updating deployment: unknown state " + d.State)
	}
	c.touched(d.Account, "", KindDeployment, d.identity())
	return c.update(ctx, &d, &d.Version, deploymentSQL)
}
