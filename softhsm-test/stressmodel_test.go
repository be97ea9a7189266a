package softhsmtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
)

// A logged record is one of the audit log, with the time of its commit: taken
// while other changes are kept out, so that changes happened in its order.
type logged struct {
	at     time.Time
	text   string
	record record
}

// A modelKey is what the log says of a key.
type modelKey struct {
	State, Description, Policy string
	Primary                    string // Region of the primary key, of a multi-Region key
	Tags                       map[string]string
	Materials, Days            int
	Grants                     []string
}

// A turn is one of the values that something had, one after the other.
type turn struct {
	from  time.Time // when it may have begun
	until time.Time // when the next one had begun for sure; zero = it holds
	value string
}

func (t turn) String() string {
	return fmt.Sprintf("%q from %s until %s", t.value, t.from.Format(time.StampMilli), t.until.Format(time.StampMilli))
}

// A model is what the audit log comes to.
type model struct {
	keys    map[string]*modelKey // by Region and id
	aliases map[string]string    // by Region and name
	turns   map[string][]turn    // of a key's state and description, and an alias's key
	seen    map[string]time.Time
}

// check demands that log, state and sights are one story.
func (s *stress) check(t *testing.T) {
	t.Helper()
	s.d.wantChains(t)
	s.d.wantNoOrphans(t)
	log := s.readLog(t)
	m := model{keys: map[string]*modelKey{}, aliases: map[string]string{}, turns: map[string][]turn{}, seen: map[string]time.Time{}}
	for _, saw := range s.saw {
		if saw.code == "" {
			m.seen[saw.requestID] = saw.end
		}
	}
	of, events := map[string][]record{}, map[string]bool{}
	for _, l := range log {
		if events[l.record.EventID] {
			t.Errorf("event %s is recorded twice", l.record.EventID)
		}
		events[l.record.EventID] = true
		of[l.record.RequestID] = append(of[l.record.RequestID], l.record)
		if l.record.ErrorCode == "" {
			m.apply(t, l)
		}
	}
	counts := map[string]int{}
	for _, saw := range s.saw {
		counts[saw.operation+" "+saw.code]++
		s.checkSight(t, &m, saw, of[saw.requestID])
	}
	t.Logf("%d calls, %d records: %v", len(s.saw), len(log), counts)
	anyOrder := cmpopts.SortSlices(func(a, b string) bool { return a < b })
	if diff := cmp.Diff(m.keys, s.keyRows(t), anyOrder, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("keys by the log and in the database:\n%s", diff)
	}
	if diff := cmp.Diff(m.aliases, s.aliasRows(t)); diff != "" {
		t.Errorf("aliases by the log and in the database:\n%s", diff)
	}
	for i := range s.hosts {
		s.start(t, i)
	}
	s.openAll(t, &m)
}

func (s *stress) readLog(t *testing.T) []logged {
	t.Helper()
	rows, err := s.d.pool.Query(t.Context(), "SELECT committed_at, record::text FROM audit_records ORDER BY committed_at, host, seq")
	if err != nil {
		t.Fatal(err)
	}
	log := must(pgx.CollectRows(rows, func(row pgx.CollectableRow) (l logged, err error) {
		if err = row.Scan(&l.at, &l.text); err == nil {
			err = json.Unmarshal([]byte(l.text), &l.record)
		}
		return l, err
	}))(t)
	return log
}

// What the model reads of logged parameters and answers.
type stressInput struct {
	KeyID, AliasName, TargetKeyID, Description, Policy, GrantID, ReplicaRegion, PrimaryRegion string
	RotationPeriodInDays                                                                      int
	Tags                                                                                      []struct{ TagKey, TagValue string }
	TagKeys                                                                                   []string
}

type stressOutput struct {
	KeyMetadata struct {
		ARN         string
		MultiRegion bool
	}
	GrantID string
}

