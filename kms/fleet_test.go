package kms

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	awskms "github.com/aws/aws-sdk-go-v2/service/kms"

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
	device  testenv.Token
	token   *hsm.Token
	domain  *hsm.Domain
	id      [16]byte
	admin   string // access key id
	region  string // that calls are signed for
	ahead   *atomic.Int64
	started time.Time
}

// newFleet initialises a token and a database.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{url: testenv.Postgres(t), region: testRegion, ahead: new(atomic.Int64), started: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	f.device = testenv.SoftHSM(t)
	var err error
	if f.token, err = hsm.Open(t.Context(), f.config()); err != nil {
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

func (f *fleet) config() hsm.Config {
	return hsm.Config{Module: f.device.Module, TokenLabel: f.device.Label, PIN: hsm.NewPIN([]byte(f.device.PIN))}
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
		Regions: []string{testRegion, awayRegion, thirdRegion}, Now: f.now, Logger: log,
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
	call, err := s.Begin(ctx, s.Head(), sigv4.Identity{AccessKeyID: f.admin, Region: f.region})
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

func seal(t *testing.T, f *fleet, s *Service, id, text string) []byte {
	t.Helper()
	out, err := do(f, s, "Encrypt", (*Service).Encrypt, &awskms.EncryptInput{KeyId: &id, Plaintext: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return out.CiphertextBlob
}
