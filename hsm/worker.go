package hsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// worker is the other end of remote: a process that has one token open, in
// which the vendor's library may hang or crash without harm to any other.
type worker struct {
	log     *slog.Logger
	level   *slog.LevelVar
	in      *inbox
	out     *outbox
	metrics *prometheus.Registry

	opening  sync.Mutex // held while opening
	token    *Token
	settings workerSettings
	member   atomic.Pointer[Member] // nil until it is open
	limit    atomic.Pointer[bound]

	next    chan *job    // to a goroutine that waits for one
	serving atomic.Int64 // goroutines that wait
}

// workerSettings are what a worker is told when it is to open its token.
type workerSettings struct {
	Domain DomainID
	Token  Config // but for the PIN, which travels beside it
	Limits Limits
	// Proofs and Enrolling are DomainConfig's.
	Proofs    Proofs
	Enrolling bool
	// Unwraps are after how many the worker asks to be retired.
	Unwraps uint64
	Level   slog.Level
}

// Notices.
const (
	noticeLogin  = iota + 1 // the PIN is about to be tried for the first time
	noticeRetire            // see watchMemory
	noticeHung              // a call to the device takes longer than it may
	noticeHealth            // the token's has changed: see Health
)

// gcPercent: a worker's live heap is small, and is rarely worth collecting.
const gcPercent = 400

// ServeWorker is the whole life of a worker process, which a Domain starts: it
// answers calls on the inherited socket and returns when that is closed.
func ServeWorker() error {
	// They are sent to all processes of a service or terminal. This one is to
	// end after the one it serves.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	conn, err := socketOf(workerSocket)
	if err != nil {
		return fmt.Errorf("no socket was inherited: this command is for trent serve to start: %w", err)
	}
	level := new(slog.LevelVar)
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	w := &worker{log: log, level: level, out: newOutbox(conn), metrics: prometheus.NewRegistry(), next: make(chan *job)}
	if w.in, err = newInbox(conn, w.take); err != nil {
		return err
	}
	return w.serve()
}

func (w *worker) serve() error {
	done, written := make(chan struct{}), make(chan struct{})
	go func() { w.out.run(done); close(written) }()
	err := w.in.run()
	close(done)
	<-written
	w.close()
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// close logs out, if nothing hangs.
func (w *worker) close() {
	if !w.opening.TryLock() {
		return
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if w.token != nil {
			_ = w.token.Close()
		}
	}()
	select {
	case <-closed:
	case <-time.After(endTimeout / 2):
	}
}

// job is a call with a copy of its frame, which is wiped after it.
type job struct {
	id    uint32
	limit context.Context //nolint:containedctx // both ways of doing it have one bound; nil while the token is not open
	call  call
	reply reply
	frame []byte

	w    *worker
	then func(out []byte, err error) // is begun; made once
}

var jobs sync.Pool // of *job

func (w *worker) newJob() *job {
	j, held := jobs.Get().(*job)
	if !held {
		j = new(job)
		j.then = j.begun
	}
	j.w = w
	return j
}

func (w *worker) take(frame []byte) error {
	j := w.newJob()
	j.frame = append(room(j.frame[:0], len(frame)), frame...)
	var err error
	if j.id, err = parseRequest(j.frame, &j.call); err != nil {
		return err
	}
	m := w.member.Load()
	if m != nil {
		j.limit = w.bound(j.call.op)
	}
	if m == nil || !m.begin(j.limit, &j.call, j.then) {
		w.handOver(j)
	}
	return nil
}

// begun is told of what Member.begin began. Whatever went wrong, the call
// begins again on the way that knows what to do about it, but has no more time.
func (j *job) begun(out []byte, err error) {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		err = errTooLong
		clear(j.frame) // nothing was begun that reads it
	case err != nil:
		j.w.handOver(j)
		return
	case j.call.op == callEncrypt:
		j.reply.public, j.reply.out = splitSealed(out, len(j.call.in))
	default:
		j.reply.out = out
	}
	j.answer(err, j.w.out.gather) // the lane sends
}

// handOver has a goroutine do j.
func (w *worker) handOver(j *job) {
	select {
	case w.next <- j:
	default:
		go w.serveJobs(j)
	}
}

// keepServing is how many goroutines stay for later jobs. A new one has to
// grow its stack on the way to the device, which took a tenth of the time.
const keepServing = 128

