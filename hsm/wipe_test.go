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
		j := &job{frame: frame}
		var err error
		if j.id, err = parseRequest(frame, &j.call); err != nil {
			t.Fatal(err)
		}
		w.work(j, new(slog.LevelVar))
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
