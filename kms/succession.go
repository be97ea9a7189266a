package kms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// FollowGenerations makes the HSM use the generation of the domain keys that
// the sealed rows say is active. It is called before the service begins to
// serve, and whenever the rows have changed. Until it succeeds the one that
// was active before goes on, which loses nothing.
func (s *Service) FollowGenerations(ctx context.Context) error {
	all, active, err := s.generations(ctx)
	if err != nil {
		return err
	}
	if err := s.domain.SetProofs(ctx, ProofsOf(all)); err != nil {
		return fmt.Errorf("proving the generations that several members hold: %w", err)
	}
	if err := s.domain.SetActive(ctx, active); err != nil {
		return fmt.Errorf("the database says that generation %d of the domain keys is active: restore the token that holds it, or connect this host to it: %w", active, err)
	}
	s.succession.generation.Set(float64(active))
	return nil
}

func (s *Service) generations(ctx context.Context) (all []store.DomainGeneration, active uint32, err error) {
	_, all, err = s.db.DomainGenerations(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the generations of the domain keys: %w", err)
	}
	for _, g := range all {
		if g.State == store.GenerationActive {
			return all, uint32(g.Number), nil // #nosec G115 -- ours, sealed
		}
	}
	return nil, 0, errors.New("no generation of the domain keys is active: restore the database from a backup")
}

// successionArgs is the job that brings what is under earlier generations to
// the active one: under the trusted profile EKTs are wrapped again inside the
// HSM, and under both profiles rows get MACs of the active MAC key. The row in
// the queue is a hint only, like that of sweepArgs.
type successionArgs struct{}

func (successionArgs) Kind() string { return "succession" }

const successionQueue = "succession" // its own, so that sweeps do not wait

// rewrapRate is how many keys or rows a second are brought to a new generation.
const rewrapRate = 200

type successor struct {
	river.WorkerDefaults[successionArgs]
	service *Service
}

// Work does a slice of what there is to do, and the next job the next one: a
// host that dies holds nothing up, and a job that runs twice finds rows that
// have changed and leaves them.
func (w *successor) Work(ctx context.Context, _ *river.Job[successionArgs]) error {
	ctx, cancel := context.WithTimeout(ctx, sweepInterval*8/10)
	defer cancel()
	err := w.service.succeed(ctx)
	if err != nil {
		w.service.log.Error("bringing keys and rows to the active generation", "error", err)
	}
	return err
}

// succeed is idempotent, and done when it does nothing. That ctx ends is no
// failure: the next slice is near, and finds what this one has left. What
// failed before is one all the same.
func (s *Service) succeed(ctx context.Context) error {
	all, active, err := s.generations(ctx)
	if err != nil {
		return unlessOver(ctx, err)
	}
	if active == 1 || s.succession.resting(active) {
		return nil // of the first, nothing is older
	}
	begun, before := time.Now(), s.succession.done
	if err := s.domain.SetActive(ctx, active); err != nil {
		return unlessOver(ctx, err)
	}
	s.succession.generation.Set(float64(active))
	var from []uint32
	to := ""
	for _, g := range all {
		if uint32(g.Number) == active { // #nosec G115 -- ours
			to = g.Profile
		} else if (g.State == store.GenerationSuperseded || g.State == store.GenerationRetiring) && g.Profile == string(hsm.Trusted) {
			from = append(from, uint32(g.Number)) // #nosec G115 -- as above
		}
	}
	var failures []error
	if len(from) > 0 && to == string(hsm.Trusted) {
		failures = append(failures, s.moveKeys(ctx, from, active), s.moveAccessKeys(ctx, from, active))
	}
	err = errors.Join(append(failures, s.reseal(ctx, active))...)
	if err == nil && ctx.Err() == nil && s.succession.done == before {
		s.succession.rest(active, time.Since(begun))
	}
	return err
}

