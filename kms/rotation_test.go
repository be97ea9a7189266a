package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/jackc/pgx/v5"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/internal/testenv"
	"github.com/trent-kms/trent/sigv4"
	"github.com/trent-kms/trent/store"
)

const testRegion = "us-east-1"

// A fleet is one deployment with a clock that the test sets.
type fleet struct {
	url     string
	token   *hsm.Token
	domain  *hsm.Domain
	id      [16]byte
	admin   string // access key id
	ahead   atomic.Int64
	started time.Time
}

// newFleet initialises a token and a database.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{url: testenv.Postgres(t), started: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	tok := testenv.SoftHSM(t)
	var err error
	f.token, err = hsm.Open(t.Context(), hsm.Config{Module: tok.Module, TokenLabel: tok.Label, PIN: hsm.NewPIN([]byte(tok.PIN))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.token.Close() })
	db := f.open(t)
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = Initialise(t.Context(), InitConfig{
		Token: f.token, DB: db, Account: testAccount, Partition: "aws", Admin: "admin", Host: "init",
		Show:     func(id string, _ []byte) error { f.admin = id; return nil },
		Progress: func(string) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := db.Deployment(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.id = d.ID
	member, err := f.token.OpenDomain(t.Context(), d.ID)
	if err != nil {
		t.Fatal(err)
	}
	f.domain = hsm.DomainOf(member)
	return f
}

func (f *fleet) open(t *testing.T) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{URL: f.url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	return db
}

func (f *fleet) now() time.Time { return f.started.Add(time.Duration(f.ahead.Load())) }

// pass lets days go by.
func (f *fleet) pass(days float64) { f.ahead.Add(int64(days * float64(day))) }

// host is one more service of the deployment.
func (f *fleet) host(t *testing.T, name string) *Service {
	t.Helper()
	db := f.open(t)
	db.SetSealer(f.id, f.domain)
	log := slog.New(slog.DiscardHandler)
	writer, err := audit.Open(t.Context(), audit.Config{DB: db, Host: name, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = writer.Close(context.Background()) })
	s, err := New(Config{
		Domain: f.domain, DB: db, Audit: writer, Account: testAccount, Partition: "aws",
		Regions: []string{testRegion}, Now: f.now, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var requests atomic.Int64

// do runs an operation as the API does.
func do[In, Out any](f *fleet, s *Service, name string, run func(*Service, context.Context, *Call, *In) (*Out, error), in *In) (*Out, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	call, err := s.Begin(ctx, s.Head(), sigv4.Identity{AccessKeyID: f.admin, Region: testRegion})
	if err != nil {
		return nil, err
	}
	call.Operation, call.RequestID = name, fmt.Sprintf("request-%d", requests.Add(1))
	var out *Out
	_, err = s.Do(ctx, call, func() ([]byte, error) {
		out, err = run(s, ctx, call, in)
		return nil, err
	})
	return out, err
}

func createKey(t *testing.T, f *fleet, s *Service) string {
	t.Helper()
	out, err := do(f, s, "CreateKey", (*Service).CreateKey, &awskms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	return *out.KeyMetadata.KeyId
}

func enableRotation(t *testing.T, f *fleet, s *Service, id string, days int32) {
	t.Helper()
	_, err := do(f, s, "EnableKeyRotation", (*Service).EnableKeyRotation, &awskms.EnableKeyRotationInput{KeyId: &id, RotationPeriodInDays: &days})
	if err != nil {
		t.Fatal(err)
	}
}

func seal(t *testing.T, f *fleet, s *Service, id, text string) []byte {
	t.Helper()
	out, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return out.CiphertextBlob
}

// wantOpens demands that every blob decrypts, the i-th with the i-th material.
func wantOpens(t *testing.T, f *fleet, s *Service, blobs [][]byte) {
	t.Helper()
	seen := map[string]bool{}
	for i, blob := range blobs {
		out, err := do(f, s, "Decrypt", (*Service).Decrypt, &awskms.DecryptInput{CiphertextBlob: blob})
		if err != nil || string(out.Plaintext) != fmt.Sprint("text ", i) {
			t.Fatalf("blob %d: %v", i, err)
		}
		if seen[*out.KeyMaterialId] {
			t.Errorf("blob %d was sealed with the material of an earlier one", i)
		}
		seen[*out.KeyMaterialId] = true
	}
}

func sweep(t *testing.T, s *Service) {
	t.Helper()
	if err := s.rotateDue(t.Context()); err != nil {
		t.Error(err)
	}
}

func status(t *testing.T, f *fleet, s *Service, id string) *awskms.GetKeyRotationStatusOutput {
	t.Helper()
	out, err := do(f, s, "GetKeyRotationStatus", (*Service).GetKeyRotationStatus, &awskms.GetKeyRotationStatusInput{KeyId: &id})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func materials(t *testing.T, f *fleet, s *Service, id string) []types.RotationsListEntry {
	t.Helper()
	out, err := do(f, s, "ListKeyRotations", (*Service).ListKeyRotations,
		&awskms.ListKeyRotationsInput{KeyId: &id, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial})
	if err != nil {
		t.Fatal(err)
	}
	return out.Rotations
}

// rotateEvents reads the RotateKey events of a key, in order.
func rotateEvents(t *testing.T, s *Service, id string) (details []map[string]string) {
	t.Helper()
	rows, _ := s.db.Pool().Query(t.Context(), `SELECT record->>'serviceEventDetails' FROM audit_records
		WHERE record->>'eventName' = 'RotateKey' AND record->'serviceEventDetails'->>'keyId' = $1 ORDER BY committed_at, seq`, id)
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		var d map[string]string
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		details = append(details, d)
	}
	return details
}

// Forty years of a key: it rotates once a year, never early, and everything
// that was ever sealed opens.
func TestAutomaticRotation(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	enableRotation(t, f, s, id, 365)
	blobs := [][]byte{seal(t, f, s, id, "text 0")}
	const years = 40
	for year := range years {
		f.pass(364.9)
		sweep(t, s)
		if n := len(materials(t, f, s, id)); n != year+1 {
			t.Fatalf("a little before rotation %d there are %d materials", year+1, n)
		}
		f.pass(0.1)
		sweep(t, s)
		sweep(t, s)
		blobs = append(blobs, seal(t, f, s, id, fmt.Sprint("text ", year+1)))
	}
	wantOpens(t, f, s, blobs)
	wantOpens(t, f, f.host(t, "b"), blobs) // with nothing cached
	all := materials(t, f, s, id)
	events := rotateEvents(t, s, id)
	if len(all) != years+1 || len(events) != years {
		t.Fatalf("%d materials, %d events", len(all), len(events))
	}
	for i, e := range all {
		first, last := i == 0, i == years
		if (e.RotationDate == nil) != first || (e.RotationType == types.RotationTypeAutomatic) == first ||
			(e.KeyMaterialState == types.KeyMaterialStateCurrent) != last {
			t.Errorf("material %d: %+v", i, e)
		}
		if !first && !e.RotationDate.Equal(f.started.Add(time.Duration(i)*365*day)) {
			t.Errorf("rotation %d on %v", i, e.RotationDate)
		}
		if !first && (events[i-1]["previousKeyMaterialId"] != *all[i-1].KeyMaterialId || events[i-1]["currentKeyMaterialId"] != *e.KeyMaterialId ||
			events[i-1]["rotationType"] != "AUTOMATIC" || events[i-1]["keyOrigin"] != "AWS_KMS") {
			t.Errorf("event %d: %v", i, events[i-1])
		}
	}
	if next := status(t, f, s, id).NextRotationDate; !next.Equal(f.started.Add((years + 1) * 365 * day)) {
		t.Errorf("next rotation on %v", next)
	}
}

// Many hosts that sweep at once, again and again, rotate each due key once.
func TestRotationIsOnceInAFleet(t *testing.T) {
	f := newFleet(t)
	var hosts []*Service
	for i := range 4 {
		hosts = append(hosts, f.host(t, fmt.Sprint("host-", i)))
	}
	var ids []string
	for i := range 12 {
		ids = append(ids, createKey(t, f, hosts[i%4]))
		enableRotation(t, f, hosts[i%4], ids[i], 90)
	}
	for round := range 3 {
		f.pass(90)
		var group sync.WaitGroup
		for _, s := range hosts {
			group.Go(func() {
				for range 2 {
					sweep(t, s)
				}
			})
		}
		group.Wait()
		for _, id := range ids {
			if all, events := materials(t, f, hosts[0], id), rotateEvents(t, hosts[0], id); len(all) != round+2 || len(events) != round+1 {
				t.Fatalf("round %d: %d materials, %d events", round, len(all), len(events))
			}
		}
	}
}

// What was missed while nothing ran, or while the key was disabled, is made
// up for by one rotation.
func TestRotationCatchesUp(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	count := func(id string) int { return len(materials(t, f, s, id)) - 1 }
	late, veryLate, off := createKey(t, f, s), createKey(t, f, s), createKey(t, f, s)
	enableRotation(t, f, s, late, 365)
	enableRotation(t, f, s, veryLate, 90)
	enableRotation(t, f, s, off, 365)
	if _, err := do(f, s, "DisableKey", (*Service).DisableKey, &awskms.DisableKeyInput{KeyId: &off}); err != nil {
		t.Fatal(err)
	}
	f.pass(400)
	sweep(t, s)
	sweep(t, s)
	if count(late) != 1 || count(veryLate) != 1 || count(off) != 0 {
		t.Errorf("rotations: %d, %d, %d", count(late), count(veryLate), count(off))
	}
	if next := status(t, f, s, late).NextRotationDate; !next.Equal(f.started.Add(730 * day)) {
		t.Errorf("35 days late: next on %v", next)
	}
	if next := status(t, f, s, veryLate).NextRotationDate; !next.Equal(f.started.Add(490 * day)) {
		t.Errorf("several periods late: next on %v", next)
	}
	if out := status(t, f, s, off); !out.KeyRotationEnabled || *out.RotationPeriodInDays != 365 {
		t.Errorf("status of a disabled key: %+v", out)
	}
	if _, err := do(f, s, "EnableKey", (*Service).EnableKey, &awskms.EnableKeyInput{KeyId: &off}); err != nil {
		t.Fatal(err)
	}
	sweep(t, s)
	if count(off) != 1 {
		t.Errorf("a key that was enabled when overdue has rotated %d times", count(off))
	}
}

// A key that is pending deletion does not rotate, and says so; when the
// deletion is cancelled it has its schedule back.
func TestRotationPendingDeletion(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	enableRotation(t, f, s, id, 90)
	f.pass(85)
	if _, err := do(f, s, "ScheduleKeyDeletion", (*Service).ScheduleKeyDeletion, &awskms.ScheduleKeyDeletionInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	f.pass(10)
	sweep(t, s)
	if out := status(t, f, s, id); out.KeyRotationEnabled || out.NextRotationDate != nil || out.RotationPeriodInDays != nil {
		t.Errorf("pending deletion: %+v", out)
	}
	if _, err := do(f, s, "CancelKeyDeletion", (*Service).CancelKeyDeletion, &awskms.CancelKeyDeletionInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	if out := status(t, f, s, id); !out.KeyRotationEnabled || *out.RotationPeriodInDays != 90 {
		t.Errorf("cancelled: %+v", out)
	}
	if n := len(materials(t, f, s, id)); n != 1 {
		t.Errorf("%d materials", n)
	}
}

func TestEnableKeyRotation(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	id := createKey(t, f, s)
	if out := status(t, f, s, id); out.KeyRotationEnabled || out.NextRotationDate != nil || *out.KeyId != id {
		t.Errorf("new key: %+v", out)
	}
	want := func(days int32, next time.Time) {
		t.Helper()
		if out := status(t, f, s, id); !out.KeyRotationEnabled || *out.RotationPeriodInDays != days || !out.NextRotationDate.Equal(next) {
			t.Errorf("%+v, want %d days, next on %v", out, days, next)
		}
	}
	if _, err := do(f, s, "EnableKeyRotation", (*Service).EnableKeyRotation, &awskms.EnableKeyRotationInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	want(365, f.started.Add(365*day))
	f.pass(10)
	enableRotation(t, f, s, id, 365) // the same again puts nothing off
	want(365, f.started.Add(365*day))
	enableRotation(t, f, s, id, 180)
	want(180, f.started.Add(190*day))
	if _, err := do(f, s, "DisableKeyRotation", (*Service).DisableKeyRotation, &awskms.DisableKeyRotationInput{KeyId: &id}); err != nil {
		t.Fatal(err)
	}
	f.pass(1000)
	sweep(t, s)
	if out := status(t, f, s, id); out.KeyRotationEnabled || len(materials(t, f, s, id)) != 1 {
		t.Errorf("switched off: %+v", out)
	}
}

func TestRotateKeyOnDemand(t *testing.T) {
	f := newFleet(t)
	s, other := f.host(t, "a"), f.host(t, "b")
	id := createKey(t, f, s)
	enableRotation(t, f, s, id, 365)
	rotate := func(s *Service) error {
		out, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id})
		if err == nil && *out.KeyId != id {
			t.Errorf("answer %+v", out)
		}
		return err
	}
	blobs := [][]byte{seal(t, f, other, id, "text 0")}
	for i := range maxOnDemandRotations {
		host := []*Service{s, other}[i%2]
		if err := rotate(host); err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, seal(t, f, host, id, fmt.Sprint("text ", i+1)))
	}
	wantOpens(t, f, other, blobs)
	var limit *types.LimitExceededException
	if err := rotate(s); !errors.As(err, &limit) {
		t.Errorf("one too many: %v", err)
	}
	if next := status(t, f, s, id).NextRotationDate; !next.Equal(f.started.Add(365 * day)) {
		t.Errorf("the schedule moved to %v", next)
	}
	events := rotateEvents(t, s, id)
	if len(events) != maxOnDemandRotations || events[0]["rotationType"] != "ON_DEMAND" {
		t.Errorf("%d events, %v", len(events), events[0])
	}
	out, err := do(f, s, "ListKeyRotations", (*Service).ListKeyRotations, &awskms.ListKeyRotationsInput{KeyId: &id, Limit: aws.Int32(20)})
	if err != nil || len(out.Rotations) != 20 || !out.Truncated {
		t.Fatalf("first page: %+v, %v", out, err)
	}
	out, err = do(f, s, "ListKeyRotations", (*Service).ListKeyRotations, &awskms.ListKeyRotationsInput{KeyId: &id, Limit: aws.Int32(20), Marker: out.NextMarker})
	if err != nil || len(out.Rotations) != 5 || out.Truncated || out.NextMarker != nil {
		t.Errorf("second page: %+v, %v", out, err)
	}
	id = createKey(t, f, s)
	enableRotation(t, f, s, id, 90)
	f.pass(90 - 1.0/96) // 15 minutes before it is due
	var conflict *types.ConflictException
	if err := rotate(s); !errors.As(err, &conflict) {
		t.Errorf("beside an automatic rotation: %v", err)
	}
}

// Rotations on demand by many hosts at once are each made, or refused.
func TestRotateKeyOnDemandAtOnce(t *testing.T) {
	f := newFleet(t)
	hosts := []*Service{f.host(t, "a"), f.host(t, "b"), f.host(t, "c")}
	id := createKey(t, f, hosts[0])
	var done atomic.Int64
	var group sync.WaitGroup
	for _, s := range hosts {
		group.Go(func() {
			for range 4 {
				if _, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id}); err == nil {
					done.Add(1)
				} else if APIError(err).ErrorCode() != "ThrottlingException" {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if n, events := len(materials(t, f, hosts[0], id)), len(rotateEvents(t, hosts[0], id)); int64(n) != done.Load()+1 || n != events+1 {
		t.Errorf("%d answers, %d materials, %d events", done.Load(), n, events)
	}
}

// A backing key whose budget nears its end is replaced, once, while hosts
// encrypt; nobody is refused.
func TestBudgetRenewsBackingKey(t *testing.T) {
	f := newFleet(t)
	hosts := []*Service{f.host(t, "a"), f.host(t, "b")}
	for _, s := range hosts {
		s.budgets.block, s.budgets.limit, s.budgets.reserve = 8, 512, 256
	}
	id := createKey(t, f, hosts[0])
	var group sync.WaitGroup
	for _, s := range hosts {
		group.Go(func() {
			for range 400 {
				if _, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	all, events := materials(t, f, hosts[0], id), rotateEvents(t, hosts[0], id)
	if len(all) < 3 || len(all) > 5 || len(events) != len(all)-1 {
		t.Errorf("%d materials, %d events after 800 messages", len(all), len(events))
	}
	if out := status(t, f, hosts[0], id); out.KeyRotationEnabled {
		t.Errorf("replacing a backing key switched rotation on: %+v", out)
	}
}

// Used up all the same, the caller is asked to try again, and then finds the
// new one.
func TestBudgetExhausted(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	s.budgets.block, s.budgets.limit, s.budgets.reserve = 8, 16, -1 // never ahead of need
	id := createKey(t, f, s)
	refused := 0
	for range 40 {
		_, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
		var unavailable *types.KeyUnavailableException
		if errors.As(err, &unavailable) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n := len(materials(t, f, s, id)); n < 3 || refused > n-1 {
		t.Errorf("%d refusals, %d materials", refused, n)
	}
}

// A backing key that is missing, or was put back, is refused, and counted as
// what it is: not as a ciphertext that is wrong.
func TestBackingKeysAreBound(t *testing.T) {
	for name, sql := range map[string]string{
		"left out":     "DELETE FROM backing_keys WHERE key_id = $1 AND number = 0",
		"put in anew":  "INSERT INTO backing_keys SELECT account, region, key_id, gen_random_uuid(), version, ekt, material_id, provenance, public_key, created, mac_generation, mac, 7, rotation_type, rotated, pending, expires, description FROM backing_keys WHERE key_id = $1 AND number = 0",
		"set rewound":  "UPDATE keys SET backing_key_set = '' WHERE id = $1",
		"current old":  "UPDATE keys SET current_backing_key = (SELECT id FROM backing_keys WHERE key_id = $1 AND number = 0) WHERE id = $1",
		"period grown": "UPDATE keys SET rotation_period_days = 2560 WHERE id = $1",
		"date moved":   "UPDATE keys SET next_rotation = next_rotation + interval '10 years' WHERE id = $1",
		"limit reset":  "UPDATE keys SET on_demand_rotations = 0 WHERE id = $1",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			s := f.host(t, "a")
			id := createKey(t, f, s)
			blob := seal(t, f, s, id, "text 0")
			enableRotation(t, f, s, id, 365)
			if _, err := do(f, s, "RotateKeyOnDemand", (*Service).RotateKeyOnDemand, &awskms.RotateKeyOnDemandInput{KeyId: &id}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.db.Pool().Exec(t.Context(), `ALTER TABLE encryption_budgets DROP CONSTRAINT encryption_budgets_backing_key_fkey`); err != nil {
				t.Fatal(err)
			}
			if _, err := s.db.Pool().Exec(t.Context(), sql, id); err != nil {
				t.Fatal(err)
			}
			fresh := f.host(t, "b")
			_, err := do(f, fresh, "Decrypt", (*Service).Decrypt, &awskms.DecryptInput{CiphertextBlob: blob})
			if err == nil || APIError(err).ErrorCode() != "KMSInternalException" {
				t.Errorf("Decrypt: %v", err)
			}
			_, err = do(f, fresh, "ListKeyRotations", (*Service).ListKeyRotations, &awskms.ListKeyRotationsInput{KeyId: &id})
			if err == nil || APIError(err).ErrorCode() != "KMSInternalException" {
				t.Errorf("ListKeyRotations: %v", err)
			}
		})
	}
}

// One key that cannot be rotated does not keep the others from it.
func TestSweepGoesOn(t *testing.T) {
	f := newFleet(t)
	s := f.host(t, "a")
	var ids []string
	for range 3 {
		ids = append(ids, createKey(t, f, s))
		enableRotation(t, f, s, ids[len(ids)-1], 90)
	}
	if _, err := s.db.Pool().Exec(t.Context(), "UPDATE keys SET description = 'x' WHERE id = $1", min(ids[0], ids[1], ids[2])); err != nil {
		t.Fatal(err)
	}
	f.pass(91)
	if err := s.rotateDue(t.Context()); err == nil {
		t.Error("the sweep does not report the altered row")
	}
	rotated := 0
	for _, id := range ids {
		rotated += len(rotateEvents(t, s, id))
	}
	if rotated != 2 {
		t.Errorf("%d keys rotated, want 2", rotated)
	}
}

func TestGetKeyLastUsage(t *testing.T) {
	f := newFleet(t)
	s, other := f.host(t, "a"), f.host(t, "b")
	id, to := createKey(t, f, s), createKey(t, f, s)
	last := func(s *Service, id string) *awskms.GetKeyLastUsageOutput {
		t.Helper()
		out, err := do(f, s, "GetKeyLastUsage", (*Service).GetKeyLastUsage, &awskms.GetKeyLastUsageInput{KeyId: &id})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := last(s, id); *out.KeyLastUsage != (types.KeyLastUsageData{}) || *out.KeyId != id ||
		!out.KeyCreationDate.Equal(f.started) || out.TrackingStartDate.Before(f.started) {
		t.Errorf("unused key: %+v", out)
	}
	blob := seal(t, f, s, id, "x")
	f.pass(1)
	_, err := do(f, s, "Decrypt", (*Service).Decrypt, &awskms.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"a": "b"}})
	if err == nil {
		t.Fatal("wrong context accepted")
	}
	if got := last(s, id).KeyLastUsage; got.Operation != "Encrypt" || !got.Timestamp.Equal(f.started) {
		t.Errorf("after a failed call: %+v", got)
	}
	if got := last(other, id).KeyLastUsage; got.Timestamp != nil {
		t.Errorf("another host knows what was not written: %+v", got)
	}
	if err := s.usages.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = do(f, other, "ReEncrypt", (*Service).ReEncrypt, &awskms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &to})
	if err != nil {
		t.Fatal(err)
	}
	if got := last(s, id).KeyLastUsage; got.Operation != "Encrypt" {
		t.Errorf("written: %+v", got)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	other.usages.run(ended, time.Minute, func(err error) { t.Error(err) }) // as when a host stops
	for _, id := range []string{id, to} {
		got := last(s, id).KeyLastUsage
		if got.Operation != "ReEncrypt" || !got.Timestamp.Equal(f.now()) {
			t.Errorf("both keys of ReEncrypt: %+v", got)
		}
		var event string
		err := s.db.Pool().QueryRow(t.Context(), "SELECT record->>'eventName' FROM audit_records WHERE record->>'eventID' = $1 AND record->>'requestID' = $2",
			aws.ToString(got.CloudTrailEventId), aws.ToString(got.KmsRequestId)).Scan(&event)
		if err != nil || event != "ReEncrypt" {
			t.Errorf("event id %v names %q, %v", got.CloudTrailEventId, event, err)
		}
	}
}
