package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/trent-kms/trent/store"
)

const (
	// maxMessages is how many messages with random 96-bit IVs one backing
	// key may seal, fleet-wide (SP 800-38D §8.3).
	maxMessages = int64(1) << 32

	// budgetBlock is how many of them a host reserves at a time. What a crash
	// leaves of a block counts as spent: 2^16 crashes use a key up.
	budgetBlock = int64(1) << 16

	// budgetReserve is how many are left when a backing key that can be
	// replaced is replaced: enough for many more tries, and for the blocks
	// that hosts have reserved.
	budgetReserve = int64(1) << 28
)

// budgets spends from the blocks of encryptions that this host has reserved
// in the database, where each is committed before its first use.
type budgets struct {
	db  *store.DB
	log *slog.Logger

	// block, limit and reserve are budgetBlock, maxMessages and budgetReserve.
	block, limit, reserve int64

	// renew gives k a new backing key if k.backing still is its current one.
	renew func(ctx context.Context, k *key) error

	blocks sync.Map // [16]byte HBK id → *block

	used    prometheus.Observer
	refused prometheus.Counter
}

type block struct {
	mu sync.Mutex
	// left and next are the messages left of the block in use and of the one
	// reserved ahead of need. Guarded by mu.
	left, next int64
	// filling is closed when the reservation under way ends; nil when none is.
	filling chan struct{}
	err     error // of the last reservation
}

func newBudgets(db *store.DB, log *slog.Logger, metrics prometheus.Registerer) *budgets {
	factory := promauto.With(metrics)
	return &budgets{
		db: db, log: log, block: budgetBlock, limit: maxMessages, reserve: budgetReserve,
		used: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "trent_kms_encryption_budget_used_ratio",
			Help: "How much of the 2^32 encryptions of a backing key was reserved, fleet-wide, each time that this host reserved a block of 2^16.",
			// Above the last but one, what can be replaced is.
			Buckets: []float64{0.1, 0.25, 0.5, 0.75, 1 - float64(budgetReserve)/float64(maxMessages), 1},
		}),
		refused: factory.NewCounter(prometheus.CounterOpts{
			Name: "trent_kms_encryption_budget_exhausted_total",
			Help: "Encryptions refused because the backing key had sealed all that it may.",
		}),
	}
}

// spend takes one message from the budget of k's backing key. It waits for
// the database only when the block in use has run out before the next one was
// reserved.
func (b *budgets) spend(ctx context.Context, k *key) error {
	entry, found := b.blocks.Load(k.backing.ID)
	if !found {
		entry, _ = b.blocks.LoadOrStore(k.backing.ID, &block{})
	}
	blk := entry.(*block)
	for waited := false; ; waited = true {
		wait, err := b.take(blk, k, waited)
		if wait == nil {
			return err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take spends one message, or returns what to wait for. Only who has waited
// is told why a reservation failed; who comes later tries again.
func (b *budgets) take(blk *block, k *key, waited bool) (wait <-chan struct{}, err error) {
	blk.mu.Lock()
	defer blk.mu.Unlock()
	if blk.left == 0 {
		blk.left, blk.next = blk.next, 0
	}
	if blk.left > 0 {
		blk.left--
		early := blk.left == b.block/2 || blk.left == b.block/8
		if early && blk.next == 0 && blk.filling == nil {
			b.fill(blk, k)
		}
		return nil, nil
	}
	if waited && blk.err != nil {
		return nil, b.exhausted(k, blk.err)
	}
	if blk.filling == nil {
		b.fill(blk, k)
	}
	return blk.filling, nil
}

func (b *budgets) exhausted(k *key, err error) error {
	if !errors.Is(err, store.ErrBudgetExhausted) {
		return fmt.Errorf("reserving encryptions of %s: %w", k.arn, err)
	}
	b.refused.Inc()
	if rotatesItself(k) {
		return &types.KeyUnavailableException{Message: aws.String(k.arn + " is being given a new backing key. Try again.")}
	}
	b.log.Error("a backing key has sealed all that it may: create a new key", "key", k.arn, "limit", b.limit)
	return invalidState(k.arn, "at its limit of 2^32 encryptions under one backing key (NIST SP 800-38D, 8.3); create a new key")
}

// fill reserves a block in the background. blk.mu is held.
func (b *budgets) fill(blk *block, k *key) {
	done := make(chan struct{})
	blk.filling = done
	id := k.backing.ID
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		from, to, err := b.db.ReserveEncryptions(ctx, id, b.block, b.limit)
		exhausted := errors.Is(err, store.ErrBudgetExhausted)
		if exhausted { // who waits shall find the new one when it tries again
			b.replace(ctx, k)
		}
		b.settle(blk, done, to-from, err)
		if err != nil {
			return
		}
		b.used.Observe(float64(to) / float64(b.limit))
		if to > b.limit-b.reserve {
			b.replace(ctx, k)
		}
	}()
}

// settle ends a reservation.
func (b *budgets) settle(blk *block, done chan struct{}, reserved int64, err error) {
	blk.mu.Lock()
	defer blk.mu.Unlock()
	blk.next, blk.err, blk.filling = reserved, err, nil
	if err != nil {
		blk.next = 0
	}
	close(done)
}

// replace has k's backing key replaced before its budget is used up. If that
// fails, the next reservation tries again.
func (b *budgets) replace(ctx context.Context, k *key) {
	if !rotatesItself(k) {
		return
	}
	if err := b.renew(ctx, k); err != nil {
		b.log.Error("replacing a backing key that has sealed nearly all that it may", "key", k.arn, "error", err)
	}
}