// reseal gives rows MACs of the active generation. Those that it must refuse are
// told and passed over: the next slice goes on behind them.
func (s *Service) reseal(ctx context.Context, active uint32) error {
	const atATime, told = 100, 10
	var failures []error
	refused := 0
	for more := true; more && ctx.Err() == nil; {
		r, err := s.db.Reseal(ctx, active, atATime, s.succession.from)
		s.succession.did(s.succession.resealed, r.Done)
		refused += len(r.Refused)
		failures = append(failures, r.Refused[:min(len(r.Refused), max(0, told-len(failures)))]...)
		if err != nil {
			failures = append(failures, unlessOver(ctx, err))
			break
		}
		if more = r.More; !more {
			s.succession.from = store.ResealFrom{} // those that were refused may have been restored
		}
		s.pace(ctx, r.Done+len(r.Refused))
	}
	if refused > told {
		failures = append(failures, fmt.Errorf("%d rows in all are not as Trent wrote them", refused))
	}
	return errors.Join(failures...)
}

// unlessOver is err, but for what only says that ctx has ended.
func unlessOver(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// pace keeps the background work from taking the HSM from requests.
func (s *Service) pace(ctx context.Context, done int) {
	select {
	case <-time.After(time.Duration(done) * time.Second / rewrapRate):
	case <-ctx.Done():
	}
}

func (s *Service) moveKeys(ctx context.Context, from []uint32, to uint32) error {
	find := func(after store.KeyRef, limit int) ([]store.KeyRef, error) {
		found, err := s.db.KeysUnder(ctx, from, after, limit)
		return found, unlessOver(ctx, err)
	}
	return slice(&s.cursors.moving, func() bool { return ctx.Err() != nil }, find, func(ref store.KeyRef) error {
		n, err := s.moveKey(ctx, ref, to)
		s.succession.did(s.succession.moved, n)
		s.pace(ctx, 1+n)
		if err := unlessOver(ctx, passing(err)); err != nil {
			return fmt.Errorf("moving key %s to generation %d: %w", ref.ID, to, err)
		}
		return nil
	})
}

// moveKey wraps all material of a key under a generation, in one change, but for
// what no member can open, which is told. A request that uses the key meanwhile
// has the old EKT, which goes on to work.
func (s *Service) moveKey(ctx context.Context, ref store.KeyRef, to uint32) (moved int, err error) {
	k, set, err := s.db.KeyWithSet(ctx, ref.Account, ref.Region, ref.ID)
	if err != nil {
		return 0, err
	}
	all, err := s.db.BackingKeys(ctx, k, set)
	if err != nil {
		return 0, err
	}
	written, unopened, err := s.rewrapAll(ctx, all, to)
	if err != nil || len(written) == 0 {
		return 0, errors.Join(err, unopened)
	}
	change := s.db.NewChange()
	if err := change.ChangeMaterial(ctx, k, set, written...); err != nil {
		return 0, fmt.Errorf("sealing: %w", err)
	}
	details, err := json.Marshal(struct {
		KeyID      string `json:"keyId"`
		Generation uint32 `json:"domainKeyGeneration"`
		Material   int    `json:"keyMaterials"`
	}{k.ID, to, len(written)})
	if err != nil {
		return 0, fmt.Errorf("encoding an event: %w", err)
	}
	event := s.serviceEvent("RewrapKeyMaterial", k.Account, k.Region, s.keyARN(k.Account, k.Region, k.ID), details, s.now().UTC())
	seq, err := s.audit.Commit(ctx, event, change)
	if err != nil {
		return 0, err
	}
	if err := s.cache.advance(ctx, seq); err != nil {
		s.log.Warn("following own change", "error", err)
	}
	return len(written), unopened
}

// rewrapAll returns those of all that change. unopened says which no member can
// open: the others are not to wait for the generation of those to come back.
func (s *Service) rewrapAll(ctx context.Context, all []store.BackingKey, to uint32) (written []store.BackingKey, unopened, err error) {
	for _, b := range all {
		if len(b.EKT) == 0 || hsm.EKT(b.EKT).Generation() == to {
			continue
		}
		b.EKT, err = s.domain.Rewrap(ctx, b.EKT, to)
		switch {
		case errors.Is(err, hsm.ErrLocked): // made before the deployment had a trusted generation
		case errors.Is(err, hsm.ErrInvalidEKT), errors.Is(err, hsm.ErrNoGeneration):
			unopened = errors.Join(unopened, fmt.Errorf("its material %x: %w", b.ID, err))
		case err != nil:
			return nil, nil, err
		default:
			written = append(written, b)
		}
	}
	return written, unopened, nil
}

func (s *Service) moveAccessKeys(ctx context.Context, from []uint32, to uint32) error {
	find := func(after string, limit int) ([]string, error) {
		found, err := s.db.AccessKeysUnder(ctx, from, after, limit)
		return found, unlessOver(ctx, err)
	}
	return slice(&s.cursors.movingAccessKeys, func() bool { return ctx.Err() != nil }, find, func(id string) error {
		err := s.moveAccessKey(ctx, id, to)
		if err == nil {
			s.succession.did(s.succession.moved, 1)
		}
		s.pace(ctx, 1)
		if err := unlessOver(ctx, passing(err)); err != nil {
			return fmt.Errorf("moving access key %s to generation %d: %w", id, to, err)
		}
		return nil
	})
}

func (s *Service) moveAccessKey(ctx context.Context, id string, to uint32) error {
	k, err := s.db.AccessKey(ctx, id)
	if err != nil {
		return err
	}
	if k.Secret, err = s.domain.Rewrap(ctx, k.Secret, to); err != nil {
		return err
	}
	change := s.db.NewChange()
	if err := change.UpdateAccessKey(ctx, k); err != nil {
		return fmt.Errorf("sealing: %w", err)
	}
	event := s.serviceEvent("RewrapAccessKey", k.Account, "", "", stringMember("accessKeyId", k.ID), s.now().UTC())
	event.Resources = nil
	_, err = s.audit.Commit(ctx, event, change)
	return err
}

// succession counts what succeed has done on this host.
type succession struct {
	moved, resealed prometheus.Counter
	generation      prometheus.Gauge

	// The queue's only worker has these.
	from   store.ResealFrom
	done   int    // keys and rows
	idle   uint32 // generation under which succeed last found all
	wakeAt time.Time
}

// restFactor is how much longer than a look at all rows that found nothing to do
// succeed rests: were there ever so many keys, looking takes no more of Postgres
// than a hundredth.
const restFactor = 100

func (c *succession) rest(active uint32, looked time.Duration) {
	c.idle, c.wakeAt = active, time.Now().Add(restFactor*looked)
}

func (c *succession) resting(active uint32) bool {
	return c.idle == active && time.Now().Before(c.wakeAt)
}

func (c *succession) did(what prometheus.Counter, n int) {
	what.Add(float64(n))
	c.done += n
}

func newSuccession(metrics prometheus.Registerer) (*succession, error) {
	c := &succession{
		from: store.ResealFrom{},
		moved: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trent_domain_rewrapped_total",
			Help: "Wrapped keys that this host has moved to the active generation of the domain keys.",
		}),
		resealed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trent_domain_resealed_total",
			Help: "Rows that this host has given a MAC of the active generation.",
		}),
		generation: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trent_domain_generation",
			Help: "The generation of the domain keys that this host wraps and seals with.",
		}),
	}
	if metrics == nil {
		return c, nil
	}
	for _, each := range []prometheus.Collector{c.moved, c.resealed, c.generation} {
		if err := metrics.Register(each); err != nil {
			return nil, fmt.Errorf("registering metrics of the domain keys: %w", err)
		}
	}
	return c, nil
}
