package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// grantPage holds the ids of those grants of a key whose id begins with one
// octet, Number. The key's row has the version of each of its pages:
//
//	grant_pages = { OCTET(number) 8OCTET(version) }*   sorted by number
//	members     = 32OCTET(id)*                         sorted
//
// and every change of a page is a change of the key's row, so that the set of
// a key's grants is bound by the MAC of that one row. An id never comes twice
// and a grant never changes; hence a grant is one of the key's if and only if
// its id stands in a page of the version that the key's row names. A row that
// is left out, an old one that is put back, and an old page all show, unless
// the key's row is put back with them.
//
// Ids are random, so that with MaxGrants grants a page holds about 200 ids: to
// make, find or remove one, or to list some in order, takes one page or a few,
// however many grants there are. A sum over the set in the key's row would be
// smaller, but would say nothing of a part of the set: every use would have to
// read the whole.
type grantPage struct {
	Account, Region, KeyID string
	Number                 int32
	Version                int64
	Members                []byte
}

const grantIDSize = 32

func (p *grantPage) table() string { return "grant_pages" }
func (p *grantPage) identity() string {
	return fmt.Sprintf("%s/%s/%s/%d", p.Account, p.Region, p.KeyID, p.Number)
}
func (p *grantPage) columns() []column {
	return []column{
		{"account", &p.Account}, {"region", &p.Region}, {"key_id", &p.KeyID}, {"number", &p.Number},
		{"version", &p.Version}, {"members", &p.Members},
	}
}

var grantPageSQL = statementsFor(&grantPage{}, "account", "region", "key_id", "number")

// ids are the members as they stand in grants.
func (p *grantPage) ids() []string {
	var ids []string
	for id := range slices.Chunk(p.Members, grantIDSize) {
		ids = append(ids, hex.EncodeToString(id))
	}
	return ids
}

// edit adds id to the members, or removes it; false if that changes nothing.
func (p *grantPage) edit(id []byte, add bool) bool {
	members := slices.Collect(slices.Chunk(p.Members, grantIDSize))
	i, found := slices.BinarySearchFunc(members, id, bytes.Compare)
	if found == add {
		return false
	}
	if add {
		members = slices.Insert(members, i, id)
	} else {
		members = slices.Delete(members, i, i+1)
	}
	p.Members = bytes.Join(members, nil)
	return true
}

const pageVersionSize = 1 + 8

// pageVersions are the versions of k's pages by number.
func (k *Key) pageVersions() (map[int32]int64, error) {
	if len(k.GrantPages)%pageVersionSize != 0 {
		return nil, fmt.Errorf("the pages of grants of key %s are cut off", k.ID)
	}
	versions := map[int32]int64{}
	for page := range slices.Chunk(k.GrantPages, pageVersionSize) {
		versions[int32(page[0])] = int64(binary.BigEndian.Uint64(page[1:])) // #nosec G115 -- a version was positive when it was written
	}
	return versions, nil
}

func (k *Key) setPageVersions(versions map[int32]int64) {
	k.GrantPages = nil
	for _, number := range slices.Sorted(maps.Keys(versions)) {
		k.GrantPages = append(k.GrantPages, byte(number))
		k.GrantPages = binary.BigEndian.AppendUint64(k.GrantPages, uint64(versions[number])) // #nosec G115 -- versions are positive
	}
}

// firstPageVersion is where the versions of k's pages begin. A replica key that
// is deleted and made again has the name of the one before: did they begin
// alike, old pages could be put back with the old key's grants.
func (k *Key) firstPageVersion() int64 { return max(1, k.Created.UnixMicro()) }

// decodeGrantID returns the octets of an id, and the number of its page.
func decodeGrantID(id string) (raw []byte, number int32, err error) {
	raw, err = hex.DecodeString(id)
	if err != nil || len(raw) != grantIDSize || hex.EncodeToString(raw) != id {
		return nil, 0, fmt.Errorf("grant id %q is not 64 lower-case hex digits", id)
	}
	return raw, int32(raw[0]), nil
}

