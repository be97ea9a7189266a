package hsm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// remote is a member in a worker process, seen from the process that serves.
// Calls are pipelined: any number are on their way at a time, and their
// answers come in any order.
type remote struct {
	process *process
	out     *outbox
	limits  Limits
	coarse  atomic.Int64 // nanoseconds, moved on by watch

	hangs    prometheus.Counter     // of the member
	health   atomic.Pointer[Health] // what the worker said of its token last; nil = nothing
	loggedIn atomic.Bool            // the worker was about to try the PIN, or has
	retire   chan struct{}          // holds one token when the worker asks for a successor

	mu    sync.Mutex // guards these
	calls []*flight  // by id - 1; nil where no call is
	free  []uint32   // ids to use again
	most  int        // of calls
	moved [laneCount]int64
	err   error // why no more calls are taken; set before lost is closed

	lost chan struct{} // closed when the worker is of no more use
}

// flight is a call on its way.
type flight struct {
	r     *reply
	err   error
	lane  laneKind
	since int64 // coarse time
	state atomic.Uint32
	done  chan struct{}
}

var flights = sync.Pool{New: func() any { return &flight{done: make(chan struct{}, 1)} }}

// Limits are how long one call to the device may take.
type Limits struct {
	// Call is for all calls but those that Make is for. 0 = 5 s.
	Call time.Duration
	// Make is for a call that makes or imports a key: RSA_4096 takes many
	// seconds on some devices. 0 = 60 s.
	Make time.Duration
	// Open is for the start of a worker, its login and the look at its keys.
	// 0 = 30 s.
	Open time.Duration
}

// laneKind sorts calls by the lane of Token that serves them: a worker whose
// lane answers nothing for the time that one call may take is hung. While others of
// its lane are answered, a call may have waited behind them.
type laneKind uint8

const (
	laneSymmetric laneKind = iota
	laneSealing
	laneAsymmetric
	laneKeeper
	laneMaker
	laneOpening // before there are lanes
	laneCount
)

func (c callOp) lane() laneKind {
	switch c {
	case callSum, callVerify:
		return laneSealing
	case callSign, callAgree, callDecryptRSA, callVerifySignature:
		return laneAsymmetric
	case callGenerateAES, callGenerate, callGenerateDataKeyPair, callGenerateWrappingKey, callImport, callImportSecret,
		callCheckValue, callRewrap, callSupports, callSupportsImport,
		callEnrolmentKey, callMakeShared, callTakeShared, callDropEnrolmentKey:
		return laneMaker
	case callOpen:
		return laneOpening
	case callEncrypt, callDecrypt, callHMAC, callMAC, callRandom:
		return laneSymmetric
	}
	return laneKeeper
}

// errLost wraps ErrUnavailable: what the call came to is not known.
var errLost = fmt.Errorf("%w: its worker process ended", ErrUnavailable)

var errKilled = fmt.Errorf("%w: it did not answer in time, and its worker process was killed", ErrUnavailable)

func newRemote(p *process, l Limits, calls int, hangs prometheus.Counter) *remote {
	r := &remote{
		process: p, out: newOutbox(p.conn), limits: l, most: calls, hangs: hangs,
		retire: make(chan struct{}, 1), lost: make(chan struct{}),
	}
	r.coarse.Store(time.Now().UnixNano())
	go r.out.run(r.lost)
	go r.listen()
	go r.watch()
	return r
}

// do implements caller.
func (w *remote) do(ctx context.Context, c *call, r *reply) error {
	if c.size() > largestFrame {
		return fmt.Errorf("%w: %d bytes are too many for one call", ErrArgument, c.size())
	}
	f := flights.Get().(*flight)
	f.r, f.lane, f.since = r, c.op.lane(), w.coarse.Load()
	id, err := w.depart(f)
	if err != nil {
		*f = flight{done: f.done}
		flights.Put(f)
		return err
	}
	// If it cannot be written the worker is lost, and f told so.
	_ = w.out.request(id, c)
	select {
	case <-f.done:
	case <-ctx.Done():
		if f.state.CompareAndSwap(waiting, abandoned) {
			return ctx.Err() // whoever lands f recycles it
		}
		<-f.done
	}
	err = f.err
	f.recycle()
	return err
}

func (f *flight) recycle() {
	f.r, f.err = nil, nil
	f.state.Store(waiting)
	flights.Put(f)
}

// depart gives f an id.
func (w *remote) depart(f *flight) (id uint32, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch n := len(w.free); {
	case w.err != nil:
		return 0, w.err
	case n > 0:
		id = w.free[n-1]
		w.free = w.free[:n-1]
		w.calls[id-1] = f
	case len(w.calls) >= w.most:
		return 0, ErrBusy
	default:
		w.calls = append(w.calls, f)
		id = uint32(len(w.calls))
	}
	return id, nil
}

