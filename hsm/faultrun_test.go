package hsm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// keep remembers what was made, for keepers to check.
func (l *workload) keep(made Material) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := string(made.CheckValue) + string(made.PublicKey)
	if l.seen[name] {
		l.wrong = append(l.wrong, "the same key was made twice")
	}
	l.seen[name] = true
	l.made = append(l.made, made)
}

// lost counts keys that were reported as made and cannot be used.
func (l *workload) lost(t testing.TB) (n int) {
	t.Helper()
	l.mu.Lock()
	made := l.made
	l.made = nil
	l.mu.Unlock()
	digest := sha256.Sum256([]byte("document"))
	for _, m := range made {
		err := l.usable(t.Context(), m, digest[:])
		for begun := time.Now(); (errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBusy)) && time.Since(begun) < 10*soon; {
			err = l.usable(t.Context(), m, digest[:]) // no verdict on the key
		}
		if err != nil {
			t.Errorf("a key that was made cannot be used: %v", err)
			n++
		}
	}
	return n
}

func (l *workload) usable(ctx context.Context, m Material, digest []byte) error {
	if m.PublicKey == nil {
		value, err := l.user.CheckValue(ctx, m.EKT)
		if err == nil && !bytes.Equal(value, m.CheckValue) {
			return errors.New("another check value")
		}
		return err
	}
	public, err := x509.ParsePKIXPublicKey(m.PublicKey)
	if err != nil {
		return err
	}
	signature, err := l.user.Sign(ctx, m.EKT, "ECDSA_SHA_256", digest)
	if err == nil && !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest, signature) {
		return errors.New("its public key does not verify its signature")
	}
	return err
}

// accusations are answers that blame what the caller brought, which is good.
var accusations = []error{ErrInvalidCiphertext, ErrInvalidEKT, ErrMaterial, ErrSignature, ErrArgument}

// once makes one request.
func (l *workload) once(ctx context.Context, op loadOp) error {
	l.paused.RLock()
	defer l.paused.RUnlock()
	l.requests.Add(1)
	err := op.do(ctx)
	if err == nil {
		return nil
	}
	l.failed.Add(1)
	accused := slices.ContainsFunc(accusations, func(a error) bool { return errors.Is(err, a) })
	if accused || errors.Is(err, errWrong) {
		err = fmt.Errorf("%s: %w", op.name, err)
		l.accuse(err.Error())
	}
	return err
}

func (l *workload) accuse(wrong string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrong = append(l.wrong, wrong)
}

// run makes requests from callers at a time until ctx ends.
func (l *workload) run(ctx context.Context, callers int) (wait func()) {
	var deck []loadOp
	for _, op := range l.ops {
		for range op.weight {
			deck = append(deck, op)
		}
	}
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			for ctx.Err() == nil {
				_ = l.once(context.Background(), deck[mathrand.IntN(len(deck))])
				time.Sleep(l.think)
			}
		})
	}
	return group.Wait
}

// common is the least weight of a kind of request that is made often.
const common = 5

// one makes the request of that name.
func (l *workload) one(ctx context.Context, name string) error {
	i := slices.IndexFunc(l.ops, func(op loadOp) bool { return op.name == name })
	return l.once(ctx, l.ops[i])
}

// settle waits until every kind of request of at least that weight succeeds. Then
// it looks, with the load standing still, for keys that are lost, whose number
// it returns, and has look do so for what lives.
func (l *workload) settle(t testing.TB, weight int, look func()) (lost int) {
	t.Helper()
	l.healthy(t, weight)
	l.paused.Lock()
	defer l.paused.Unlock()
	lost = l.lost(t)
	look()
	return lost
}

// healthy waits until every kind of request of at least that weight succeeds,
// and returns how long that took.
func (l *workload) healthy(t testing.TB, weight int) time.Duration {
	t.Helper()
	start := time.Now()
	for _, op := range l.ops {
		began := time.Now()
		for op.weight >= weight {
			err := l.once(t.Context(), op)
			if err == nil {
				break
			}
			if time.Since(began) > soon/2 {
				t.Logf("%s, %s after it was first asked for: %v", op.name, time.Since(began), err)
			}
			if time.Since(start) > 10*soon {
				t.Fatalf("%s still fails %s after the fault: %v", op.name, time.Since(start), err)
			}
		}
	}
	return time.Since(start)
}

func (l *workload) takeWrong() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.wrong
	l.wrong = nil
	return list
}
