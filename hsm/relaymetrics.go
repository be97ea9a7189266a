package hsm

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// sample is one time series as it crosses from a worker to the process that
// is asked for metrics.
type sample struct {
	Name, Help string
	Names      []string `json:",omitempty"` // of labels
	Values     []string `json:",omitempty"`
	Counter    bool     `json:",omitempty"`
	Value      float64
	Count      uint64            `json:",omitempty"` // of a histogram
	Buckets    map[string]uint64 `json:",omitempty"` // of a histogram, by upper bound
}

// gather answers callMetrics.
func (w *worker) gather(r *reply) error {
	families, err := w.metrics.Gather()
	if err != nil {
		return fmt.Errorf("gathering metrics: %w", err)
	}
	var samples []sample
	for _, family := range families {
		for _, m := range family.GetMetric() {
			s := sample{Name: family.GetName(), Help: family.GetHelp()}
			for _, label := range m.GetLabel() {
				s.Names, s.Values = append(s.Names, label.GetName()), append(s.Values, label.GetValue())
			}
			switch {
			case m.GetHistogram() != nil:
				h := m.GetHistogram()
				s.Value, s.Count, s.Buckets = h.GetSampleSum(), h.GetSampleCount(), map[string]uint64{}
				for _, b := range h.GetBucket() {
					s.Buckets[fmt.Sprint(b.GetUpperBound())] = b.GetCumulativeCount()
				}
			case m.GetCounter() != nil:
				s.Counter, s.Value = true, m.GetCounter().GetValue()
			default:
				s.Value = m.GetGauge().GetValue()
			}
			samples = append(samples, s)
		}
	}
	return r.describe(samples)
}

// metric is the sample as the asking process exposes it. Every sample of a
// member carries its name.
func (s sample) metric(member string) (prometheus.Metric, error) {
	desc := prometheus.NewDesc(s.Name, s.Help, s.Names, prometheus.Labels{"member": member})
	if s.Buckets == nil {
		kind := prometheus.GaugeValue
		if s.Counter {
			kind = prometheus.CounterValue
		}
		return prometheus.NewConstMetric(desc, kind, s.Value, s.Values...)
	}
	buckets := map[float64]uint64{}
	for bound, n := range s.Buckets {
		var upper float64
		if _, err := fmt.Sscan(bound, &upper); err != nil {
			return nil, fmt.Errorf("reading a histogram: %w", err)
		}
		buckets[upper] = n
	}
	return prometheus.NewConstHistogram(desc, s.Count, s.Value, buckets, s.Values...)
}
