package hsm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"
)

// TestLateCallLeavesNoSecret: of a call that waited too long a worker keeps
// nothing that was secret, though what was begun may go on.
func TestLateCallLeavesNoSecret(t *testing.T) {
	d := newDomain(t, nil)
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	w := &worker{log: slog.New(slog.DiscardHandler), out: newOutbox(nil)}
	w.member.Store(d)
	w.limit.Store(&bound{call: late, make: late, until: time.Now().Add(time.Hour)})
	secret := []byte("a secret of more than 32 bytes, as it came")
	for _, c := range []call{{op: callImportSecret, in: secret}, {op: callVerify, number: 1, in: []byte("row"), extra: secret[:macSize]}} {
		frame := appendRequest(nil, 1, &c)[4:]
		j := w.newJob()
		j.frame = frame
		var err error
		if j.id, err = parseRequest(frame, &j.call); err != nil {
			t.Fatal(err)
		}
		j.limit = w.bound(j.call.op)
		w.work(j)
		answer, _, _, err := nextFrame(w.out.pending)
		if err != nil || answer == nil {
			t.Fatal(err)
		}
		var r reply
		if _, status, err := parseReply(answer, &r); err != nil || status != statusFailed || !errors.Is(decodeError(r.detail), ErrBusy) {
			t.Fatalf("status %d, %s, %v", status, r.detail, err)
		}
		w.out.end(io.EOF)
		w.out = newOutbox(nil)
		if bytes.Contains(frame, secret[:macSize]) {
			t.Errorf("operation %d: the frame still has it", c.op)
		}
	}
}

// TestBegunCallLate: a call that its lane comes to too late is refused as busy,
// not made, and its secret wiped.
func TestBegunCallLate(t *testing.T) {
	d := newDomain(t, nil)
	ekt := newAES(t, d)
	if _, err := sealBlob(t.Context(), d, ekt, []byte("x")); err != nil { // its handle is cached from here on
		t.Fatal(err)
	}
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	w := &worker{log: slog.New(slog.DiscardHandler), out: newOutbox(nil)}
	secret := []byte("a plaintext that is as secret as any")
	for _, c := range []struct {
		ctx  context.Context //nolint:containedctx // what varies
		done bool
	}{{late, false}, {t.Context(), true}} {
		j := w.newJob()
		j.frame = appendRequest(nil, 1, &call{op: callEncrypt, ekt: ekt, in: secret})[4:]
		frame := j.frame
		var err error
		if j.id, err = parseRequest(frame, &j.call); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		if !d.begin(c.ctx, &j.call, func(out []byte, err error) { j.then(out, err); close(done) }) {
			t.Fatal("not begun")
		}
		<-done
		answer, _, _, err := nextFrame(w.out.pending)
		if err != nil || answer == nil {
			t.Fatal(err)
		}
		var r reply
		_, status, err := parseReply(answer, &r)
		if err != nil || (status == statusDone) != c.done || !c.done && !errors.Is(decodeError(r.detail), ErrBusy) {
			t.Errorf("done %t: status %d, %s, %v", c.done, status, r.detail, err)
		}
		w.out.end(io.EOF)
		w.out = newOutbox(nil)
		if bytes.Contains(frame, secret) {
			t.Errorf("done %t: the frame still has the plaintext", c.done)
		}
	}
}