// apply does what a record of a success says.
func (m *model) apply(t *testing.T, l logged) {
	t.Helper()
	r := l.record
	var in stressInput
	var out stressOutput
	read(t, r.RequestParameters, &in)
	read(t, r.ResponseElements, &out)
	if r.RequestID == "" && r.EventType != "AwsServiceEvent" || r.ReadOnly {
		return // the other Region's record of a change, or nothing that changes
	}
	in.AliasName = r.AWSRegion + "/" + in.AliasName
	switch id := r.AWSRegion + "/" + in.KeyID; r.EventName {
	case "CreateKey":
		k := &modelKey{Materials: 1}
		if out.KeyMetadata.MultiRegion {
			k.Primary = r.AWSRegion
		}
		m.create(t, l, regional(out.KeyMetadata.ARN), k)
	case "ReplicateKey":
		of := *m.of(t, l, id)
		m.create(t, l, in.ReplicaRegion+"/"+in.KeyID, &modelKey{Materials: of.Materials, Primary: of.Primary})
	case "CreateAlias", "UpdateAlias", "DeleteAlias":
		if _, exists := m.aliases[in.AliasName]; exists == (r.EventName == "CreateAlias") {
			t.Errorf("%s of %s, which exists: %t", r.EventName, in.AliasName, exists)
		}
		if m.aliases[in.AliasName] = in.TargetKeyID; in.TargetKeyID == "" {
			delete(m.aliases, in.AliasName)
		} else {
			m.of(t, l, r.AWSRegion+"/"+in.TargetKeyID)
		}
		m.turn(l, in.AliasName, r.AWSRegion+"/"+in.TargetKeyID)
	case "DeleteKey":
		m.remove(t, l, regional(r.Resources[0].ARN))
	case "RotateKey":
		m.of(t, l, regional(r.Resources[0].ARN)).Materials++
	case "UpdatePrimaryRegion":
		from, to := m.of(t, l, id), m.of(t, l, in.PrimaryRegion+"/"+in.KeyID)
		from.Primary, to.Primary = in.PrimaryRegion, in.PrimaryRegion
		from.Days, to.Days = 0, from.Days
	default:
		if in.KeyID != "" {
			m.change(l, id, m.of(t, l, id), in, out)
		}
	}
}

func read(t *testing.T, raw json.RawMessage, to any) {
	t.Helper()
	if len(raw) == 0 {
		return
	}
	if err := json.Unmarshal(raw, to); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
}

// of is a key that must be there.
func (m *model) of(t *testing.T, l logged, id string) *modelKey {
	t.Helper()
	if m.keys[id] == nil {
		t.Errorf("key %s is not there for %s", id, l.text)
		return &modelKey{}
	}
	return m.keys[id]
}

func (m *model) create(t *testing.T, l logged, id string, k *modelKey) {
	t.Helper()
	if m.keys[id] != nil {
		t.Errorf("key %s was made twice", id)
	}
	k.Tags = map[string]string{}
	m.keys[id] = k
	m.state(l, id, "Enabled")
	m.turn(l, "description "+id, "")
}

// remove is a deletion when due. A primary key that waited for it begins to wait
// for its own.
func (m *model) remove(t *testing.T, l logged, id string) {
	t.Helper()
	if k := m.of(t, l, id); k.State != "PendingDeletion" {
		t.Errorf("key %s was deleted while it was %s", id, k.State)
	}
	m.state(l, id, "deleted")
	delete(m.keys, id)
	if of := m.related(id); m.keys[of] != nil && m.keys[of].State == "PendingReplicaDeletion" {
		m.state(l, of, "PendingDeletion")
	}
	region, key, _ := strings.Cut(id, "/")
	for name, target := range m.aliases {
		if target == key && strings.HasPrefix(name, region) {
			delete(m.aliases, name)
			m.turn(l, name, "")
		}
	}
}

// related is what a key's related key is known by, if there is one.
func (m *model) related(id string) string {
	in, key, _ := strings.Cut(id, "/")
	if in == region {
		return otherRegion + "/" + key
	}
	return region + "/" + key
}

