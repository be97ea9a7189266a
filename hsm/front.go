package hsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Isolation says where the vendors' libraries run.
type Isolation string

const (
	// IsolationWorker: each in a process of its own, which may hang or crash.
	IsolationWorker Isolation = "worker"
	// IsolationNone: in this process. One library can then serve one place of
	// tokens only, and nothing ends a call that hangs.
	IsolationNone Isolation = "in-process"
)

// DomainConfig says which tokens serve a deployment, and how.
type DomainConfig struct {
	ID      DomainID
	Members []MemberConfig

	// Isolation: "" = IsolationWorker.
	Isolation Isolation

	// Limits are how long a call to the device may take before its worker
	// counts as hung.
	Limits Limits

	// Patience is how long a call waits for a member when none serves. Once
	// none has served for so long, calls fail at once. 0 = 2 s.
	Patience time.Duration

	// RetireUnwraps is after how many unwrapped keys a worker is replaced,
	// since libraries leak: SoftHSM 243 bytes for each. 0 = 1,000,000.
	RetireUnwraps uint64

	// Proofs are those of generations that several members hold. SetProofs
	// replaces them.
	Proofs Proofs

	// Enrolling opens members that hold no generation yet, too.
	Enrolling bool

	// Logger and Metrics are the members' too. nil = none.
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// MemberConfig is one token of a domain.
type MemberConfig struct {
	Config

	// Name tells members apart in logs and metrics. "" = the token's label or
	// serial number.
	Name string

	// Environment is added to the worker's, as NAME=value: vendors' libraries
	// are configured by variables. It needs IsolationWorker.
	Environment []string
}

// most members of a domain: sets of them are bits of a word.
const mostMembers = 64

func (cfg DomainConfig) withDefaults() DomainConfig {
	if cfg.Isolation == "" {
		cfg.Isolation = IsolationWorker
	}
	if cfg.Limits.Call <= 0 {
		cfg.Limits.Call = 5 * time.Second
	}
	if cfg.Limits.Make <= 0 {
		cfg.Limits.Make = time.Minute
	}
	if cfg.Limits.Open <= 0 {
		cfg.Limits.Open = 30 * time.Second
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 2 * time.Second
	}
	if cfg.RetireUnwraps == 0 {
		cfg.RetireUnwraps = 1_000_000
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// OpenDomain opens the deployment's members. It succeeds if one of them serves;
// the others are tried again in the background until they do, unless their PIN
// was refused. Its errors are Open's and Token.OpenDomain's.
func OpenDomain(ctx context.Context, cfg DomainConfig) (*Domain, error) {
	cfg = cfg.withDefaults()
	d := &spread{cfg: cfg, log: cfg.Logger, changed: make(chan struct{}), dark: time.Now()}
	if err := d.place(); err != nil {
		return nil, err
	}
	d.stats = newFrontMetrics(d)
	d.proofs.Store(&cfg.Proofs)
	// Members outlive the context that they are opened under.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stop = stop
	first := make(chan error, len(d.seats))
	for _, s := range d.seats {
		d.tenders.Go(func() { s.tend(life, first) })
	}
	var faults []error
	for range d.seats {
		select {
		case err := <-first:
			faults = append(faults, err)
		case <-ctx.Done():
			faults = append(faults, ctx.Err())
		}
	}
	for _, s := range d.seats {
		if s.target.Load() != nil {
			return &Domain{members: d, front: d}, nil
		}
	}
	d.close()
	return nil, errors.Join(faults...)
}

// place gives each member its seat.
func (d *spread) place() error {
	if len(d.cfg.Members) == 0 || len(d.cfg.Members) > mostMembers {
		return fmt.Errorf("%w: a domain has 1 to %d members, not %d", ErrArgument, mostMembers, len(d.cfg.Members))
	}
	names := map[string]bool{}
	for i, m := range d.cfg.Members {
		m.Name = cmp.Or(m.Name, m.TokenLabel, m.TokenSerial)
		if names[m.Name] {
			return fmt.Errorf("%w: two members are named %q: name them apart", ErrArgument, m.Name)
		}
		if len(m.Environment) > 0 && d.cfg.Isolation != IsolationWorker {
			return fmt.Errorf("%w: member %s has an environment of its own, which takes a worker process: set isolation to %s",
				ErrArgument, m.Name, IsolationWorker)
		}
		names[m.Name] = true
		hash := fnv.New64a()
		_, _ = hash.Write([]byte(m.Name))
		d.seats = append(d.seats, &seat{
			name: m.Name, cfg: m, d: d, log: d.log.With("member", m.Name), seed: hash.Sum64(), bit: 1 << i,
			failed: make(chan struct{}, 1), gone: time.Now(),
		})
	}
	return nil
}

func (d *spread) close() {
	d.closed.Store(true)
	d.stop()
	d.tenders.Wait()
	d.reckon() // nobody is to wait for a member any more
	d.stats.unregister()
}
