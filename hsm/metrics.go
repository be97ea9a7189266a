package hsm

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are resolved once, so that the hot path looks up no labels. All
// carry the token's label and serial.
type metrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector

	sessions            prometheus.Gauge
	handles             prometheus.Gauge
	hits, misses, drops prometheus.Counter
	latency             [opCount]prometheus.Observer // nil where the mechanism varies
	byMechanism         map[uint]prometheus.Observer
	errors              *prometheus.CounterVec
	unwraps             atomic.Uint64 // counted apart, since a worker reads it
	epoch               prometheus.Gauge
	generations         *prometheus.GaugeVec
	recoveries          *prometheus.CounterVec
	recovery            prometheus.Histogram
}

func newMetrics(registerer prometheus.Registerer, t *Token) *metrics {
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
		sessions:   gauge("trent_hsm_sessions", "Open PKCS#11 sessions of Trent's own."),
		handles:    gauge("trent_hsm_handle_cache_size", "Unwrapped backing keys that live on the token."),
		drops:      counter("trent_hsm_handle_cache_evictions_total", "Unwrapped backing keys destroyed to make room."),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trent_hsm_errors_total", Help: "Refused PKCS#11 calls, by return code and by what Trent makes of it."}, []string{"code", "class"}),
		epoch: gauge("trent_hsm_epoch", "Counts logins: no object handle outlives its epoch."),
		generations: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "trent_hsm_generations", Help: "Generations of domain keys on the token: whole, MAC key only (their domain keys were destroyed), or unusable."}, []string{"state"}),
		recoveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trent_hsm_recoveries_total", Help: "Recoveries begun: of the login, or of the module."}, []string{"remedy"}),
		recovery: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "trent_hsm_recovery_seconds", Help: "Time for which calls waited for a recovery.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2.5, 14)}), // 1 ms to 150 s
		hits:        lookups.WithLabelValues("hit"),
		misses:      lookups.WithLabelValues("miss"),
		byMechanism: map[uint]prometheus.Observer{},
	}
	m.observe(latency)
	unwraps := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "trent_hsm_unwraps_total", Help: "Calls of C_UnwrapKey."},
		func() float64 { return float64(m.unwraps.Load()) })
	m.register(t, unwraps, lookups, latency, m.sessions, m.handles, m.drops, m.errors, m.epoch, m.generations, m.recoveries, m.recovery,
		laneCollector{t}, healthCollector{t})
	return m
}

// observe finds the histogram of each operation, or of its mechanism.
func (m *metrics) observe(latency *prometheus.HistogramVec) {
	for op, mechanism := range [opCount]string{
		opEncrypt: "aes-gcm-encrypt", opDecrypt: "aes-gcm-decrypt",
		opHMAC: "sha256-hmac-sign", opVerify: "sha256-hmac-verify", opRandom: "random", opAgree: "ecdh",
	} {
		if mechanism != "" {
			m.latency[op] = latency.WithLabelValues(mechanism)
		}
	}
	for _, table := range []map[string]algorithm{signing, macs} {
		for _, a := range table {
			m.byMechanism[a.mechanism] = latency.WithLabelValues(mechanismName(a.mechanism))
		}
	}
	for _, mechanism := range decrypting {
		m.byMechanism[mechanism] = latency.WithLabelValues(mechanismName(mechanism))
	}
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

// register leaves out what this process registered for the same token before:
// the numbers of the second connection then stay unseen, which only tests and
// doctor make.
func (m *metrics) register(t *Token, collectors ...prometheus.Collector) {
	if m.registerer == nil {
		return
	}
	m.registerer = prometheus.WrapRegistererWith(prometheus.Labels{"token": t.info.Label, "serial": t.info.Serial}, m.registerer)
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

func (m *metrics) took(r *request) {
	if r.took <= 0 || r.op == opFunc {
		return
	}
	latency := m.latency[r.op]
	if latency == nil {
		latency = m.byMechanism[r.mechanism]
	}
	if latency != nil {
		latency.Observe(r.took.Seconds())
	}
}

func (m *metrics) failed(code uint) {
	m.errors.WithLabelValues(codeName(code), classify(code).String()).Inc()
}

func (m *metrics) found(generations map[uint32]*generationKeys) {
	count := map[string]int{"whole": 0, "MAC key": 0, "unusable": 0}
	for _, g := range generations {
		switch {
		case g.Whole:
			count["whole"]++
		case g.Retired:
			count["MAC key"]++
		default:
			count["unusable"]++
		}
	}
	for state, n := range count {
		m.generations.WithLabelValues(state).Set(float64(n))
	}
}

func (m *metrics) asked(r remedy) { m.recoveries.WithLabelValues(r.String()).Inc() }

func (m *metrics) recovered(took time.Duration) { m.recovery.Observe(took.Seconds()) }

// laneCollector reads the lanes when it is asked, so that calls do not count.
type laneCollector struct{ t *Token }

var (
	descInUse   = prometheus.NewDesc("trent_hsm_sessions_in_use", "Sessions that make a call now, by what they are for.", []string{"lane"}, nil)
	descWaiting = prometheus.NewDesc("trent_hsm_queue_depth", "Calls that wait for a session, by what it is for.", []string{"lane"}, nil)
	descHealth  = prometheus.NewDesc("trent_hsm_health", "1 for the state that the token is in.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (c laneCollector) Describe(to chan<- *prometheus.Desc) {
	to <- descInUse
	to <- descWaiting
}

// Collect implements prometheus.Collector.
func (c laneCollector) Collect(to chan<- prometheus.Metric) {
	for _, l := range c.t.lanes() {
		to <- prometheus.MustNewConstMetric(descInUse, prometheus.GaugeValue, float64(l.busy.Load()), l.name)
		to <- prometheus.MustNewConstMetric(descWaiting, prometheus.GaugeValue, float64(len(l.queue)), l.name)
	}
}

type healthCollector struct{ t *Token }

// Describe implements prometheus.Collector.
func (c healthCollector) Describe(to chan<- *prometheus.Desc) { to <- descHealth }

// Collect implements prometheus.Collector.
func (c healthCollector) Collect(to chan<- prometheus.Metric) {
	now := c.t.Health().State
	for _, state := range states {
		to <- prometheus.MustNewConstMetric(descHealth, prometheus.GaugeValue, truth(state == now), string(state))
	}
}