func (w *worker) serveJobs(j *job) {
	for {
		w.work(j)
		if w.serving.Add(1) > keepServing {
			w.serving.Add(-1)
			return
		}
		j = <-w.next
		w.serving.Add(-1)
	}
}

func (w *worker) work(j *job) { j.answer(w.do(j.limit, &j.call, &j.reply), w.out.reply) }

// answer sends the reply, or err, and ends j.
func (j *job) answer(err error, send func(id uint32, status byte, r *reply) error) {
	status := byte(statusDone)
	if err != nil {
		clear(j.reply.out)
		j.reply = reply{detail: encodeError(err)}
		status = statusFailed
	}
	_ = send(j.id, status, &j.reply) // if not, this process ends
	clear(j.reply.out)
	frame := j.frame
	if errors.Is(err, errTooLong) {
		// What was begun may go on, and read the rest: its inputs are copied.
		clear(j.call.in)
		clear(j.call.extra)
		frame = nil
	}
	clear(frame)
	if cap(frame) > keepBuffer {
		frame = nil
	}
	*j = job{frame: frame, then: j.then}
	jobs.Put(j)
}

var errTooLong = fmt.Errorf("%w: it waited too long for a session of the HSM", ErrBusy)

func (w *worker) do(limit context.Context, c *call, r *reply) error {
	switch c.op {
	case callOpen:
		return w.open(c, r)
	case callMetrics:
		return w.gather(r)
	}
	if limit == nil {
		return fmt.Errorf("%w: its token was not open when it was asked", ErrUnavailable)
	}
	err := w.member.Load().do(limit, c, r)
	if errors.Is(err, context.DeadlineExceeded) {
		return errTooLong
	}
	return err
}

// queued is how many times as long as one call to the device may take a call
// may wait for its turn.
const queued = 2

// boundFor is for how long calls are given the same bound.
const boundFor = time.Second / 2

// bound is a context for all calls until a time, so that none waits for ever
// and none needs a timer of its own.
type bound struct {
	call, make context.Context
	until      time.Time
}

func (w *worker) bound(op callOp) context.Context {
	b := w.limit.Load()
	if now := time.Now(); b == nil || now.After(b.until) {
		b = &bound{until: now.Add(boundFor)}
		b.call = ending(boundFor + queued*w.settings.Limits.Call)
		b.make = ending(boundFor + queued*w.settings.Limits.Make)
		w.limit.Store(b)
	}
	if op.lane() == laneMaker {
		return b.make
	}
	return b.call
}

// ending is a context that ends by itself.
func ending(after time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(background, after)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// open opens the token. It can be asked again when that has failed, unless the
// PIN was refused.
func (w *worker) open(c *call, r *reply) (err error) {
	w.opening.Lock()
	defer w.opening.Unlock()
	if w.member.Load() != nil {
		return fmt.Errorf("%w: the token is open", ErrArgument)
	}
	var s workerSettings
	if err := json.Unmarshal(c.in, &s); err != nil {
		return fmt.Errorf("reading settings: %w", err)
	}
	w.level.Set(s.Level)
	s.Token.PIN, s.Token.Logger, s.Token.Metrics = NewPIN(c.extra), w.log, w.metrics
	s.Token.loggingIn = func() { w.out.replyNow(0, statusNotice, &reply{number: noticeLogin}) }
	s.Token.post = post{fetch: w.in.poll, send: w.out.flush}
	defer s.Token.PIN.wipe(&err)
	w.settings = s
	token, err := Open(background, s.Token)
	if err != nil {
		return err
	}
	member, err := token.openMember(background, s.Domain, s.Proofs, s.Enrolling)
	if err != nil {
		return errors.Join(err, token.Close())
	}
	w.token = token
	if os.Getenv("GOMAXPROCS") == "" {
		// Calls to the device do not count. More only wakes threads that find
		// nothing to do: measured, a third of the worker's CPU time.
		runtime.GOMAXPROCS(min(runtime.NumCPU(), token.cfg.Sessions))
	}
	token.gate.follow(func(h Health) {
		notice := reply{number: noticeHealth}
		_ = notice.describe(h)
		_ = w.out.reply(0, statusNotice, &notice)
	})
	w.member.Store(member)
	go w.watchMemory()
	go w.watchDevice()
	return r.describe(token.Info())
}
