package hsm

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

var errClosed = fmt.Errorf("%w: the token was closed", ErrUnavailable)

// background is for work that outlives the caller who caused it.
var background = context.Background()

// lane is a few sessions behind a bounded queue. PKCS#11 calls cannot be
// interrupted, so each session belongs to a worker, and a caller whose context
// ends walks away from its request.
type lane struct {
	queue   chan *request
	workers sync.WaitGroup
	stats   *metrics
	name    string // in metrics
	batch   int    // see quick and slow

	post post // of requests that have then; zero = none

	sessions []*session   // one for each worker
	busy     atomic.Int32 // sessions in use

	mu     sync.RWMutex // guards closed against sends on queue
	closed bool
}

// post carries requests and answers in batches. A lane's workers see to it by
// themselves, since they are awake.
type post struct {
	fetch func() // queues what has come; must not block
	// send sends what was answered. It may wait for who reads the answers, who
	// must not wait for the lane.
	send func()
}

func newLane(name string, queue, batch int) *lane {
	return &lane{name: name, queue: make(chan *request, queue), batch: batch}
}

func (l *lane) start() {
	for _, s := range l.sessions {
		l.workers.Go(func() { l.work(s) })
	}
}

// quick is how many requests a busy worker answers at a time. Waking a caller
// on another core may cost as much as half a device call. Answered together,
// and with the worker stepping aside, callers run on the worker's own core:
// measured with 16 callers on SoftHSM, 2 µs of CPU per call instead of 12.
const quick = 16

// slow is quick for lanes whose calls take so long that no caller should wait
// for another's.
const slow = 1

// owing is for how long a worker may answer nobody while it serves others of a
// batch. Waking callers is cheap beside calls that take as long: a device far
// away, on which a batch would take longer than a call may.
const owing = time.Millisecond

// longest is for how long the longest call has been going on.
func (l *lane) longest(now time.Time) time.Duration {
	longest := time.Duration(0)
	for _, s := range l.sessions {
		if since := s.since.Load(); since != 0 {
			longest = max(longest, time.Duration(now.UnixNano()-since))
		}
	}
	return longest
}

func (l *lane) work(s *session) {
	served := make([]*request, 0, l.batch)
	took := time.Duration(0)
	for {
		idle := len(served) == 0
		r, open := l.next(idle)
		if r != nil {
			if idle {
				l.busy.Add(1)
			}
			l.serve(s, r)
			served = append(served, r)
			took += r.took
		}
		if r == nil || len(served) == l.batch || took > owing {
			l.answerAll(served)
			served, took = served[:0], 0
		}
		if !open {
			return
		}
	}
}

func (l *lane) serve(s *session, r *request) {
	switch {
	case r.state.Load() != waiting:
	case r.ctx != nil && r.ctx.Err() != nil:
		r.err = r.ctx.Err()
	default:
		s.run(r)
	}
}

func (l *lane) answerAll(served []*request) {
	for _, r := range served {
		l.answer(r)
	}
	if len(served) > 0 {
		l.busy.Add(-1)
		if l.post.send != nil {
			l.post.send()
		}
	}
	runtime.Gosched()
}

// next takes a request from the queue. A worker that owes answers does not
// wait: another worker may have taken the request that it saw coming.
func (l *lane) next(wait bool) (r *request, open bool) {
	if wait {
		r, open = <-l.queue
		return r, open
	}
	if len(l.queue) == 0 && l.post.fetch != nil {
		l.post.fetch()
	}
	select {
	case r, open = <-l.queue:
		return r, open
	default:
		return nil, true
	}
}

// answer wakes the caller of r, or calls what it left behind. One who has gone
// leaves r to be wiped here.
func (l *lane) answer(r *request) {
	switch {
	case r.then != nil:
		then := r.then
		then(l.result(r))
	case r.state.CompareAndSwap(waiting, finished):
		r.done <- struct{}{}
	default:
		r.wipeOutput()
		r.end()
	}
}

// close lets the workers finish what is queued.
func (l *lane) close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.queue)
	}
	l.mu.Unlock()
	l.workers.Wait()
}

func (l *lane) send(r *request) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return errClosed
	}
	select {
	case l.queue <- r:
		return nil
	default:
		return ErrBusy
	}
}

// sendWaiting is send for work that must not be turned away, by goroutines
// whose number is bounded elsewhere.
func (l *lane) sendWaiting(r *request) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return errClosed
	}
	l.queue <- r
	return nil
}

