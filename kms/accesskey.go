package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// accessKeysOfUser is AWS's limit.
const accessKeysOfUser = 2

// RenewAccessKey makes another access key for the user of an access key, under
// the active generation, and has its secret shown; the old one goes on to work
// until it is deleted. A secret that an older generation wraps can be moved by
// nobody under the locked profile, so this is how a user comes to be known to
// members that were enrolled later. The caller has seen the security officer of
// the member by (see hsm.ProveOfficer), which alone makes and seals it: the
// officer of a token that is not of this domain can give nobody access to it.
func (m *DomainMembers) RenewAccessKey(ctx context.Context, by MemberAtHand, id string, show func(accessKeyID string, secret []byte) error) error {
	if by.Err != nil {
		return fmt.Errorf("member %s, whose security officer's PIN was given: %w", by.Name, by.Err)
	}
	alone := DomainMembers{DomainAdmin: m.DomainAdmin, Members: []MemberAtHand{by}}
	g, err := alone.lead(ctx, "")
	if err != nil {
		return fmt.Errorf("member %s, whose security officer's PIN was given, makes the access key; name another one with --member: %w", by.Name, err)
	}
	alone.Commit = func(ctx context.Context, r *audit.Record, c *store.Change) error {
		// All that by verifies and seals for the access key is done. The log's
		// newest record may be of a generation that by has never had.
		m.DB.SetSealer(g.deployment.ID, sealers(append([]MemberAtHand{by}, m.reachable()...)))
		return m.Commit(ctx, r, c)
	}
	return alone.renew(ctx, g, id, show)
}

func (m *DomainMembers) renew(ctx context.Context, g *generations, id string, show func(accessKeyID string, secret []byte) error) error {
	old, user, all, err := m.accessKey(ctx, id)
	if tampered := (*store.ErrTampered)(nil); errors.As(err, &tampered) {
		return fmt.Errorf("the member whose security officer's PIN was given, which alone verifies this, finds that %w. If the member came later than the row was sealed, nobody did: wait until `trent domain status` counts no ROWS under earlier generations, or name a member that has them with --member", err)
	}
	if err != nil {
		return err
	}
	if len(all) >= accessKeysOfUser {
		return fmt.Errorf("user %s has as many access keys as one can have: %s; delete the one that nobody uses with `trent domain delete-access-key` (a run of this command that was interrupted has left one whose secret nobody saw)", user.Name, listed(all))
	}
	secret, ekt, err := newSecret(ctx, m.Member)
	if err != nil {
		return err
	}
	defer clear(secret)
	key := store.AccessKey{ID: awsID("AKIA"), Account: old.Account, PrincipalID: user.ID, Secret: ekt, Status: store.AccessKeyActive, Created: m.now()}
	change, err := m.changeOf(ctx, user)
	if err != nil {
		return err
	}
	if err := change.InsertAccessKey(ctx, key); err != nil {
		return fmt.Errorf("sealing the access key: %w", err)
	}
	event := accessKeyEvent{key.ID, user.ARN, old.ID, ekt.Generation(), m.Operator}
	if err := m.commitAccessKey(ctx, g, "CreateAccessKey", event, change); err != nil {
		return err
	}
	failpoint.Hit("enrol.accesskey")
	if err := show(key.ID, secret); err != nil {
		return fmt.Errorf("showing the secret of %s, which nobody will see again: delete it with `trent domain delete-access-key`, then run this again: %w", key.ID, err)
	}
	m.Progress(fmt.Sprintf("user %s has the new access key %s, which every member of generation %d can use: give it to whoever uses %s, then run `trent domain delete-access-key --access-key-id %s`",
		user.Name, key.ID, ekt.Generation(), old.ID, old.ID))
	return nil
}

func listed(all []store.AccessKey) string {
	var texts []string
	for _, k := range all {
		texts = append(texts, fmt.Sprintf("%s of %s UTC, under generation %d", k.ID, k.Created.UTC().Format(time.DateTime), hsm.EKT(k.Secret).Generation()))
	}
	return strings.Join(texts, ", ")
}

