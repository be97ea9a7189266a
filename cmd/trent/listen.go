package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// The limits of a connection. AWS's clients send a request at once and keep
// connections for minutes.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	writeTimeout      = 90 * time.Second
	idleTimeout       = 5 * time.Minute
	maxHeaderBytes    = 64 << 10
	// drainTimeout is how long calls in flight may take after SIGTERM: 25 s of
	// work and 15 s for the audit record.
	drainTimeout = 45 * time.Second
)

// serving is a system and the addresses it answers on.
type serving struct {
	system     systemConfig
	api, admin net.Listener
	tls        *tls.Config // nil = plain HTTP
	ready      func()      // called once, when calls are answered; nil = nothing
}

// listen opens an address, before anything slow or costly is done.
func listen(ctx context.Context, flag, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listening on %s: another process does so already: stop it, or choose another %s", address, flag)
	}
	if err != nil {
		return nil, fmt.Errorf("listening on %s (%s): %w", address, flag, err)
	}
	return l, nil
}

// serve answers until ctx ends, then finishes the calls in flight, then
// stops what is behind them.
func serve(ctx context.Context, s serving) error {
	log := s.system.log
	sys, err := openSystem(ctx, s.system)
	if err != nil {
		return errors.Join(err, s.api.Close(), s.admin.Close())
	}
	defer sys.close(ctx, log)
	// A failure of one part ends the others in the same order.
	group, draining := errgroup.WithContext(ctx)
	behind, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	ready := &readiness{check: sys.service.Ready, members: sys.domain.Health, draining: draining, log: log}
	apiServer := newServer(log, sys.handler)
	adminServer := newServer(log, adminHandler(s.system.metrics, ready))
	if s.tls != nil {
		s.api = tls.NewListener(s.api, s.tls)
	}
	group.Go(func() error {
		err := sys.service.Run(behind)
		if behind.Err() != nil {
			return nil
		}
		return fmt.Errorf("background work ended: %w", err)
	})
	group.Go(func() error { return serveUntil(behind, adminServer, hear(s.admin, log)) })
	group.Go(func() error {
		defer release()
		return serveUntil(draining, apiServer, hear(s.api, log))
	})
	if s.ready != nil {
		s.ready()
	}
	log.Info("serving", "api", s.api.Addr().String(), "tls", s.tls != nil, "admin", s.admin.Addr().String())
	err = group.Wait()
	log.Info("stopped")
	return err
}

func newServer(log *slog.Logger, handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// OPTIONS * is not net/http's to answer.
		DisableGeneralOptionsHandler: true,
		// What strangers send, such as broken handshakes, must not fill the log.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// heard logs why no connection can be taken: net/http tells it like what
// strangers send. It does so once a second at most, or strangers who come and go
// could fill the log.
type heard struct {
	net.Listener
	log   *slog.Logger
	limit *rate.Sometimes
}

func hear(l net.Listener, log *slog.Logger) heard {
	return heard{l, log, &rate.Sometimes{Interval: time.Second}}
}

// Accept implements net.Listener.
func (h heard) Accept() (net.Conn, error) {
	conn, err := h.Listener.Accept()
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		h.limit.Do(func() {
			h.log.Error("no connection can be taken: raise the limit of open files (LimitNOFILE, ulimit -n), or find who keeps so many connections", "error", err)
		})
	}
	return conn, err //nolint:wrapcheck // net/http knows it
}

// serveUntil answers on l until ctx ends and the calls in flight are done.
func serveUntil(ctx context.Context, server *http.Server, l net.Listener) error {
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		drained <- server.Shutdown(drain)
	})
	err := server.Serve(l)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	}
	if err := <-drained; err != nil {
		return fmt.Errorf("calls on %s did not end within %s: %w", l.Addr(), drainTimeout, errors.Join(err, server.Close()))
	}
	return nil
}
