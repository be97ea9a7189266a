package hsm

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInboxIsFull: a session that polls between the reader's read and its look
// at what came finds no room left, and must not take that for the socket's end.
func TestInboxIsFull(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()   //nolint:errcheck // the test is over
	defer theirs.Close() //nolint:errcheck // the test is over
	in := bytes.Repeat([]byte{7}, inboxSize-requestHeader)
	frame := appendRequest(nil, 1, &call{op: callHMAC, in: in})
	taken := 0
	i, err := newInbox(ours, func([]byte) error { taken++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error)
	go func() {
		_, err := theirs.Write(frame)
		written <- err
	}()
	for len(i.held) < len(frame) { // as run does
		err := i.conn.Read(func(fd uintptr) bool { return i.fill(fd) })
		if err != nil || i.err != nil {
			t.Fatal(err, i.err)
		}
	}
	i.poll()
	if err := <-written; err != nil || i.err != nil || taken != 1 {
		t.Errorf("written %v, read %v, %d frames taken", err, i.err, taken)
	}
	if _, err := theirs.Write(appendRequest(nil, 2, &call{op: callPing})); err != nil {
		t.Fatal(err)
	}
	i.poll()
	if err := unix.Shutdown(int(theirs.Fd()), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := i.run(); err == nil || taken != 2 {
		t.Errorf("ended with %v, %d frames taken", err, taken)
	}
}

// TestInboxWipesWhatIsCutOff: a reply that ends with its worker may have had a
// plaintext in it.
func TestInboxWipesWhatIsCutOff(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close() //nolint:errcheck // the test is over
	i, err := newInbox(ours, func([]byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	frame := appendReply(nil, 1, statusDone, &reply{out: []byte("plaintext"), public: make([]byte, 9)})
	if _, err := theirs.Write(frame[:len(frame)-1]); err != nil {
		t.Fatal(err)
	}
	if err := i.conn.Read(i.fill); err != nil {
		t.Fatal(err)
	}
	whole := i.buf
	_ = theirs.Close()
	if err := i.run(); err == nil {
		t.Error("it did not end")
	}
	if bytes.Contains(whole, []byte("plain")) {
		t.Error("what was cut off stays in memory")
	}
}
