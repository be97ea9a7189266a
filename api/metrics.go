package api

import (
	"crypto/tls"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/trent-kms/trent/audit"
	"github.com/trent-kms/trent/kms"
)

// route is an operation with its metrics, looked up once per request.
type route struct {
	operation operation
	succeeded prometheus.Counter
	seconds   prometheus.Observer
	failed    *prometheus.CounterVec // curried with the operation
}

func (r *route) observe(code string, started time.Time) {
	r.seconds.Observe(time.Since(started).Seconds())
	if code == "" {
		r.succeeded.Inc()
		return
	}
	r.failed.WithLabelValues(code).Inc()
}

// strangers counts requests that fail authentication and logs some of them:
// they are not in the audit log, so that a stranger cannot force writes.
type strangers struct {
	log     *slog.Logger
	limit   *rate.Limiter
	refusal *prometheus.CounterVec
}

// refused returns err, marked as told: a stranger cannot fill the log either
// when the failure is ours.
func (s *strangers) refused(r *http.Request, requestID string, err error) error {
	api := kms.APIError(err)
	s.refusal.WithLabelValues(api.ErrorCode()).Inc()
	if s.limit.Allow() {
		level := slog.LevelWarn
		if api.ErrorFault() == smithy.FaultServer {
			level = slog.LevelError
		}
		s.log.Log(r.Context(), level, "authentication refused", "requestID", requestID, "code", api.ErrorCode(), "source", r.RemoteAddr, "target", r.Header.Get("X-Amz-Target"), "error", err)
	}
	return &told{err}
}

// told marks an error that needs no other line in the log.
type told struct{ error }

func (t *told) Unwrap() error { return t.error }

func newRoutes(cfg Config) (table map[string]*route, unknown *route, strange *strangers, err error) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "trent_api_requests_total",
		Help: "Requests answered, by operation and error code (empty: success).",
	}, []string{"operation", "code"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "trent_api_request_seconds",
		Help:    "Time from the request's header to its answer, by operation.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 12),
	}, []string{"operation"})
	strange = &strangers{
		log:   cfg.Logger,
		limit: rate.NewLimiter(1, 10),
		refusal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trent_api_authentication_failures_total",
			Help: "Requests refused before they were anybody's, by error code.",
		}, []string{"code"}),
	}
	if cfg.Metrics != nil {
		for _, c := range []prometheus.Collector{requests, seconds, strange.refusal} {
			if err := cfg.Metrics.Register(c); err != nil {
				return nil, nil, nil, err
			}
		}
	}
	newRoute := func(op operation) *route {
		return &route{
			operation: op,
			succeeded: requests.WithLabelValues(op.name, ""),
			seconds:   seconds.WithLabelValues(op.name),
			failed:    requests.MustCurryWith(prometheus.Labels{"operation": op.name}),
		}
	}
	table = make(map[string]*route, len(operations))
	for _, op := range operations {
		table[op.name] = newRoute(op)
	}
	return table, newRoute(operation{name: "unknown"}), strange, nil
}

// tlsDetails is CloudTrail's tlsDetails of a request, nil without TLS.
func tlsDetails(r *http.Request) *audit.TLSDetails {
	if r.TLS == nil {
		return nil
	}
	return &audit.TLSDetails{
		TLSVersion:               strings.Replace(tls.VersionName(r.TLS.Version), " ", "v", 1), // TLSv1.3
		CipherSuite:              tls.CipherSuiteName(r.TLS.CipherSuite),
		ClientProvidedHostHeader: r.Host,
		KeyExchange:              r.TLS.CurveID.String(),
	}
}
