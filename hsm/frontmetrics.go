package hsm

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// frontMetrics are those of a domain's members, as the domain sees them.
type frontMetrics struct {
	d                               *spread
	up, state, calls                *prometheus.Desc
	retries, starts, retired, hangs *prometheus.CounterVec
}

func newFrontMetrics(d *spread) *frontMetrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"member"})
	}
	m := &frontMetrics{
		d:       d,
		up:      prometheus.NewDesc("trent_hsm_member_up", "Whether the member of the HSM domain serves.", []string{"member"}, nil),
		state:   prometheus.NewDesc("trent_hsm_member_state", "1 for the state that the member of the HSM domain is in.", []string{"member", "state"}, nil),
		calls:   prometheus.NewDesc("trent_hsm_member_calls", "Calls on their way to the member.", []string{"member"}, nil),
		retries: counter("trent_hsm_retries_total", "Calls that the member failed and that were made again."),
		starts:  counter("trent_hsm_worker_starts_total", "Worker processes started."),
		retired: counter("trent_hsm_worker_retirements_total", "Worker processes replaced because of what their libraries leak."),
		hangs:   counter("trent_hsm_worker_hangs_total", "Worker processes killed because a call took too long."),
	}
	for _, s := range d.seats {
		for _, c := range []*prometheus.CounterVec{m.retries, m.starts, m.retired, m.hangs} {
			c.WithLabelValues(s.name)
		}
	}
	if d.cfg.Metrics != nil {
		// Only a second domain of one process could be refused.
		_ = d.cfg.Metrics.Register(m)
		_ = d.cfg.Metrics.Register(workerMetrics{d})
	}
	return m
}

func (m *frontMetrics) unregister() {
	if m.d.cfg.Metrics != nil {
		m.d.cfg.Metrics.Unregister(m)
		// A collector that describes nothing cannot be taken out; it finds no
		// member any more.
	}
}

// Describe implements prometheus.Collector.
func (m *frontMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.up
	out <- m.state
	out <- m.calls
	for _, c := range []*prometheus.CounterVec{m.retries, m.starts, m.retired, m.hangs} {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (m *frontMetrics) Collect(out chan<- prometheus.Metric) {
	for _, c := range []*prometheus.CounterVec{m.retries, m.starts, m.retired, m.hangs} {
		c.Collect(out)
	}
	for _, s := range m.d.seats {
		h := s.health()
		out <- prometheus.MustNewConstMetric(m.up, prometheus.GaugeValue, truth(h.Serves), s.name)
		for _, state := range states {
			out <- prometheus.MustNewConstMetric(m.state, prometheus.GaugeValue, truth(state == h.State), s.name, string(state))
		}
		out <- prometheus.MustNewConstMetric(m.calls, prometheus.GaugeValue, float64(s.flying.Load()), s.name)
	}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// workerMetrics collects what the members' workers count. It describes
// nothing, so that the registry takes what comes.
type workerMetrics struct{ d *spread }

// gatherTimeout is how long a worker may take to say what it has counted.
const gatherTimeout = time.Second

// Describe implements prometheus.Collector.
func (workerMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector. A member that is aside is asked, too:
// what it counts tells why. One that does not answer is left out.
func (m workerMetrics) Collect(out chan<- prometheus.Metric) {
	for _, s := range m.d.seats {
		t := s.opened.Load()
		if t == nil || t.remote == nil || t.remote.gone() {
			continue
		}
		samples, err := t.samples()
		if err != nil {
			s.log.Warn("asking a worker for its metrics", "error", err)
			continue
		}
		for _, sample := range samples {
			if metric, err := sample.metric(s.name); err == nil {
				out <- metric
			}
		}
	}
}

func (t *target) samples() ([]sample, error) {
	ctx, cancel := context.WithTimeout(background, gatherTimeout)
	defer cancel()
	var r reply
	var samples []sample
	if err := t.do(ctx, &call{op: callMetrics}, &r); err != nil {
		return nil, err
	}
	return samples, r.read(&samples)
}
