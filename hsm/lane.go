package hsm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"
)

// errStale: the request's handle belongs to an earlier epoch. The domain loads
// it anew; no caller sees this.
var errStale = errors.New("object handle of an earlier epoch")

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
	size    int // of its sessions
	batch   int // see quick and slow

	mu     sync.RWMutex // guards closed against sends on queue
	closed bool
}

func startLane(queue, batch int, stats *metrics, sessions ...*session) *lane {
	l := &lane{queue: make(chan *request, queue), size: len(sessions), batch: batch, stats: stats}
	for _, s := range sessions {
		l.workers.Go(func() { l.work(s) })
	}
	return l
}

// quick is how many requests a busy worker answers at a time. Waking a caller
// on another core may cost as much as half a device call. Answered together,
// and with the worker stepping aside, callers run on the worker's own core:
// measured with 16 callers on SoftHSM, 2 µs of CPU per call instead of 12.
const quick = 16

// slow is quick for lanes whose calls take so long that no caller should wait
// for another's.
const slow = 1

func (l *lane) work(s *session) {
	defer s.close()
	served := make([]*request, 0, l.batch)
	for {
		r, open := l.next(len(served) == 0)
		if r != nil {
			if r.state.Load() == waiting {
				s.run(r)
			}
			served = append(served, r)
		}
		if r == nil || len(served) == l.batch {
			for _, r := range served {
				r.answer()
			}
			served = served[:0]
			runtime.Gosched()
		}
		if !open {
			return
		}
	}
}

// next takes a request from the queue. A worker that owes answers does not
// wait: another worker may have taken the request that it saw coming.
func (l *lane) next(wait bool) (r *request, open bool) {
	if wait {
		r, open = <-l.queue
		return r, open
	}
	select {
	case r, open = <-l.queue:
		return r, open
	default:
		return nil, true
	}
}

// answer wakes the caller of r. One who has gone leaves r to be wiped here.
func (r *request) answer() {
	if r.state.CompareAndSwap(waiting, finished) {
		r.done <- struct{}{}
		return
	}
	r.wipeOutput()
	r.end()
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
	l.stats.took(r.op, r.took)
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
