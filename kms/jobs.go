package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

const (
	// sweepInterval is how often due deletions and rotations are looked for.
	sweepInterval = 10 * time.Second
	// followInterval bounds how old the cached rows of an idle host are.
	followInterval = 500 * time.Millisecond

	// keptChanges is how many change-log entries are kept: a host that falls
	// further behind drops its caches.
	keptChanges = 100_000

	// clocksApart is how far this host's clock and Postgres's may differ while
	// what is due is done: the difference that callers' clocks may have.
	clocksApart = 5 * time.Minute
)

// sweepArgs is the job that deletes keys whose waiting period is over, rotates
// keys whose rotation is due, deletes imported material that has expired, and prunes
// the change log. The row in the queue is a hint only: it carries
// nothing, and running the job at any time, twice or never changes nothing
// that the sealed rows do not say.
type sweepArgs struct{}

func (sweepArgs) Kind() string { return "sweep" }

type sweeper struct {
	river.WorkerDefaults[sweepArgs]
	service *Service
}

// Work may run on two hosts at once when a sweep is slow: whose change comes
// second finds the row gone or changed.
func (w *sweeper) Work(ctx context.Context, _ *river.Job[sweepArgs]) error {
	pruned := w.service.db.PruneChanges(ctx, keptChanges) // first: the log grows whatever becomes of the rest
	err := w.service.checkClock(ctx)
	if err == nil {
		err = errors.Join(w.service.deleteDue(ctx), w.service.rotateDue(ctx), w.service.expireDue(ctx))
	}
	if err = errors.Join(pruned, err); err != nil {
		w.service.log.Error("sweeping", "error", err)
	}
	return err
}

// checkClock refuses a clock that Postgres's does not bear out: a host that is
// days ahead would delete keys that their owners still may want back.
func (s *Service) checkClock(ctx context.Context) error {
	theirs, err := s.db.Now(ctx)
	if err != nil {
		return err
	}
	if apart := time.Until(theirs).Abs(); apart > clocksApart {
		return fmt.Errorf("the clocks are apart by %s: this host's says %s, that of Postgres %s; until the wrong one is corrected nothing is deleted, expired or rotated",
			apart.Round(time.Second), time.Now().UTC().Format(time.RFC3339), theirs.UTC().Format(time.RFC3339))
	}
	return nil
}

// Run does the background work until ctx ends: it follows the change
// sequence, writes last uses of keys, and sweeps. No call may be under way
// when ctx ends. River elects the one host of all that share the
// database on which the sweep is started.
func (s *Service) Run(ctx context.Context) error {
	workers := river.NewWorkers()
	river.AddWorker(workers, &sweeper{service: s})
	river.AddWorker(workers, &successor{service: s})
	client, err := river.NewClient(riverpgxv5.New(s.db.Pool()), &river.Config{
		Logger:  slog.New(quieter{s.log.Handler()}),
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 1}, successionQueue: {MaxWorkers: 1}},
		Workers: workers,
		PeriodicJobs: []*river.PeriodicJob{
			s.periodic(sweepArgs{}, river.QueueDefault),
			s.periodic(successionArgs{}, successionQueue),
		},
		CompletedJobRetentionPeriod: time.Hour,
		DiscardedJobRetentionPeriod: 24 * time.Hour,
	})
	if err != nil {
		return fmt.Errorf("making the job client: %w", err)
	}
	for {
		err := client.Start(context.WithoutCancel(ctx))
		if err == nil {
			break
		}
		s.log.Warn("starting background jobs; trying again", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
	var noting sync.WaitGroup
	noting.Go(func() {
		s.usages.run(ctx, usageInterval, func(err error) { s.log.Warn("noting last uses of keys", "error", err) })
	})
	s.cache.follow(ctx, followInterval, func(err error) {
		s.log.Warn("following the change sequence", "error", err)
	})
	noting.Wait()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := client.Stop(stop); err != nil {
		return fmt.Errorf("stopping background jobs: %w", err)
	}
	return nil
}

// periodic runs args every sweepInterval, one at a time. A run that failed is
// not worth a retry: the next one is near.
func (s *Service) periodic(args river.JobArgs, queue string) *river.PeriodicJob {
	return river.NewPeriodicJob(
		river.PeriodicInterval(sweepInterval),
		func() (river.JobArgs, *river.InsertOpts) {
			return args, &river.InsertOpts{MaxAttempts: 1, Queue: queue, UniqueOpts: river.UniqueOpts{ByPeriod: sweepInterval}}
		},
		&river.PeriodicJobOpts{RunOnStart: true},
	)
}

// quieter keeps River's routine messages out of the log: only warnings and
// errors concern an operator.
type quieter struct{ slog.Handler }

// Enabled lets warnings and errors through.
func (q quieter) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && q.Handler.Enabled(ctx, level)
}
