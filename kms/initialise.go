package kms

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// ErrAlreadyInitialised says that the database holds an active deployment.
var ErrAlreadyInitialised = errors.New("this database already holds an initialised deployment; there is nothing to do")

// InitConfig is what a first set-up needs. All fields are required.
type InitConfig struct {
	Token *hsm.Token
	DB    *store.DB // migrated

	// Account is the 12-digit account id, Partition the ARN partition.
	Account   string
	Partition string

	// Admin is the user name of the first administrator.
	Admin string

	// Host is the name under which audit records are written.
	Host string

	// Show gives the administrator's access key to the person who runs this.
	// The secret exists nowhere else in the clear; it is wiped afterwards.
	Show func(accessKeyID string, secret []byte) error

	// Progress is told each step, as a sentence without its full stop.
	Progress func(step string)
}

// Initialise makes a deployment on an empty token and an empty database: the
// domain in the HSM, and the first administrator. Token and database cannot
// commit together, so every step finds what an interrupted run has left and
// goes on from there; only the last one makes the deployment active, which is
// then marked on the token: see MarkActive. It refuses a token or a database
// that is in use by another deployment, or that another Initialise works on.
func Initialise(ctx context.Context, cfg InitConfig) error {
	release, err := cfg.DB.LockInit(ctx)
	if err != nil {
		return err //nolint:wrapcheck // says it all
	}
	defer release()
	d, err := findDeployment(ctx, cfg)
	if err != nil {
		return err
	}
	cfg.Progress("making the domain keys and the MAC key in the HSM")
	if err := cfg.Token.CreateDomain(ctx, d.ID); err != nil {
		if device := (*hsm.DeviceError)(nil); errors.As(err, &device) {
			err = fmt.Errorf("%w: the device's log says why (SoftHSM: is its disk full?); put that right, then run trent init again", err)
		}
		return fmt.Errorf("making the domain: %w", err)
	}
	failpoint.Hit("init.domain")
	domain, err := cfg.Token.OpenDomain(ctx, d.ID)
	if err != nil {
		return fmt.Errorf("opening the domain: %w", err)
	}
	cfg.DB.SetSealer(d.ID, domain)
	if _, err := cfg.DB.Deployment(ctx); err != nil { // if it has a seal, it must hold
		return fmt.Errorf("verifying the deployment: %w", err)
	}
	writer, err := audit.Open(ctx, audit.Config{DB: cfg.DB, Sealer: domain, Host: cfg.Host})
	if err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	setup := setup{cfg: cfg, deployment: d, domain: domain, audit: writer}
	err = setup.administrator(ctx)
	if closeErr := writer.Close(ctx); err == nil && closeErr != nil {
		return fmt.Errorf("closing the audit log: %w", closeErr)
	}
	return err
}

// findDeployment returns the deployment to go on with.
func findDeployment(ctx context.Context, cfg InitConfig) (store.Deployment, error) {
	onToken, err := cfg.Token.Domains(ctx)
	if err != nil {
		return store.Deployment{}, fmt.Errorf("looking at the token: %w", err)
	}
	d, err := cfg.DB.Deployment(ctx)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if len(onToken) > 0 {
			return d, fmt.Errorf("the token holds the domain of deployment %s, which this database does not know: "+
				"restore that deployment's database, or use an empty token", uuid.UUID(onToken[0]))
		}
		d = store.Deployment{ID: uuid.New(), Account: cfg.Account, Partition: cfg.Partition, State: store.StateInitialising, Version: 1, Created: time.Now().UTC()}
		cfg.Progress("recording deployment " + uuid.UUID(d.ID).String())
		if err := cfg.DB.InsertDeployment(ctx, d); err != nil {
			return d, fmt.Errorf("recording the deployment: %w", err)
		}
		failpoint.Hit("init.deployment")
		return d, nil
	case err != nil:
		return d, fmt.Errorf("looking for a deployment: %w", err)
	case d.State == store.StateActive:
		return d, ErrAlreadyInitialised
	case d.Account != cfg.Account || d.Partition != cfg.Partition:
		return d, fmt.Errorf("an interrupted init was for account %s in partition %s: run it again with those, or drop the database", d.Account, d.Partition)
	}
	if i := slices.IndexFunc(onToken, func(id hsm.DomainID) bool { return id != d.ID }); i >= 0 {
		return d, fmt.Errorf("the token also holds the domain of deployment %s: use an empty token", uuid.UUID(onToken[i]))
	}
	if err := neverActive(ctx, cfg, d); err != nil {
		return d, err
	}
	cfg.Progress("going on with the interrupted set-up of deployment " + uuid.UUID(d.ID).String())
	return d, nil
}

