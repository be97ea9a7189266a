package store

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// States of a member.
const (
	MemberEnrolled = "enrolled"
	MemberRemoved  = "removed"
)

// DomainMember is a token that holds, or has held, the domain's keys.
type DomainMember struct {
	Serial      string // of the token
	Version     int64
	Label       string // of the token
	Fingerprint string // of the key that its last generation came by
	State       string
	Enrolled    time.Time
	EnrolledBy  string
	Removed     *time.Time
	RemovedBy   string
}

func (m *DomainMember) table() string    { return "domain_members" }
func (m *DomainMember) identity() string { return m.Serial }
func (m *DomainMember) columns() []column {
	return []column{
		{"serial", &m.Serial}, {"version", &m.Version}, {"label", &m.Label}, {"fingerprint", &m.Fingerprint},
		{"state", &m.State}, {"enrolled", &m.Enrolled}, {"enrolled_by", &m.EnrolledBy},
		{"removed", &m.Removed}, {"removed_by", &m.RemovedBy},
	}
}

var memberSQL = statementsFor(&DomainMember{}, "serial")

// members is the second part of domainSet.
func (m *message) members(all []DomainMember) {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b DomainMember) int { return cmp.Compare(a.Serial, b.Serial) })
	m.text("members")
	m.int(int64(len(sorted)))
	for _, each := range sorted {
		m.text(each.Serial)
		m.int(each.Version)
	}
}

// writeMembers returns the members with the versions that they get.
func (c *Change) writeMembers(ctx context.Context, before, after []DomainMember) ([]DomainMember, error) {
	written := slices.Clone(after)
	for i := range written {
		m := &written[i]
		was := slices.IndexFunc(before, func(b DomainMember) bool { return b.Serial == m.Serial })
		var err error
		switch {
		case m.Version == 0:
			err = c.insert(ctx, m, &m.Version, memberSQL)
		case was < 0 || !sameRow(&before[was], m):
			err = c.update(ctx, m, &m.Version, memberSQL)
		}
		if err != nil {
			return nil, err
		}
	}
	return written, nil
}
