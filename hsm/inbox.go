package hsm

import (
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// inbox reads frames and hands each to take, which must not block nor keep it:
// it is wiped when take returns.
type inbox struct {
	conn syscall.RawConn
	take func(frame []byte) error
	done func()           // called when run has taken what had come; nil = nothing
	look func(fd uintptr) // is fill; made once, since poll is called often

	mu   sync.Mutex // guards these; held during take
	buf  []byte
	held []byte // what of buf was read and not taken yet
	want int    // bytes that the frame takes of which held has the beginning
	err  error  // of the first read or frame that failed; ends the inbox
}

const inboxSize = 256 << 10

func newInbox(conn *net.UnixConn, take func(frame []byte) error) (*inbox, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("looking at a socket: %w", err)
	}
	i := &inbox{conn: raw, take: take}
	i.look = func(fd uintptr) { i.fill(fd) }
	return i, nil
}

// run takes frames as they come, until the socket is closed, a frame is none,
// or take fails.
func (i *inbox) run() error {
	for {
		err := i.conn.Read(func(fd uintptr) bool {
			i.mu.Lock()
			defer i.mu.Unlock()
			return i.fill(fd)
		})
		i.mu.Lock()
		i.drain()
		if i.err == nil {
			i.err = err
		}
		if err = i.err; err != nil {
			clear(i.buf) // of a frame that was cut off
			i.held = nil
		}
		i.mu.Unlock()
		if i.done != nil {
			i.done()
		}
		if err != nil {
			return err //nolint:wrapcheck // the caller knows what ended
		}
	}
}

// poll takes what has come, unless run is about to. It waits for nothing.
func (i *inbox) poll() {
	if !i.mu.TryLock() {
		return
	}
	defer i.mu.Unlock()
	_ = i.conn.Control(i.look) // of a closed socket: run learns of it
	i.drain()
}

// fill reads once. It answers false if nothing has come.
func (i *inbox) fill(fd uintptr) bool {
	if i.err != nil {
		return true
	}
	i.makeRoom()
	if len(i.held) == len(i.buf) {
		return true // another has just filled it: a read into nothing looks like the end
	}
	for {
		n, err := unix.Read(int(fd), i.buf[len(i.held):])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return false
		case err != nil:
			i.err = err
		case n == 0:
			i.err = io.EOF
		default:
			i.held = i.buf[:len(i.held)+n]
		}
		return true
	}
}

// drain takes the whole frames and leaves the rest at the buffer's beginning.
// What came before the end of the socket counts.
func (i *inbox) drain() {
	rest := i.held
	var err error
	for err == nil {
		var frame []byte
		if frame, rest, i.want, err = nextFrame(rest); err != nil || frame == nil {
			break
		}
		err = i.take(frame)
		clear(frame)
	}
	n := copy(i.buf, rest)
	clear(i.buf[n:max(n, len(i.held))])
	i.held = i.buf[:n]
	if n == 0 && len(i.buf) > keepOutbox {
		i.buf, i.held = nil, nil
	}
	if i.err == nil {
		i.err = err
	}
}

func (i *inbox) makeRoom() {
	if i.buf == nil || len(i.buf) < i.want {
		grown := make([]byte, max(inboxSize, i.want))
		n := copy(grown, i.held)
		clear(i.buf)
		i.buf, i.held = grown, grown[:n]
	}
}
