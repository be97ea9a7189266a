package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// States of a generation, in the order of its life.
const (
	GenerationCreated    = "created"    // on a token, not in use
	GenerationActive     = "active"     // wraps and seals what is new
	GenerationSuperseded = "superseded" // unwraps and verifies what is old
	GenerationRetiring   = "retiring"   // about to lose its keys, or some of them
	GenerationRetired    = "retired"    // only the MAC key is left
	GenerationDestroyed  = "destroyed"
)

// DomainGeneration is one generation of the domain keys and the MAC key.
type DomainGeneration struct {
	Number          int64
	Version         int64
	Profile         string // hsm.Profile
	State           string
	Holders         string // JSON, see Tokens
	BackupConfirmed *time.Time
	BackupBy        string // who confirmed it
	Created         time.Time
	Activated       *time.Time
	Superseded      *time.Time
	Destroyed       *time.Time // the domain keys, on the last token
	// Proof is hsm.Proof, of a generation that several members hold. Such a
	// one has none until it has been made.
	Proof string
}

func (g *DomainGeneration) table() string    { return "domain_generations" }
func (g *DomainGeneration) identity() string { return fmt.Sprint(g.Number) }
func (g *DomainGeneration) columns() []column {
	return []column{
		{"number", &g.Number}, {"version", &g.Version}, {"profile", &g.Profile}, {"state", &g.State},
		{"holders", &g.Holders}, {"backup_confirmed", &g.BackupConfirmed}, {"backup_by", &g.BackupBy},
		{"created", &g.Created}, {"activated", &g.Activated}, {"superseded", &g.Superseded}, {"destroyed", &g.Destroyed},
		{"proof", &g.Proof},
	}
}

func (g *DomainGeneration) later() []string { return []string{"proof"} }

var generationSQL = statementsFor(&DomainGeneration{}, "number")

// Tokens are the serial numbers of the tokens that hold the generation.
func (g *DomainGeneration) Tokens() []string {
	var serials []string
	if err := json.Unmarshal([]byte(g.Holders), &serials); err != nil {
		return nil // sealed, hence as SetTokens wrote it, or not written yet
	}
	return serials
}

// SetTokens replaces the holders.
func (g *DomainGeneration) SetTokens(serials []string) {
	slices.Sort(serials)
	list, err := json.Marshal(slices.Compact(serials))
	if err != nil { // strings always encode
		panic(err)
	}
	g.Holders = string(list)
}

// domainSet is what the deployment's row, and so its MAC, says of the set of
// generations and of the members: SHA-256 of
//
//	"domain" int(number of generations) { int(number) int(version) }*  sorted
//	[ "members" int(number of members) { text(serial) int(version) }* ]  sorted
//
// in the grammar of sealed rows, or nothing where there is no row. With it, one
// that is left out, or put back to an earlier state, shows. The second part is
// there only if there are members' rows.
func domainSet(all []DomainGeneration, members []DomainMember) []byte {
	if len(all) == 0 && len(members) == 0 {
		return nil
	}
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b DomainGeneration) int { return int(a.Number - b.Number) })
	var m message
	m.text("domain")
	m.int(int64(len(sorted)))
	for _, g := range sorted {
		m.int(g.Number)
		m.int(g.Version)
	}
	if len(members) > 0 {
		m.members(members)
	}
	sum := sha256.Sum256(m.b)
	return sum[:]
}

// DomainGenerations returns the deployment and all its generations in order,
// verified to be those that the deployment's row binds. A deployment whose
// domain keys were never rotated has no rows: generation 1, the first, is the
// active one, and is returned with version 0.
func (db *DB) DomainGenerations(ctx context.Context) (Deployment, []DomainGeneration, error) {
	d, all, _, err := db.Domain(ctx)
	return d, all, err
}

// Domain is DomainGenerations with the members' rows, which there are once one
// was enrolled. Both are for a deployment whose trent init has ended.
func (db *DB) Domain(ctx context.Context) (Deployment, []DomainGeneration, []DomainMember, error) {
	var before int64
	for {
		d, err := db.Deployment(ctx)
		if err != nil {
			return Deployment{}, nil, nil, err
		}
		if d.State != StateActive { // then it needs no seal, and its set binds nothing
			return Deployment{}, nil, nil, db.tamperedRow(d.table(), d.identity(), "it is half set up, and yet in use")
		}
		all, err := load[DomainGeneration](ctx, db, generationSQL.selectAll+"ORDER BY number")
		if err != nil {
			return Deployment{}, nil, nil, err
		}
		members, err := load[DomainMember](ctx, db, memberSQL.selectAll+"ORDER BY serial")
		if err != nil {
			return Deployment{}, nil, nil, err
		}
		switch {
		case bytes.Equal(domainSet(all, members), d.DomainSet):
			if len(all) == 0 {
				all = []DomainGeneration{firstGeneration(d)}
			}
			return d, all, members, nil
		case d.Version == before:
			return Deployment{}, nil, nil, db.tamperedRow("domain_generations", d.identity(), "the generations and members are not those that the deployment's row names")
		}
		before = d.Version // a change may have come between the queries
	}
}

func firstGeneration(d Deployment) DomainGeneration {
	return DomainGeneration{Number: 1, Profile: "locked", State: GenerationActive, Holders: "[]", Created: d.Created, Activated: &d.Created}
}

// WriteDomain replaces all generations and members of d, which Domain returned:
// those that differ are written, those of version 0 are new. Commit answers
// ErrConflict if any has changed meanwhile.
func (c *Change) WriteDomain(ctx context.Context, d Deployment, before, after []DomainGeneration, membersBefore, membersAfter []DomainMember) error {
	old := map[int64]DomainGeneration{}
	for _, g := range before {
		old[g.Number] = g
	}
	written := slices.Clone(after)
	for i := range written {
		g := &written[i]
		c.touched(d.Account, "", KindGeneration, g.identity())
		var err error
		switch was := old[g.Number]; {
		case g.Version == 0:
			err = c.insert(ctx, g, &g.Version, generationSQL)
		case !sameRow(&was, g):
			err = c.update(ctx, g, &g.Version, generationSQL)
		}
		if err != nil {
			return err
		}
	}
	members, err := c.writeMembers(ctx, membersBefore, membersAfter)
	if err != nil {
		return err
	}
	d.DomainSet = domainSet(written, members)
	return c.UpdateDeployment(ctx, d)
}

// sameRow compares what is sealed.
func sameRow(a, b row) bool {
	x, errX := digest([16]byte{}, 0, a)
	y, errY := digest([16]byte{}, 0, b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// Proofs returns the proofs in the generations' rows as they stand, not
// verified: the MAC key that seals the rows may be one that has to be proved.
// They serve to open the HSM, and Domain's take their place at once.
func (db *DB) Proofs(ctx context.Context) (map[uint32]string, error) {
	rows, _ := db.pool.Query(ctx, "SELECT number, proof FROM domain_generations WHERE proof <> '' AND number BETWEEN 1 AND 4294967295")
	proofs := map[uint32]string{}
	var number int64
	var proof string
	_, err := pgx.ForEachRow(rows, []any{&number, &proof}, func() error {
		proofs[uint32(number)] = proof // #nosec G115 -- asked for
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the proofs of generations: %w", fault(err))
	}
	return proofs, nil
}