// change is a change of one key.
func (m *model) change(l logged, id string, k *modelKey, in stressInput, out stressOutput) {
	switch l.record.EventName {
	case "DisableKey", "CancelKeyDeletion":
		m.state(l, id, "Disabled")
	case "EnableKey":
		m.state(l, id, "Enabled")
	case "ScheduleKeyDeletion":
		if k.Primary == l.record.AWSRegion && m.keys[m.related(id)] != nil {
			m.state(l, id, "PendingReplicaDeletion")
		} else {
			m.state(l, id, "PendingDeletion")
		}
	case "UpdateKeyDescription":
		k.Description = in.Description
		m.turn(l, "description "+id, in.Description)
	case "TagResource":
		for _, tag := range in.Tags {
			k.Tags[tag.TagKey] = tag.TagValue
		}
	case "UntagResource":
		for _, name := range in.TagKeys {
			delete(k.Tags, name)
		}
	case "PutKeyPolicy":
		k.Policy = in.Policy
	case "EnableKeyRotation":
		k.Days = in.RotationPeriodInDays
	case "CreateGrant":
		k.Grants = append(k.Grants, out.GrantID)
	case "RevokeGrant":
		k.Grants = slices.DeleteFunc(k.Grants, func(g string) bool { return g == in.GrantID })
	}
}

func (m *model) state(l logged, id, state string) {
	if k := m.keys[id]; k != nil {
		k.State = state
	}
	m.turn(l, "state "+id, state)
}

// turn notes a new value. The one before has ended for sure when the change was
// answered, or when the next one, which comes after it, was made.
func (m *model) turn(l logged, what, value string) {
	all := m.turns[what]
	if n := len(all); n > 0 {
		all[n-1].until = time.Now()
		if answered, found := m.seen[l.record.RequestID]; found && l.record.RequestID != "" {
			all[n-1].until = answered
		}
		if n > 1 && l.at.Before(all[n-2].until) {
			all[n-2].until = l.at
		}
	}
	m.turns[what] = append(all, turn{from: l.at, value: value})
}

// could reports whether something could be seen with a value between two times.
func (m *model) could(what, value string, began, end time.Time) bool {
	for _, turn := range m.turns[what] {
		if turn.value == value && !turn.from.After(end) && (turn.until.IsZero() || turn.until.After(began)) {
			return true
		}
	}
	return false
}

// stressCodes are the errors that callers may see, besides those of a host that
// is away.
var stressCodes = []string{
	"", "DisabledException", "KMSInvalidStateException", "NotFoundException", "AlreadyExistsException", "AccessDeniedException",
	"LimitExceededException", "ConflictException", "ThrottlingException", "DependencyTimeoutException", "KeyUnavailableException", "UnsupportedOperationException",
}

// checkSight demands that what a client saw is recorded, and could be seen.
func (s *stress) checkSight(t *testing.T, m *model, saw sight, of []record) {
	t.Helper()
	if saw.requestID == "" {
		return // nothing was answered
	}
	if !slices.Contains(stressCodes, saw.code) {
		t.Errorf("%s was answered %q (request %s)", saw.operation, saw.code, saw.requestID)
	}
	for i, r := range of {
		last := i == len(of)-1
		if want := loggedCode(saw.code); r.EventName != saw.operation || last && r.ErrorCode != want && saw.code != "DependencyTimeoutException" || !last && r.ErrorCode != "" {
			t.Errorf("%s, answered %q, has record %d of %d: %s %q", saw.operation, saw.code, i+1, len(of), r.EventName, r.ErrorCode)
		}
	}
	if len(of) == 0 && saw.code != "DependencyTimeoutException" {
		t.Errorf("%s, answered %q, has no record (request %s)", saw.operation, saw.code, saw.requestID)
	}
	if saw.code != "" {
		return
	}
	wanted := map[string]string{}
	switch saw.operation {
	case "Encrypt", "Decrypt":
		wanted["state "+saw.key] = "Enabled"
		if saw.alias != "" {
			wanted[saw.alias] = saw.key
		}
	case "DescribeKey":
		wanted["state "+saw.key], wanted["description "+saw.key] = saw.state, saw.shown
	}
	for what, value := range wanted {
		if !m.could(what, value, saw.began, saw.end) {
			t.Errorf("%s saw %s as %q between %s and %s, but it was %v", saw.operation, what, value, saw.began.Format(time.StampMilli), saw.end.Format(time.StampMilli), m.turns[what])
		}
	}
}
