package kms

import (
	"context"
	"time"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// GenerationStatus is one generation as an officer sees it.
type GenerationStatus struct {
	Number          int64      `json:"generation"`
	State           string     `json:"state"`
	Profile         string     `json:"profile"`
	Tokens          []string   `json:"tokens"`  // serial numbers of those that hold it
	OnToken         string     `json:"onToken"` // what the token that was asked holds of it
	WrappedKeys     int64      `json:"wrappedKeys"`
	SealedRows      int64      `json:"sealedRows"` // without the audit log's
	BackupConfirmed *time.Time `json:"backupConfirmed,omitempty"`
	BackupBy        string     `json:"backupConfirmedBy,omitempty"`
	Created         time.Time  `json:"created"`
	Activated       *time.Time `json:"activated,omitempty"`
	Superseded      *time.Time `json:"superseded,omitempty"`
	Destroyed       *time.Time `json:"destroyed,omitempty"`
	// Dependence is what not all members can use; nil if there is nothing.
	Dependence *Dependence `json:"dependence,omitempty"`
}

// Status lists the generations, in order.
func (a *DomainAdmin) Status(ctx context.Context) ([]GenerationStatus, error) {
	g, err := a.load(ctx)
	if err != nil {
		return nil, err
	}
	held, err := a.Member.Generations(ctx)
	if err != nil {
		return nil, err //nolint:wrapcheck // says it all
	}
	uses, err := a.DB.GenerationUses(ctx)
	if err != nil {
		return nil, err
	}
	dependences, err := Dependences(ctx, a.DB, g.all)
	if err != nil {
		return nil, err
	}
	onToken := map[int64]string{}
	for _, h := range held {
		onToken[int64(h.Number)] = wholeness(h)
	}
	var all []GenerationStatus
	for _, row := range g.all {
		use := uses[uint32(row.Number)] // #nosec G115 -- ours
		all = append(all, GenerationStatus{
			Number: row.Number, State: row.State, Profile: row.Profile, Tokens: row.Tokens(), OnToken: onToken[row.Number],
			WrappedKeys: use.EKTs, SealedRows: use.MACs, BackupConfirmed: row.BackupConfirmed, BackupBy: row.BackupBy,
			Created: row.Created, Activated: row.Activated, Superseded: row.Superseded, Destroyed: row.Destroyed,
		})
		delete(onToken, row.Number)
		for i := range dependences {
			if dependences[i].Generation == row.Number {
				all[len(all)-1].Dependence = &dependences[i]
			}
		}
	}
	for _, h := range held {
		if what, unknown := onToken[int64(h.Number)]; unknown {
			all = append(all, GenerationStatus{Number: int64(h.Number), State: "unrecorded", Profile: string(h.Profile), OnToken: what})
		}
	}
	return all, nil
}

func wholeness(h hsm.Generation) string {
	switch {
	case h.Whole && h.Public:
		return "whole, as public objects: for tests only"
	case h.Whole:
		return "whole"
	case h.Retired:
		return "MAC key"
	}
	return h.Why
}

// Settled says whether the background work has nothing left to do: nothing
// that can be moved is under a generation that was active before.
func Settled(all []GenerationStatus) bool {
	active := ""
	for _, g := range all {
		if g.State == store.GenerationActive {
			active = g.Profile
		}
	}
	for _, g := range all {
		movable := g.Profile == string(hsm.Trusted) && active == g.Profile && g.WrappedKeys > 0
		switch g.State {
		case store.GenerationSuperseded, store.GenerationRetiring:
			if movable || g.SealedRows > 0 {
				return false
			}
		}
	}
	return true
}
