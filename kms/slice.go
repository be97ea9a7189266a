package kms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trent-kms/trent/store"
)

// cursors are where background work on rows goes on: behind the row that it
// looked at last, zero at the beginning. A queue's only worker on this host has
// those of its jobs.
type cursors struct {
	deleting, rotating, expiring, moving store.KeyRef
	movingAccessKeys                     string
}

// slice does a slice of background work: do, for what find finds behind from,
// until over says so. It leaves from where the next slice goes on, so that rows
// that have to be refused, however many somebody writes, hold up no others;
// at the end that one begins anew, since what was refused may have been restored.
func slice[K any](from *K, over func() bool, find func(after K, limit int) ([]K, error), do func(K) error) error {
	const atATime, told = 100, 10
	var failures []error
	refused := 0
	for !over() {
		found, err := find(*from, atATime)
		if err != nil {
			failures = append(failures, err)
			break
		}
		for _, each := range found {
			if over() {
				break
			}
			if err := do(each); err != nil {
				if refused++; refused <= told {
					failures = append(failures, err)
				}
			}
			*from = each
		}
		if len(found) < atATime && !over() {
			*from = *new(K)
			break
		}
	}
	if refused > told {
		failures = append(failures, fmt.Errorf("%d in all failed", refused))
	}
	return errors.Join(failures...)
}

// within is over when ctx is, or so much time has passed.
func within(ctx context.Context, limit time.Duration) (over func() bool) {
	until := time.Now().Add(limit)
	return func() bool { return ctx.Err() != nil || time.Now().After(until) }
}

// passing is an error but for what another host, or a call, was faster with.
func passing(err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}
