package hsm

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are resolved once, so that the hot path looks up no labels.
type metrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector

	sessions            prometheus.Gauge
	handles             prometheus.Gauge
	hits, misses, drops prometheus.Counter
	latency             [opCount]prometheus.Observer // nil for opFunc
	errors              *prometheus.CounterVec
	unwraps             atomic.Uint64 // counted apart, since a worker reads it
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "trent_hsm_handle_cache_lookups_total",
		Help: "Lookups of unwrapped backing keys, by whether one was there.",
	}, []string{"result"})
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "trent_hsm_operation_seconds",
		Help:    "Time that the device took, without the wait in the queue.",
		Buckets: prometheus.ExponentialBuckets(5e-6, 2.5, 14), // 5 µs to 0.75 s
	}, []string{"mechanism"})
	m := &metrics{
		registerer: registerer,
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trent_hsm_sessions", Help: "Open PKCS#11 sessions of Trent's own."}),
		handles: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trent_hsm_handle_cache_size", Help: "Unwrapped backing keys that live on the token."}),
		drops: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trent_hsm_handle_cache_evictions_total", Help: "Unwrapped backing keys destroyed to make room."}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trent_hsm_errors_total", Help: "Refused PKCS#11 calls, by return code."}, []string{"code"}),
		hits:   lookups.WithLabelValues("hit"),
		misses: lookups.WithLabelValues("miss"),
	}
	for op, mechanism := range [opCount]string{
		opEncrypt: "aes-gcm-encrypt", opDecrypt: "aes-gcm-decrypt",
		opHMAC: "sha256-hmac-sign", opVerify: "sha256-hmac-verify", opRandom: "random",
		opSign: "sign", opMAC: "mac", opDecryptRSA: "rsa-decrypt", opAgree: "ecdh",
	} {
		if mechanism != "" {
			m.latency[op] = latency.WithLabelValues(mechanism)
		}
	}
	unwraps := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "trent_hsm_unwraps_total", Help: "Keys unwrapped in the device."},
		func() float64 { return float64(m.unwraps.Load()) })
	m.register(unwraps, lookups, latency, m.sessions, m.handles, m.drops, m.errors)
	return m
}

// register leaves out what an earlier token of this process registered: its
// numbers then stay unseen, which only tests with several tokens meet.
func (m *metrics) register(collectors ...prometheus.Collector) {
	if m.registerer == nil {
		return
	}
	for _, c := range collectors {
		if m.registerer.Register(c) == nil {
			m.collectors = append(m.collectors, c)
		}
	}
}

func (m *metrics) unregister() {
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}

func (m *metrics) took(o op, d time.Duration) {
	if latency := m.latency[o]; latency != nil && d > 0 {
		latency.Observe(d.Seconds())
	}
}

func (m *metrics) failed(code uint) { m.errors.WithLabelValues(codeName(code)).Inc() }
