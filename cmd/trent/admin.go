package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/kms"
)

const (
	// readyFor is how long an answer of /readyz is kept: probes of many load
	// balancers must not become load.
	readyFor = time.Second
	// readyTimeout is when a check that hangs counts as failed.
	readyTimeout = 5 * time.Second
)

// readiness answers whether calls can be served, from a check at most
// readyFor old.
type readiness struct {
	check    func(context.Context) error
	members  func() []hsm.MemberHealth // of the HSM domain; it waits for nothing
	draining context.Context           // done when the process is about to end
	log      *slog.Logger

	mu  sync.Mutex // held during a check, so that there is one at a time
	at  time.Time  // of the last check; guarded by mu
	err error      // its result; guarded by mu
}

func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if r.draining.Err() != nil {
		http.Error(w, "stopping", http.StatusServiceUnavailable)
		return
	}
	if err := r.now(req.Context()); err != nil {
		// The reason is in the log, but for the members': it may name hosts.
		what := ""
		if part := (*kms.NotReadyError)(nil); errors.As(err, &part) {
			what = ": " + part.Part
		}
		http.Error(w, "not ready"+what+"\n"+r.describe(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ready\n"+r.describe())
}

// describe has a line for each member, as it is at this moment.
func (r *readiness) describe() string {
	var lines strings.Builder
	for _, member := range r.members() {
		lines.WriteString(member.String() + "\n")
	}
	return lines.String()
}

func (r *readiness) now(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.at) < readyFor {
		return r.err
	}
	// A probe that gives up must not make the next one see a failure.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
	defer cancel()
	err := r.check(ctx)
	switch {
	case err != nil:
		r.log.Error("not ready", "error", err)
	case r.err != nil:
		r.log.Info("ready again")
	}
	r.at, r.err = time.Now(), err
	return err
}

func newMetrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	return registry
}

func adminHandler(metrics *prometheus.Registry, ready http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "alive\n")
	})
	mux.Handle("GET /readyz", ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{Registry: metrics}))
	return mux
}
