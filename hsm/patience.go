package hsm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// errStale: the request's handle belongs to an earlier epoch. The member loads
// it anew; no caller sees this.
var errStale = errors.New("object handle of an earlier epoch")

// errDown: the token is being recovered. Calls wait and begin again.
var errDown = errors.New("the token is being recovered")

// patience decides, for one call, whether to make it once more. Every call can
// be: none leaves anything on the device but session objects, which die with
// the session that is thrown away. Its zero value is ready.
type patience struct {
	until   time.Time // for how long; set by the first failure
	tries   int
	handles int  // failures that a fresh handle may cure
	doubted bool // a failure of no known cause was met once
}

// again returns nil when the call is worth another try, after waiting for what
// it needs, and otherwise what its caller is told.
func (p *patience) again(ctx context.Context, t *Token, err error) error {
	if !p.worthwhile(err) {
		return err
	}
	if p.until.IsZero() {
		p.until = time.Now().Add(t.cfg.RecoveryWait)
	}
	p.tries++
	if waitErr := p.wait(ctx, t); waitErr != nil {
		if errors.Is(err, errStale) || errors.Is(err, errDown) {
			return waitErr
		}
		return errors.Join(waitErr, err)
	}
	return nil
}

func (p *patience) worthwhile(err error) bool {
	if errors.Is(err, errStale) || errors.Is(err, errDown) {
		return true
	}
	code, ok := codeOf(err)
	if !ok {
		return false
	}
	switch classify(code) {
	case classDevice, classToken, classSession, classLogin, classBusy:
		return true
	case classHandle:
		p.handles++
		return p.handles <= 2 // one may have been stale, and what wraps it
	case classStrange, classData:
		first := !p.doubted
		p.doubted = true
		return first
	}
	return false
}

// wait is short for the first tries: most losses are mended by then.
func (p *patience) wait(ctx context.Context, t *Token) error {
	if err := t.gate.wait(ctx, p.until); err != nil {
		return err
	}
	if p.tries < 3 {
		return ctx.Err()
	}
	if !time.Now().Before(p.until) {
		return fmt.Errorf("%w: it failed %d times in %s", ErrUnavailable, p.tries, t.cfg.RecoveryWait)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(jittered(min(time.Millisecond<<min(p.tries-3, 8), 50*time.Millisecond))):
		return nil
	}
}

// jittered keeps callers, and hosts, from coming back all at once.
func jittered(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1) //nolint:gosec // not a secret
}

// settled turns what only this package understands into ErrUnavailable.
func settled(err error) error {
	if errors.Is(err, errStale) || errors.Is(err, errDown) {
		return fmt.Errorf("%w: it was lost again and again during one call", ErrUnavailable)
	}
	return err
}

// suspicious says whether a fresh handle may help. A device that addresses
// another key than the handle was given for cannot tell us so, but for some
// uses it shows: before its answer is believed, the key is loaded anew.
func suspicious(o op, err error) bool {
	if errors.Is(err, errStale) {
		return true
	}
	code, ok := codeOf(err)
	if !ok {
		return false
	}
	switch classify(code) {
	case classHandle:
		return true
	case classData, classForged:
		return o == opDecrypt || o == opDecryptRSA
	}
	return slices.Contains(otherKey, code)
}
