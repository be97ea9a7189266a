package hsm

import (
	"net"
	"runtime"
	"sync"
)

// outbox coalesces frames: whoever has one appends it, and one goroutine
// writes what has gathered, so that many frames cost one system call. Whoever
// knows that no more will come soon may flush instead.
type outbox struct {
	conn *net.UnixConn
	wake chan struct{} // holds one token when there is something to write

	writing sync.Mutex // held while writing; guards spare
	spare   []byte

	mu       sync.Mutex // guards these
	pending  []byte
	attended bool  // someone flushes soon: no need to signal
	err      error // of the first write that failed; ends the outbox
}

// keepOutbox is the largest buffer that is kept for later writes.
const keepOutbox = 1 << 20

func newOutbox(conn *net.UnixConn) *outbox {
	return &outbox{conn: conn, wake: make(chan struct{}, 1)}
}

// request puts a request among what is written next.
func (o *outbox) request(id uint32, c *call) error {
	o.mu.Lock()
	err := o.err
	if err == nil {
		o.pending = appendRequest(room(o.pending, c.size()), id, c)
	}
	attended := o.attended
	o.mu.Unlock()
	if !attended {
		o.signal()
	}
	return err
}

// reply puts a reply among what is written next.
func (o *outbox) reply(id uint32, status byte, r *reply) error {
	err := o.gather(id, status, r)
	o.signal()
	return err
}

// gather is reply for those who flush.
func (o *outbox) gather(id uint32, status byte, r *reply) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.pending = appendReply(room(o.pending, r.size()), id, status, r)
	}
	return o.err
}

// replyNow writes a reply before it returns, past what gathers: the process may
// end at any moment. Writes to one connection do not mix.
func (o *outbox) replyNow(id uint32, status byte, r *reply) {
	_, _ = o.conn.Write(appendReply(nil, id, status, r)) // if not, this process is about to end
}

// room returns b with space for n more bytes. Where append would leave a copy
// behind, it is wiped.
func room(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	grown := append(make([]byte, 0, max(2*cap(b), len(b)+n, 4096)), b...)
	clear(b)
	return grown
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run writes until a write fails or done is closed.
func (o *outbox) run(done <-chan struct{}) {
	for {
		select {
		case <-o.wake:
		case <-done:
			o.end(net.ErrClosed)
			return
		}
		// Those who are about to add a frame go first.
		runtime.Gosched()
		o.flush()
		if o.ended() {
			return
		}
	}
}

// attend saves those who add a frame from now on the wake-up of run: the
// caller is about to flush.
func (o *outbox) attend() {
	o.mu.Lock()
	o.attended = true
	o.mu.Unlock()
}

func (o *outbox) ended() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err != nil
}

// flush writes what has gathered. Every buffer is wiped.
func (o *outbox) flush() {
	o.writing.Lock()
	defer o.writing.Unlock()
	o.mu.Lock()
	o.attended = false
	batch := o.pending
	if len(batch) == 0 {
		o.mu.Unlock()
		return
	}
	o.pending, o.spare = o.spare[:0], nil
	o.mu.Unlock()
	_, err := o.conn.Write(batch)
	clear(batch)
	if err != nil {
		o.end(err)
	}
	if cap(batch) <= keepOutbox {
		o.spare = batch
	}
}

func (o *outbox) end(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
	clear(o.pending)
	o.pending = nil
}