// pagesOf returns the pages of k with these numbers, which must be among
// versions, in the versions that k's row names.
func (db *DB) pagesOf(ctx context.Context, k Key, versions map[int32]int64, numbers []int32) ([]grantPage, error) {
	if len(numbers) == 0 {
		return nil, nil
	}
	slices.Sort(numbers)
	found, err := load[grantPage](ctx, db, grantPageSQL.selectAll+`
		WHERE account = $1 AND region = $2 AND key_id = $3 AND number = ANY($4) ORDER BY number`,
		k.Account, k.Region, k.ID, numbers)
	if err != nil {
		return nil, err
	}
	current := len(found) == len(numbers)
	for i := 0; current && i < len(found); i++ {
		p := &found[i]
		if err := db.wasAskedFor(p, equal{"account", k.Account}, equal{"region", k.Region}, equal{"key_id", k.ID}); err != nil {
			return nil, err
		}
		current = p.Number == numbers[i] && p.Version == versions[p.Number] && len(p.Members)%grantIDSize == 0
	}
	if !current {
		return nil, db.grantsDiffer(ctx, k)
	}
	return found, nil
}

// membersAmong returns those of ids that k's pages have, sorted.
func (db *DB) membersAmong(ctx context.Context, k Key, ids []string) ([]string, error) {
	versions, err := k.pageVersions()
	if err != nil {
		return nil, err
	}
	var numbers []int32
	for _, id := range ids {
		_, number, err := decodeGrantID(id)
		if err == nil && versions[number] > 0 && !slices.Contains(numbers, number) {
			numbers = append(numbers, number)
		}
	}
	pages, err := db.pagesOf(ctx, k, versions, numbers)
	if err != nil {
		return nil, err
	}
	var members []string
	for _, p := range pages {
		for _, id := range p.ids() {
			if slices.Contains(ids, id) {
				members = append(members, id)
			}
		}
	}
	return members, nil
}

// grantIDs returns the first limit ids after the id after that k's pages have.
func (db *DB) grantIDs(ctx context.Context, k Key, after string, limit int) ([]string, error) {
	versions, err := k.pageVersions()
	if err != nil {
		return nil, err
	}
	numbers := slices.Sorted(maps.Keys(versions))
	if after != "" {
		_, number, err := decodeGrantID(after)
		if err != nil {
			return nil, ErrNotFound
		}
		i, _ := slices.BinarySearch(numbers, number)
		numbers = numbers[i:]
	}
	var ids []string
	// How full pages are does not stand in the key's row; a few will mostly do.
	for atATime := 2; len(numbers) > 0 && len(ids) < limit; atATime *= 2 {
		some := numbers[:min(atATime, len(numbers))]
		numbers = numbers[len(some):]
		pages, err := db.pagesOf(ctx, k, versions, some)
		if err != nil {
			return nil, err
		}
		for _, p := range pages {
			ids = append(ids, slices.DeleteFunc(p.ids(), func(id string) bool { return id <= after })...)
		}
	}
	return ids[:min(limit, len(ids))], nil
}

// changeGrants writes k, and the page of id with id added or removed.
func (c *Change) changeGrants(ctx context.Context, k Key, id string, add bool) error {
	versions, err := k.pageVersions()
	if err != nil {
		return err
	}
	raw, number, err := decodeGrantID(id)
	if err != nil {
		return err
	}
	page := grantPage{Account: k.Account, Region: k.Region, KeyID: k.ID, Number: number}
	if versions[number] > 0 {
		pages, err := c.db.pagesOf(ctx, k, versions, []int32{number})
		if err != nil {
			return err
		}
		page = pages[0]
	}
	if !page.edit(raw, add) {
		return c.db.grantsDiffer(ctx, k)
	}
	versions[number] = page.Version + 1
	if page.Version == 0 {
		versions[number] = k.firstPageVersion()
	}
	k.setPageVersions(versions)
	k.GrantCount += map[bool]int32{true: 1, false: -1}[add]
	// The key's row first: who loses the race for it writes nothing else.
	c.touched(k.Account, k.Region, KindGrants, k.ID)
	if err := c.update(ctx, &k, &k.Version, keySQL); err != nil {
		return err
	}
	if page.Version == 0 {
		page.Version = versions[number]
		return c.insertAsIs(ctx, &page, grantPageSQL)
	}
	return c.update(ctx, &page, &page.Version, grantPageSQL)
}

// grantsDiffer says why pages or grants are not those that k's row names: k
// may have changed since it was loaded.
func (db *DB) grantsDiffer(ctx context.Context, k Key) error {
	now, err := db.Key(ctx, k.Account, k.Region, k.ID)
	switch {
	case errors.Is(err, ErrNotFound), err == nil && now.Version != k.Version:
		return ErrConflict
	case err != nil:
		return err
	}
	return db.tamperedRow("grants", k.identity(), "the key's grants are not those that its row names")
}