// neverActive refuses to go on with a deployment that has been active. Its row
// needs no seal until then, so whoever writes to the database can put it back
// to where it began, and the next init would make an administrator; but not
// the mark on the token.
func neverActive(ctx context.Context, cfg InitConfig, d store.Deployment) error {
	active, err := cfg.Token.Active(ctx, d.ID)
	if err != nil {
		return fmt.Errorf("looking for the mark of an active deployment: %w", err)
	}
	if !active {
		return nil
	}
	return fmt.Errorf("the database was set back: the token knows deployment %s as active, so init will not make another administrator; "+
		"do not use this database until you know who wrote to it, and restore it from a backup: %w", uuid.UUID(d.ID), cfg.DB.SetBack(d))
}

// marker is a domain, or a member of it, that can be marked.
type marker interface {
	MarkActive(ctx context.Context) error
}

// MarkActive notes on the token that a deployment is active. d must have been
// loaded with its seal verified. Initialise does so after the row was
// committed: in the reverse order, a set-up interrupted between the two could
// not go on. An init that is killed in between leaves the mark to the first
// start of the service, before which the deployment has no key to guard.
func MarkActive(ctx context.Context, on marker, d store.Deployment) error {
	if d.State != store.StateActive {
		return fmt.Errorf("deployment %s is not active", uuid.UUID(d.ID))
	}
	if err := on.MarkActive(ctx); err != nil {
		return fmt.Errorf("marking the deployment as active on the token: %w", err)
	}
	return nil
}

// setup is the part of Initialise that has a domain.
type setup struct {
	cfg        InitConfig
	deployment store.Deployment
	domain     *hsm.Member
	audit      *audit.Writer
}

// administrator makes the first administrator, shows the secret, and only
// then makes the deployment active: until somebody has seen the secret, the
// next run makes another one.
func (s *setup) administrator(ctx context.Context) error {
	s.cfg.Progress("making the first administrator, " + s.cfg.Admin)
	id, secret, err := s.replaceAdministrator(ctx)
	if err != nil {
		return err
	}
	defer clear(secret)
	failpoint.Hit("init.administrator")
	if err := s.cfg.Show(id, secret); err != nil {
		return fmt.Errorf("showing the administrator's secret: %w", err)
	}
	failpoint.Hit("init.shown")
	s.deployment.State = store.StateActive
	change := s.cfg.DB.NewChange()
	if err := change.UpdateDeployment(ctx, s.deployment); err != nil {
		return fmt.Errorf("sealing the deployment: %w", err)
	}
	if _, err := s.audit.Commit(ctx, s.record("ActivateDeployment", ""), change); err != nil {
		return fmt.Errorf("activating the deployment: %w", err)
	}
	failpoint.Hit("init.active")
	if err := MarkActive(ctx, s.domain, s.deployment); err != nil {
		return fmt.Errorf("%w; the deployment is active all the same, and the service marks it when it starts", err)
	}
	failpoint.Hit("init.marked")
	s.cfg.Progress("deployment is active")
	return nil
}