// DeleteAccessKey deletes an access key of a user who has another one that is
// active. That one may be older: a new one whose secret nobody has seen must go.
func (m *DomainMembers) DeleteAccessKey(ctx context.Context, id string) error {
	g, err := m.lead(ctx, "")
	if err != nil {
		return err
	}
	old, user, all, err := m.accessKey(ctx, id)
	if err != nil {
		return err
	}
	if err := m.remains(ctx, user, id, all); err != nil {
		return err
	}
	change, err := m.changeOf(ctx, user)
	if err != nil {
		return err
	}
	if err := change.DeleteAccessKey(ctx, old); err != nil {
		return fmt.Errorf("deleting the access key: %w", err)
	}
	if err := m.commitAccessKey(ctx, g, "DeleteAccessKey", accessKeyEvent{id, user.ARN, "", hsm.EKT(old.Secret).Generation(), m.Operator}, change); err != nil {
		return err
	}
	m.Progress(fmt.Sprintf("access key %s of user %s is deleted", id, user.Name))
	return nil
}

// remains refuses to leave a user without an access key that is of use: with
// the last one goes what `trent domain renew-access-key` knows him by. If the
// one that is to go is of no use either, another one like it is enough for that.
func (m *DomainMembers) remains(ctx context.Context, user store.Principal, without string, all []store.AccessKey) error {
	var unusable []store.AccessKey
	useful := false // the one that is to go
	for _, k := range all {
		if k.Status != store.AccessKeyActive {
			continue
		}
		alone, err := m.alone(ctx, hsm.EKT(k.Secret).Generation(), "", true)
		switch {
		case err != nil:
			return err
		case k.ID == without:
			useful = !alone
		case !alone:
			return nil
		default:
			unusable = append(unusable, k)
		}
	}
	switch {
	case len(unusable) > 0 && !useful:
		return nil
	case len(unusable) > 0:
		return notYet("user %s would have none but %s, which no member at hand can use: delete that one first, then run `trent domain renew-access-key --access-key-id %s`, or give the member that can use it a [[hsm-member]] table",
			user.Name, listed(unusable), without)
	}
	return notYet("user %s would have no active access key: make one with `trent domain renew-access-key --access-key-id %s`", user.Name, without)
}

// changeOf begins a change of what access keys a user has. It writes the user's
// row anew, so that of two that were decided on the same access keys one fails.
func (m *DomainMembers) changeOf(ctx context.Context, user store.Principal) (*store.Change, error) {
	change := m.DB.NewChange()
	if err := change.UpdatePrincipal(ctx, user); err != nil {
		return nil, fmt.Errorf("sealing the user: %w", err)
	}
	return change, nil
}

// accessKey returns an access key, its user and all of the user's.
func (m *DomainMembers) accessKey(ctx context.Context, id string) (k store.AccessKey, user store.Principal, all []store.AccessKey, err error) {
	if k, err = m.DB.AccessKey(ctx, id); errors.Is(err, store.ErrNotFound) {
		return k, user, nil, fmt.Errorf("there is no access key %q", id)
	} else if err != nil {
		return k, user, nil, fmt.Errorf("reading access key %s: %w", id, err)
	}
	if user, err = m.DB.Principal(ctx, k.Account, k.PrincipalID); err != nil {
		return k, user, nil, fmt.Errorf("reading the user of access key %s: %w", id, err)
	}
	if all, err = m.DB.AccessKeys(ctx, k.Account, k.PrincipalID); err != nil {
		return k, user, nil, fmt.Errorf("reading the access keys of user %s: %w", user.Name, err)
	}
	return k, user, all, nil
}

// accessKeyEvent is an officer's act on an access key in the audit log.
type accessKeyEvent struct {
	ID         string `json:"accessKeyId"`
	Principal  string `json:"principal"`
	InPlaceOf  string `json:"inPlaceOf,omitempty"`
	Generation uint32 `json:"domainKeyGeneration"`
	Operator   string `json:"operator"`
}

func (m *DomainMembers) commitAccessKey(ctx context.Context, g *generations, event string, what accessKeyEvent, change *store.Change) error {
	details, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("encoding an event: %w", err)
	}
	if err := m.Commit(ctx, m.event(g, event, details), change); errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("recording %s: somebody else changed the access keys of %s at the same time: run this again", event, what.Principal)
	} else if err != nil {
		return fmt.Errorf("recording %s: %w", event, err)
	}
	return nil
}

// event is an officer's order in the audit log.
func (a *DomainAdmin) event(g *generations, name string, details []byte) *audit.Record {
	return &audit.Record{
		UserIdentity:        audit.UserIdentity{AccountID: g.deployment.Account, InvokedBy: "trent domain"},
		EventTime:           a.now(),
		EventName:           name,
		EventType:           "AwsServiceEvent",
		SourceIPAddress:     "AWS Internal",
		UserAgent:           "trent domain",
		ServiceEventDetails: details,
		RecipientAccountID:  g.deployment.Account,
	}
}
