package hsm

import (
	"net"
	"runtime"
	"sync"
)

// outbox coalesces frames: whoever has one appends it, and one goroutine
// writes what has gathered, so that many frames cost one system call.
type outbox struct {
	conn *net.UnixConn
	wake chan struct{} // holds one token when there is something to write

	mu      sync.Mutex // guards these
	pending []byte
	err     error // of the first write that failed; ends the outbox
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
	o.mu.Unlock()
	o.signal()
	return err
}

// reply puts a reply among what is written next.
func (o *outbox) reply(id uint32, status byte, r *reply) error {
	o.mu.Lock()
	err := o.err
	if err == nil {
		o.pending = appendReply(room(o.pending, r.size()), id, status, r)
	}
	o.mu.Unlock()
	o.signal()
	return err
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

// run writes until a write fails or done is closed. Every buffer is wiped.
func (o *outbox) run(done <-chan struct{}) {
	var spare []byte
	for {
		select {
		case <-o.wake:
		case <-done:
			o.end(net.ErrClosed)
			return
		}
		// Those who are about to add a frame go first.
		runtime.Gosched()
		o.mu.Lock()
		batch := o.pending
		o.pending = spare[:0]
		o.mu.Unlock()
		_, err := o.conn.Write(batch)
		clear(batch)
		if err != nil {
			o.end(err)
			return
		}
		if spare = batch; cap(spare) > keepOutbox {
			spare = nil
		}
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

// inbox reads frames.
type inbox struct {
	conn *net.UnixConn
	buf  []byte
	held []byte // what of buf was read and not taken yet
}

const inboxSize = 256 << 10

// next waits for at least one whole frame and calls take with each that has
// come. A frame is wiped when take returns.
func (i *inbox) next(take func(frame []byte) error) error {
	for taken := false; !taken; {
		want, err := i.drain(take, &taken)
		if err != nil {
			return err
		}
		if taken {
			break
		}
		i.makeRoom(want)
		n, err := i.conn.Read(i.buf[len(i.held):])
		i.held = i.buf[:len(i.held)+n]
		if err != nil {
			return err //nolint:wrapcheck // the caller knows what ended
		}
	}
	return nil
}

// drain takes the whole frames and leaves the rest at the buffer's beginning.
func (i *inbox) drain(take func([]byte) error, taken *bool) (want int, err error) {
	rest := i.held
	for {
		var frame []byte
		if frame, rest, want, err = nextFrame(rest); err != nil || frame == nil {
			break
		}
		*taken = true
		err = take(frame)
		clear(frame)
		if err != nil {
			break
		}
	}
	n := copy(i.buf, rest)
	clear(i.buf[n:max(n, len(i.held))])
	i.held = i.buf[:n]
	if n == 0 && len(i.buf) > keepOutbox {
		i.buf = nil
	}
	return want, err
}

func (i *inbox) makeRoom(want int) {
	if i.buf == nil || len(i.buf) < want {
		grown := make([]byte, max(inboxSize, want))
		n := copy(grown, i.held)
		clear(i.buf)
		i.buf, i.held = grown, grown[:n]
	}
}