// replaceAdministrator commits the administrator and a new access key, and
// deletes the access keys that interrupted runs have made.
func (s *setup) replaceAdministrator(ctx context.Context) (accessKeyID string, secret []byte, err error) {
	account := s.deployment.Account
	change := s.cfg.DB.NewChange()
	admin, err := s.oldAdministrator(ctx, change)
	if err != nil {
		return "", nil, err
	}
	if admin.ID == "" {
		admin = store.Principal{
			ID: awsID("AIDA"), Account: account, Name: s.cfg.Admin, Admin: true, Created: time.Now().UTC(),
			ARN: fmt.Sprintf("arn:%s:iam::%s:user/%s", s.deployment.Partition, account, s.cfg.Admin),
		}
		if err := change.InsertPrincipal(ctx, admin); err != nil {
			return "", nil, fmt.Errorf("sealing the administrator: %w", err)
		}
	}
	secret, ekt, err := newSecret(ctx, s.domain)
	if err != nil {
		return "", nil, err
	}
	key := store.AccessKey{ID: awsID("AKIA"), Account: account, PrincipalID: admin.ID, Secret: ekt, Status: store.AccessKeyActive, Created: time.Now().UTC()}
	if err := change.InsertAccessKey(ctx, key); err != nil {
		clear(secret)
		return "", nil, fmt.Errorf("sealing the access key: %w", err)
	}
	if _, err := s.audit.Commit(ctx, s.record("CreateFirstAdministrator", admin.ARN), change); err != nil {
		clear(secret)
		return "", nil, fmt.Errorf("committing the administrator: %w", err)
	}
	return key.ID, secret, nil
}

// oldAdministrator returns the administrator of an interrupted run, if any,
// and has its access keys deleted by change.
func (s *setup) oldAdministrator(ctx context.Context, change *store.Change) (store.Principal, error) {
	principals, err := s.cfg.DB.Principals(ctx, s.deployment.Account)
	if err != nil {
		return store.Principal{}, fmt.Errorf("looking for an administrator: %w", err)
	}
	if len(principals) == 0 {
		return store.Principal{}, nil
	}
	p := principals[0]
	if len(principals) > 1 || p.Name != s.cfg.Admin {
		return p, fmt.Errorf("an interrupted init was for the administrator %s: run it again with that name", p.Name)
	}
	keys, err := s.cfg.DB.AccessKeys(ctx, p.Account, p.ID)
	if err != nil {
		return p, fmt.Errorf("looking for access keys: %w", err)
	}
	for _, k := range keys {
		if err := change.DeleteAccessKey(ctx, k); err != nil {
			return p, fmt.Errorf("deleting the unseen access key %s: %w", k.ID, err)
		}
	}
	return p, nil
}

func (s *setup) record(event, arn string) *audit.Record {
	r := &audit.Record{
		UserIdentity:       audit.UserIdentity{AccountID: s.deployment.Account, InvokedBy: "trent init"},
		EventTime:          time.Now().UTC(),
		EventName:          event,
		EventType:          "AwsServiceEvent",
		SourceIPAddress:    "AWS Internal",
		UserAgent:          "trent init",
		RecipientAccountID: s.deployment.Account,
	}
	if arn != "" {
		r.ServiceEventDetails = stringMember("principal", arn)
	}
	return r
}

// awsID is one of AWS's unique ids: a prefix and 16 characters of base32, 80
// random bits.
func awsID(prefix string) string {
	random := make([]byte, 10)
	_, _ = rand.Read(random) // never fails: crypto/rand ends the process first
	return prefix + base32.StdEncoding.EncodeToString(random)
}

// secretSize is that of an AWS secret access key before base64: 40 characters.
const secretSize = 30

// secretMaker is *hsm.Member or *hsm.Domain.
type secretMaker interface {
	Random(ctx context.Context, p []byte) error
	ImportSecret(ctx context.Context, secret []byte) (hsm.EKT, error)
}

// newSecret makes a secret access key from the HSM's random bytes and returns
// it beside its EKT. SigV4's first HMAC key is "AWS4" and the secret, so that
// is what the HSM keeps.
func newSecret(ctx context.Context, domain secretMaker) (secret []byte, ekt hsm.EKT, err error) {
	random := make([]byte, secretSize)
	defer clear(random)
	if err := domain.Random(ctx, random); err != nil {
		return nil, nil, fmt.Errorf("generating an access key's secret: %w", err)
	}
	prefixed := base64.StdEncoding.AppendEncode([]byte("AWS4"), random)
	defer clear(prefixed)
	ekt, err = domain.ImportSecret(ctx, prefixed)
	if err != nil {
		return nil, nil, fmt.Errorf("wrapping an access key's secret in the HSM: %w", err)
	}
	return append([]byte(nil), prefixed[len("AWS4"):]...), ekt, nil
}
