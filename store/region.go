package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
)

// A multi-Region key is a key in one Region and related keys of the same id in
// others: one row each, sealed for its Region, with backing keys that have the
// same ids, numbers and material. One of them is the primary. Every change of
// which they are, and which is the primary, writes the rows of all of them:
// rows that do not agree, and have not changed since, are not as Trent wrote
// them. Regions are names only; all rows are of this deployment.

// Primary reports whether k is a multi-Region primary key.
func (k *Key) Primary() bool { return k.MultiRegion && k.Region == k.PrimaryRegion }

// Replica reports whether k is a multi-Region replica key.
func (k *Key) Replica() bool { return k.MultiRegion && k.Region != k.PrimaryRegion }

// Regions are those of k and its related keys, sorted.
func (k *Key) Regions() []string {
	if !k.MultiRegion {
		return []string{k.Region}
	}
	return slices.Sorted(slices.Values(append([]string{k.PrimaryRegion}, k.ReplicaRegions...)))
}

// RelatedKey is a key of a multi-Region set, with the set of its backing keys.
type RelatedKey struct {
	Key
	BackingKeys BackingKeySet
}

// RelatedKeys returns the keys that are related to k, by Region, without k.
// ErrConflict if they have changed since k was loaded.
func (db *DB) RelatedKeys(ctx context.Context, k Key) ([]RelatedKey, error) {
	var all []RelatedKey
	for _, region := range k.Regions() {
		if region == k.Region {
			continue
		}
		other, set, err := db.KeyWithSet(ctx, k.Account, region, k.ID)
		if errors.Is(err, ErrNotFound) || (err == nil && !related(k, other)) {
			return nil, db.unrelated(ctx, k)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, RelatedKey{other, set})
	}
	return all, nil
}

// related says whether two rows agree on what related keys share.
func related(a, b Key) bool {
	return b.MultiRegion && a.ID == b.ID && a.PrimaryRegion == b.PrimaryRegion && slices.Equal(a.ReplicaRegions, b.ReplicaRegions) &&
		a.Spec == b.Spec && a.Usage == b.Usage && a.Origin == b.Origin
}

// unrelated tells a change that came between from rows that somebody has
// altered.
func (db *DB) unrelated(ctx context.Context, k Key) error {
	now, err := db.Key(ctx, k.Account, k.Region, k.ID)
	if errors.Is(err, ErrNotFound) || (err == nil && now.Version != k.Version) {
		return ErrConflict
	}
	if err != nil {
		return err
	}
	return db.tamperedRow("keys", k.identity(), "its related keys are not those that its row names")
}

// UpdateKeys is UpdateKey for several keys, in an order that keeps those who
// change related keys at once from waiting for each other.
func (c *Change) UpdateKeys(ctx context.Context, keys ...Key) error {
	slices.SortFunc(keys, func(a, b Key) int { return cmp.Compare(a.Region, b.Region) })
	for _, k := range keys {
		if err := c.UpdateKey(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// InsertReplica adds a key as InsertKey does, with material that it shares with
// its related keys. It fills in whose the material is.
func (c *Change) InsertReplica(ctx context.Context, k Key, material []BackingKey) error {
	set := BackingKeySet{}
	for _, b := range material {
		set[b.ID] = 1
	}
	k.BackingKeySet = set.digest(k.CurrentBackingKey)
	if err := c.InsertKey(ctx, k); err != nil {
		return err
	}
	for _, b := range material {
		b.Account, b.Region, b.KeyID = k.Account, k.Region, k.ID
		if err := c.insertShared(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// ShareMaterial is ChangeMaterial for a key that is related to the one which
// has been given new backing keys: they have their budget from that one.
func (c *Change) ShareMaterial(ctx context.Context, k RelatedKey, written ...BackingKey) error {
	return c.changeMaterial(ctx, k.Key, k.BackingKeys, written, c.insertShared)
}
