package hsm

import (
	"context"
	"sync"
	"testing"
	"time"
)

// TestNoAnswerIsKept: with two workers on one queue, one may see a request
// coming that the other takes. It must not keep the answer that it owes for
// one that never comes.
func TestNoAnswerIsKept(t *testing.T) {
	d := newDomain(t, func(c *Config) { c.Sessions = 2 })
	for range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var callers sync.WaitGroup
		for range 3 {
			callers.Go(func() {
				if err := d.Random(ctx, make([]byte, 8)); err != nil {
					t.Errorf("a call alone with the device: %v", err)
				}
			})
		}
		callers.Wait()
		cancel()
		if t.Failed() {
			return
		}
	}
}

// TestOwingWorkerDoesNotWait is the same, step by step.
func TestOwingWorkerDoesNotWait(t *testing.T) {
	l := &lane{queue: make(chan *request, 1)}
	if r, open := l.next(false); r != nil || !open {
		t.Errorf("an empty queue gives %v, open %v", r, open)
	}
	mine := &request{}
	l.queue <- mine
	if r, open := l.next(false); r != mine || !open {
		t.Errorf("got %v, open %v; want what is queued", r, open)
	}
	close(l.queue)
	for _, wait := range []bool{false, true} {
		if r, open := l.next(wait); r != nil || open {
			t.Errorf("a closed queue gives %v, open %v", r, open)
		}
	}
}
