package kms

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/trent-kms/trent/store"
)

// Dependence is what can be used only where a generation is that not all
// members hold: were those lost, so would this be.
type Dependence struct {
	Generation int64    `json:"generation"`
	Tokens     []string `json:"tokens"`  // serial numbers of those that hold it; none = it is lost
	Without    []string `json:"without"` // of the members that cannot use it
	KMSKeys    int64    `json:"kmsKeys"`
	// AccessKeys are at most mostDependents.
	AccessKeys []DependentAccessKey `json:"accessKeys"`
}

// DependentAccessKey is an access key and whose it is.
type DependentAccessKey struct {
	ID            string `json:"accessKeyId"`
	User          string `json:"userName"`
	Administrator bool   `json:"administrator"`
}

const mostDependents = 100

// Dependences lists what not all holders of the active generation can use. The
// number of KMS keys is the database's; the access keys are verified.
func Dependences(ctx context.Context, db *store.DB, all []store.DomainGeneration) ([]Dependence, error) {
	g := generations{all: all}
	active := g.in(store.GenerationActive)
	if active == nil {
		return nil, nil
	}
	var found []Dependence
	for _, row := range all {
		held := row.Tokens()
		without := slices.DeleteFunc(active.Tokens(), func(serial string) bool { return slices.Contains(held, serial) })
		if row.Number == active.Number || len(without) == 0 {
			continue
		}
		d := Dependence{Generation: row.Number, Tokens: held, Without: without}
		number := uint32(row.Number) // #nosec G115 -- ours
		var err error
		if d.KMSKeys, err = db.CountKeysUnder(ctx, number); err != nil {
			return nil, err
		}
		if d.AccessKeys, err = dependentAccessKeys(ctx, db, number); err != nil {
			return nil, err
		}
		if d.KMSKeys > 0 || len(d.AccessKeys) > 0 {
			found = append(found, d)
		}
	}
	return found, nil
}

func dependentAccessKeys(ctx context.Context, db *store.DB, generation uint32) (found []DependentAccessKey, err error) {
	ids, err := db.AccessKeysUnder(ctx, []uint32{generation}, "", mostDependents)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		k, err := db.AccessKey(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("reading access key %s: %w", id, err)
		}
		user, err := db.Principal(ctx, k.Account, k.PrincipalID)
		if err != nil {
			return nil, fmt.Errorf("reading the user of access key %s: %w", id, err)
		}
		found = append(found, DependentAccessKey{id, user.Name, user.Admin})
	}
	return found, nil
}

// String is for an administrator, with the next step.
func (d Dependence) String() string {
	where := fmt.Sprintf("only token %s can use", strings.Join(d.Tokens, " and "))
	if len(d.Tokens) == 0 {
		where = "no token can use any more"
	}
	text := fmt.Sprintf("%s what generation %d wraps (members %s lack it): %d KMS keys", where, d.Generation, strings.Join(d.Without, ", "), d.KMSKeys)
	if len(d.AccessKeys) == 0 {
		return text
	}
	var keys []string
	for _, k := range d.AccessKeys {
		who := "user"
		if k.Administrator {
			who = "administrator"
		}
		keys = append(keys, fmt.Sprintf("%s of %s %s", k.ID, who, k.User))
	}
	return fmt.Sprintf("%s, and the access keys %s. Make others in their place, before that token is lost, with `trent domain renew-access-key`", text, strings.Join(keys, ", "))
}
