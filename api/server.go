// Package api is AWS KMS's wire protocol: AWS JSON 1.1 over HTTP, signed with
// SigV4. A request is authenticated, decoded, validated against the service
// model, handed to its operation in package kms, and recorded; only then is
// it answered.
package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/sigv4"
)

const (
	// maxBody is above the largest request that the service model allows (an
	// attestation document of 262,144 bytes in base64, with a policy's room).
	maxBody = 1 << 20
	// drained is what net/http itself still reads of a body behind a refusal.
	// It cuts the connection of a larger one; a client that sends all before it
	// reads would see that instead of the refusal, over TLS, and try again.
	drained = 256 << 10
	// A body is a stranger's until it is there and its signature verified. What
	// all connections together hold of bodies is bounded therefore: those above
	// smallBody, which are rare (policies, attestation documents), wait for room.
	smallBody   = 32 << 10
	largeBodies = 32 << 20 // bytes
	// largeBodyTimeout is how long one may take to come once it has room: who
	// stalls must not keep those from it who wait, for no longer than callTimeout.
	largeBodyTimeout = 10 * time.Second
	// callTimeout bounds the work on one request. It is below the read timeout
	// of AWS's clients.
	callTimeout = 25 * time.Second

	targetPrefix = "TrentService."
	contentType  = "application/x-amz-json-1.1"
)

// Config is what a Server stands on. Service and Regions are required.
type Config struct {
	Service *kms.Service

	// Regions are the region names that signatures may be scoped to.
	Regions []string

	// Logger receives failures of our own, in full, and, under a rate limit,
	// refused authentications. Nil means slog.Default.
	Logger *slog.Logger

	// Metrics is where collectors are registered. Nil means none.
	Metrics prometheus.Registerer
}

// Server is the http.Handler of the KMS endpoint.
type Server struct {
	service  *kms.Service
	verifier *sigv4.Verifier
	table    map[string]*route
	unknown  *route // for targets that name no operation
	log      *slog.Logger
	strange  *strangers
	room     *semaphore.Weighted // for large bodies
}

// New returns a Server.
func New(cfg Config) (*Server, error) {
	if cfg.Service == nil || len(cfg.Regions) == 0 {
		return nil, errors.New("api: Service and Regions are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	table, unknown, strange, err := newRoutes(cfg)
	if err != nil {
		return nil, fmt.Errorf("registering request metrics: %w", err)
	}
	return &Server{
		service: cfg.Service,
		verifier: sigv4.New(sigv4.Config{
			Service:    "kms",
			Regions:    cfg.Regions,
			SigningKey: cfg.Service.SigningKey,
		}),
		table:   table,
		unknown: unknown,
		log:     cfg.Logger,
		strange: strange,
		room:    semaphore.NewWeighted(largeBodies),
	}, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if browserAsks(w, r) {
		s.write(w, uuid.NewString(), http.StatusOK, nil)
		return
	}
	started := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	requestID := uuid.NewString()
	route := s.route(r)
	body, err := s.serve(ctx, w, r, route, requestID)
	if err == nil {
		route.observe("", started)
		s.write(w, requestID, http.StatusOK, body)
		clear(body) // may hold plaintext
		return
	}
	connection := http.NewResponseController(w)
	large := r.ContentLength > drained
	if large {
		_ = connection.EnableFullDuplex() // the body is read on behind the answer
	}
	code := s.writeError(w, r, requestID, err)
	route.observe(code, started)
	if large {
		_ = connection.Flush()
		_, _ = io.CopyN(io.Discard, r.Body, 8*maxBody)
	}
}

// browserAsks lets AWS's SDK for JavaScript work in a web page, as AWS does
// (CORS, in the Fetch standard), and reports whether r only asks if a page may
// send. Any page may: a browser adds nothing of its own, such as a cookie, that
// would sign a request.
func browserAsks(w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Origin") == "" {
		return false
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "x-amzn-RequestId,x-amzn-ErrorType,x-amzn-ErrorMessage,Date")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", http.MethodPost)
	h.Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
	h.Set("Access-Control-Max-Age", "172800")
	return true
}

// serve does the work and returns the body of the answer. Panics become
// errors of ours.
func (s *Server) serve(ctx context.Context, w http.ResponseWriter, r *http.Request, route *route, requestID string) (answer []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			answer, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if r.Method != http.MethodPost || r.URL.Path != "/" {
		return nil, &protocolError{http.StatusNotFound, "UnknownOperationException", "AWS KMS answers POST / only."}
	}
	if route == s.unknown {
		return nil, &protocolError{http.StatusBadRequest, "UnknownOperationException", ""}
	}
	claim, err := s.verifier.Check(r)
	if err != nil { // before a stranger's body costs anything
		return nil, s.strange.refused(r, requestID, err)
	}
	release, err := s.roomFor(ctx, r.ContentLength)
	if err != nil {
		return nil, err
	}
	defer release()
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	defer clear(body) // may hold plaintext
	call, err := s.authenticate(r.WithContext(ctx), claim, body)
	if err != nil {
		return nil, s.strange.refused(r, requestID, err)
	}
	describe(call, r, route.operation.name, requestID)
	return s.service.Do(ctx, call, func() ([]byte, error) {
		return route.operation.serve(ctx, s.service, call, body)
	})
}

func (s *Server) authenticate(r *http.Request, claim sigv4.Claim, body []byte) (*kms.Call, error) {
	head := s.service.Head() // before anything is looked up
	identity, err := s.verifier.Verify(r, claim, body)
	if err != nil {
		return nil, err
	}
	return s.service.Begin(r.Context(), head, identity)
}

// describe fills in what the audit record says of the request.
func describe(call *kms.Call, r *http.Request, operation, requestID string) {
	call.Operation = operation
	call.RequestID = requestID
	call.UserAgent = r.UserAgent()
	call.TLS = tlsDetails(r)
	call.SourceIP = r.RemoteAddr
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		call.SourceIP = host
	}
}