// arrived takes the flight of an id off the list.
func (w *remote) arrived(id uint32) *flight {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id == 0 || id > uint32(len(w.calls)) || w.calls[id-1] == nil {
		return nil
	}
	f := w.calls[id-1]
	w.calls[id-1] = nil
	w.free = append(w.free, id)
	w.moved[f.lane] = w.coarse.Load()
	return f
}

// listen hands out answers until the worker is gone.
func (w *remote) listen() {
	in, err := newInbox(w.process.conn, w.take)
	if err == nil {
		in.done = w.gatherAgain
		err = in.run()
	}
	if errors.Is(err, errFrame) {
		w.lose(fmt.Errorf("%w: its worker process sent nonsense", ErrUnavailable))
	}
	w.lose(errLost)
}

// gatherAgain writes what those ask who were answered just now: they go first,
// and need not wake another goroutine for it.
func (w *remote) gatherAgain() {
	runtime.Gosched()
	w.out.flush()
}

func (w *remote) take(frame []byte) error {
	var r reply
	id, status, err := parseReply(frame, &r)
	if err != nil {
		return err
	}
	if status == statusNotice {
		w.notice(&r)
		return nil
	}
	f := w.arrived(id)
	if f == nil {
		return errFrame
	}
	w.out.attend()
	f.land(&r, status)
	return nil
}

func (w *remote) notice(r *reply) {
	switch r.number {
	case noticeHealth:
		h := new(Health)
		if r.read(h) == nil {
			w.health.Store(h)
		}
	case noticeLogin:
		w.loggedIn.Store(true)
	case noticeHung:
		w.lose(errKilled)
	case noticeRetire:
		select {
		case w.retire <- struct{}{}:
		default: // it was told before
		}
	}
}

// land wakes the caller, whose reply has slices of its own.
func (f *flight) land(r *reply, status byte) {
	if !f.state.CompareAndSwap(waiting, finished) {
		f.recycle() // the caller has gone
		return
	}
	if status == statusFailed {
		f.err = decodeError(r.detail)
	} else {
		f.r.copy(r)
	}
	f.done <- struct{}{}
}

func (r *reply) copy(from *reply) {
	b := make([]byte, from.size()-replyHeader)
	own := func(p []byte) []byte {
		if p == nil {
			return nil
		}
		n := copy(b, p)
		p, b = b[:n:n], b[n:]
		return p
	}
	r.number = from.number
	r.ekt, r.out, r.public, r.detail = own(from.ekt), own(from.out), own(from.public), own(from.detail)
}

// lose ends the worker: it is killed, and every call told why.
func (w *remote) lose(why error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err = why
	calls := w.calls
	w.calls, w.free = nil, nil
	w.mu.Unlock()
	if errors.Is(why, errKilled) {
		w.hangs.Inc()
	}
	w.process.kill()
	close(w.lost) // before anyone is told, who may ask whether it is
	for _, f := range calls {
		if f == nil {
			continue
		}
		if f.state.CompareAndSwap(waiting, finished) {
			f.err = why
			f.done <- struct{}{}
		} else {
			f.recycle()
		}
	}
}

func (w *remote) gone() bool {
	select {
	case <-w.lost:
		return true
	default:
		return false
	}
}

// inFlight counts calls that have not been answered, also those whose callers
// have gone.
func (w *remote) inFlight() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.calls) - len(w.free)
}

// pulse is how exactly a hung worker is noticed.
const pulse = 20 * time.Millisecond

// watch keeps the coarse clock and looks for calls that take too long.
func (w *remote) watch() {
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	for {
		select {
		case <-w.lost:
			return
		case now := <-tick.C:
			w.coarse.Store(now.UnixNano())
			if lane, hung := w.hung(now.UnixNano()); hung {
				w.process.log.Error("killing a worker that hangs", "lane", lane, "calls", w.inFlight())
				w.lose(errKilled)
				return
			}
		}
	}
}

func (w *remote) hung(now int64) (laneKind, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.calls {
		if f == nil {
			continue
		}
		limit := int64(w.limits.Call)
		switch f.lane {
		case laneMaker:
			limit = int64(w.limits.Make)
		case laneOpening:
			limit = int64(w.limits.Open)
		}
		moved := w.moved[f.lane]
		if f.lane == laneKeeper { // a ping waits its turn among those calls too
			moved = max(moved, w.moved[laneSymmetric])
		}
		if now-f.since > limit && now-moved > limit {
			return f.lane, true
		}
	}
	return 0, false
}
