package hsm

import (
	"context"
	"io"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/trent-kms/trent/internal/faultshim"
)

// TestOneBound: a call that is begun again in the worker has what is left of
// its time, not as much once more.
func TestOneBound(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	key := newAES(t, d)
	if _, _, err := d.Encrypt(t.Context(), key, nil, []byte("x")); err != nil { // it is unwrapped
		t.Fatal(err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(theirs.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := socketOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _, _ = ours.Close(), theirs.Close(), conn.Close() }()
	w := &worker{log: slog.New(slog.DiscardHandler), out: newOutbox(conn), token: d.t, next: make(chan *job)}
	w.member.Store(d)
	done := make(chan struct{})
	defer close(done)
	go w.out.run(done)
	const left = 300 * time.Millisecond
	limit, cancel := context.WithTimeout(t.Context(), left)
	defer cancel()
	w.settings.Limits.Call = time.Minute
	w.limit.Store(&bound{call: limit, make: limit, until: time.Now().Add(time.Minute)})
	// From now on the session's lane answers late, and each try fails.
	shim.Set("C_Encrypt", faultshim.Fault{Action: faultshim.Fail, Code: pkcs11.CKR_SESSION_COUNT})
	shim.Set("C_EncryptInit", faultshim.Fault{Action: faultshim.Delay, Delay: left / 5})
	defer shim.Clear()
	start := time.Now()
	if err := w.take(appendRequest(nil, 7, &call{op: callEncrypt, ekt: key, in: []byte("x")})[4:]); err != nil {
		t.Fatal(err)
	}
	w.limit.Store(&bound{call: limit, make: limit}) // who asks for a bound now gets a new one
	size, answer := make([]byte, 4), make([]byte, 4096)
	if _, err := io.ReadFull(ours, size); err != nil {
		t.Fatal(err)
	}
	n, err := ours.Read(answer)
	if err != nil {
		t.Fatal(err)
	}
	var r reply
	id, status, err := parseReply(answer[:n], &r)
	if took := time.Since(start); err != nil || id != 7 || status != statusFailed || took > w.settings.Limits.Call/2 {
		t.Errorf("answer %d, status %d after %s: %s, %v", id, status, took, r.detail, err)
	}
}
