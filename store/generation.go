package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"
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
}

func (g *DomainGeneration) table() string    { return "domain_generations" }
func (g *DomainGeneration) identity() string { return fmt.Sprint(g.Number) }
func (g *DomainGeneration) columns() []column {
	return []column{
		{"number", &g.Number}, {"version", &g.Version}, {"profile", &g.Profile}, {"state", &g.State},
		{"holders", &g.Holders}, {"backup_confirmed", &g.BackupConfirmed}, {"backup_by", &g.BackupBy},
		{"created", &g.Created}, {"activated", &g.Activated}, {"superseded", &g.Superseded}, {"destroyed", &g.Destroyed},
	}
}

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
// generations: SHA-256 of
//
//	"domain" int(number of generations) { int(number) int(version) }*  sorted
//
// in the grammar of sealed rows, or nothing where there is no row. With it, a
// generation that is left out, or put back to an earlier state, shows.
func domainSet(all []DomainGeneration) []byte {
	if len(all) == 0 {
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
	sum := sha256.Sum256(m.b)
	return sum[:]
}

// DomainGenerations returns the deployment and all its generations in order,
// verified to be those that the deployment's row binds. A deployment whose
// domain keys were never rotated has no rows: generation 1, the first, is the
// active one, and is returned with version 0.
func (db *DB) DomainGenerations(ctx context.Context) (Deployment, []DomainGeneration, error) {
	var before int64
	for {
		d, err := db.Deployment(ctx)
		if err != nil {
			return Deployment{}, nil, err
		}
		all, err := load[DomainGeneration](ctx, db, generationSQL.selectAll+"ORDER BY number")
		if err != nil {
			return Deployment{}, nil, err
		}
		switch {
		case bytes.Equal(domainSet(all), d.DomainSet):
			if len(all) == 0 {
				all = []DomainGeneration{firstGeneration(d)}
			}
			return d, all, nil
		case d.Version == before:
			return Deployment{}, nil, db.tamperedRow("domain_generations", d.identity(), "the generations are not those that the deployment's row names")
		}
		before = d.Version // a change may have come between the two queries
	}
}

func firstGeneration(d Deployment) DomainGeneration {
	return DomainGeneration{Number: 1, Profile: "locked", State: GenerationActive, Holders: "[]", Created: d.Created, Activated: &d.Created}
}

// WriteGenerations replaces all generations of d, which DomainGenerations
// returned: those that differ are written, those of version 0 are new. Commit
// answers ErrConflict if any has changed meanwhile.
func (c *Change) WriteGenerations(ctx context.Context, d Deployment, before, after []DomainGeneration) error {
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
		case !sameGeneration(was, *g):
			err = c.update(ctx, g, &g.Version, generationSQL)
		}
		if err != nil {
			return err
		}
	}
	d.DomainSet = domainSet(written)
	return c.UpdateDeployment(ctx, d)
}

// sameGeneration compares what is sealed.
func sameGeneration(a, b DomainGeneration) bool {
	x, errX := digest([16]byte{}, 0, &a)
	y, errY := digest([16]byte{}, 0, &b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