func (s *Server) route(r *http.Request) *route {
	name, found := strings.CutPrefix(r.Header.Get("X-Amz-Target"), targetPrefix)
	if route := s.table[name]; found && route != nil {
		return route
	}
	return s.unknown
}

// roomFor waits until a body of n bytes may be read; n is negative if it is not
// known.
func (s *Server) roomFor(ctx context.Context, n int64) (release func(), err error) {
	if n < 0 {
		n = maxBody
	}
	if n <= smallBody || n > maxBody { // that is refused unread
		return func() {}, nil
	}
	if err := s.room.Acquire(ctx, n); err != nil {
		return nil, &protocolError{http.StatusBadRequest, "ThrottlingException", "Too many large requests are under way. Try again."}
	}
	return func() { s.room.Release(n) }, nil
}

func readBody(w http.ResponseWriter, r *http.Request) (body []byte, err error) {
	n := r.ContentLength
	if n > maxBody {
		return nil, tooLarge()
	}
	if n < 0 || n > smallBody {
		connection := http.NewResponseController(w)
		_ = connection.SetReadDeadline(time.Now().Add(largeBodyTimeout))
		defer func() {
			if err == nil { // else what is left of it must not be waited for either
				_ = connection.SetReadDeadline(time.Time{})
			}
		}()
	}
	if n >= 0 {
		body := make([]byte, n)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, &protocolError{http.StatusBadRequest, "SerializationException", "The request body ended early."}
		}
		return body, nil
	}
	body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		return nil, tooLarge()
	}
	if err != nil {
		return nil, &protocolError{http.StatusBadRequest, "SerializationException", "The request body could not be read."}
	}
	return body, nil
}

func tooLarge() error {
	return &protocolError{http.StatusRequestEntityTooLarge, "RequestEntityTooLargeException", fmt.Sprintf("A request may have %d bytes at most.", maxBody)}
}

// header values that are the same in every answer; not to be written to.
var (
	headerContentType  = []string{contentType}
	headerCacheControl = []string{"no-cache, no-store, must-revalidate, private"}
	headerExpires      = []string{"0"}
	headerPragma       = []string{"no-cache"}
)

func (s *Server) write(w http.ResponseWriter, requestID string, status int, body []byte) {
	h := w.Header()
	h["X-Amzn-Requestid"] = []string{requestID}
	h["Content-Type"] = headerContentType
	h["Cache-Control"] = headerCacheControl
	h["Expires"] = headerExpires
	h["Pragma"] = headerPragma
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		s.log.Debug("writing an answer", "error", err)
	}
}

// protocolError is a refusal that comes before any operation.
type protocolError struct {
	status        int
	code, message string
}

func (e *protocolError) Error() string                 { return e.code + ": " + e.message }
func (e *protocolError) ErrorCode() string             { return e.code }
func (e *protocolError) ErrorMessage() string          { return e.message }
func (e *protocolError) ErrorFault() smithy.ErrorFault { return smithy.FaultClient }