// do has a worker run r and returns its output, which the caller then owns. It
// ends r in every case; on error no output survives.
func (l *lane) do(ctx context.Context, r *request) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		r.end()
		return nil, err
	}
	if err := l.send(r); err != nil {
		r.end()
		return nil, err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(waiting, abandoned) {
			return nil, ctx.Err() // the worker wipes and ends r
		}
		<-r.done
	}
	return l.result(r)
}

// result is what r came to. It ends r; on error no output survives.
func (l *lane) result(r *request) ([]byte, error) {
	l.stats.took(r)
	out, err := r.out, r.err
	if err != nil {
		r.wipeOutput()
		out = nil
	} else if out != nil {
		clear(out[r.length:])
		out = out[:r.length]
	}
	r.end()
	return out, err
}

type op uint8

const (
	opFunc op = iota
	opEncrypt
	opDecrypt
	opHMAC
	opVerify
	opRandom
	opSign
	opMAC
	opDecryptRSA
	opAgree
	opCount
)

func (o op) String() string {
	return [opCount]string{"calling", "encrypting", "decrypting", "computing HMAC", "verifying HMAC", "generating random bytes",
		"signing", "computing HMAC", "decrypting by RSA", "agreeing on a secret"}[o]
}

const (
	waiting uint32 = iota
	finished
	abandoned
)

// request is one call on a session. Its inputs are copies, because the worker
// may still read them after the caller has gone. Whoever comes last, caller or
// worker, calls end.
type request struct {
	op    op
	epoch uint64
	key   pkcs11.ObjectHandle
	fn    func(*session) error

	mechanism  uint   // of an asymmetric call or a MAC
	parameters []byte // of the mechanism, not secret; nil = none

	ivs ivWay // of opEncrypt

	buf              []byte // holds iv, aad, in and mac
	iv, aad, in, mac []byte
	out              []byte // the caller's once do returns it
	length           int    // bytes of out that are output
	err              error
	took             time.Duration
	handle           *handle // released when r ends

	state atomic.Uint32
	done  chan struct{}

	// then, if not nil, is called with the result, by the lane's worker, in
	// place of waking a caller; it must not block. If ctx has ended when its
	// turn comes, r is not run.
	then func(out []byte, err error)
	ctx  context.Context //nolint:containedctx // a call that no one waits for has nowhere else to keep it
}

var requests = sync.Pool{New: func() any { return &request{done: make(chan struct{}, 1)} }}

// keepBuffer is the largest input buffer that a pooled request keeps.
const keepBuffer = 64 << 10

func newRequest(o op, epoch uint64) *request {
	r := requests.Get().(*request)
	r.op, r.epoch = o, epoch
	return r
}

// input copies what the worker will read. out is how many bytes it may write.
func (r *request) input(iv, aad, in, mac []byte, out int) {
	n := len(iv) + len(aad) + len(in) + len(mac)
	if cap(r.buf) <= n {
		r.buf = make([]byte, 0, n+1) // never empty: PKCS#11 wants non-null pointers
	}
	b := append(append(append(append(r.buf[:0], iv...), aad...), in...), mac...)
	r.buf = b
	r.iv, b = b[:len(iv):len(iv)], b[len(iv):]
	r.aad, b = b[:len(aad):len(aad)], b[len(aad):]
	r.in, r.mac = b[:len(in):len(in)], b[len(in):]
	if out > 0 {
		r.out = make([]byte, out)
	}
}

// wrongLength: the device says that it wrote more or less than the mechanism
// can yield. Of a plaintext of RSA-OAEP and of random bytes that cannot be
// told.
func (r *request) wrongLength() bool {
	switch r.op {
	case opEncrypt:
		iv := r.length - len(r.in) - tagSize
		return iv != ivSize && iv != maxIV
	case opDecrypt:
		return r.length != len(r.in)-tagSize
	case opHMAC, opMAC, opAgree:
		return r.length != len(r.out)
	case opSign:
		return !signatureLength(r.mechanism, r.length, len(r.out))
	case opDecryptRSA:
		return r.length > len(r.out)
	}
	return false
}

func (r *request) wipeOutput() { clear(r.out) }

// end wipes the inputs, lets go of the handle and recycles r.
func (r *request) end() {
	clear(r.buf)
	if r.handle != nil {
		r.handle.release()
	}
	buf := r.buf[:0]
	if cap(buf) > keepBuffer {
		buf = nil
	}
	*r = request{buf: buf, done: r.done}
	requests.Put(r)
}
