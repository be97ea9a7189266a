package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

// report is what is printed; its JSON names are stable.
type report struct {
	Cores   int            `json:"cores"`
	Go      string         `json:"go"`
	Seconds float64        `json:"secondsPerFigure"`
	Device  []deviceFigure `json:"device"`
	Keys    []deviceFigure `json:"keys"`
	// Commits is what one connection to Postgres makes durable: it bounds how
	// soon a call can be answered.
	Commits  float64  `json:"postgresCommitsPerSecond"`
	Service  []figure `json:"service"`
	Headline string   `json:"headline"`
}

// deviceFigure compares the module alone with the hsm layer, in operations
// per second on 32 B.
type deviceFigure struct {
	Operation   string  `json:"operation"`
	Raw         float64 `json:"rawPerSecond"` // one caller per session, the better of 1 and 2
	RawSessions int     `json:"rawSessions"`
	Layer       float64 `json:"layerPerSecond"` // 16 callers
	// Uncached is with keys that are not held ready: each is unwrapped first.
	Uncached float64 `json:"uncachedPerSecond,omitempty"`
	Ratio    float64 `json:"ratio"`
}

// figure is one server's under one load. Times per request are in
// microseconds.
type figure struct {
	Name        string  `json:"name"`
	Connections int     `json:"connections"`
	Rate        float64 `json:"requestsPerSecond"`
	P50         float64 `json:"p50ms"`
	P99         float64 `json:"p99ms"`
	ServerCPU   float64 `json:"serverCPUus"`
	PostgresCPU float64 `json:"postgresCPUus"`
	ClientCPU   float64 `json:"clientCPUus"`
	ToBare      float64 `json:"ratioToBare"`
	aimed       bool    // the project states an aim for it
}

func newReport(d time.Duration) *report {
	return &report{Cores: runtime.NumCPU(), Go: runtime.Version(), Seconds: d.Seconds()}
}

func newFigure(name string, connections int, latencies []time.Duration, took time.Duration, used usage) figure {
	slices.Sort(latencies)
	n := float64(len(latencies))
	at := func(q float64) float64 {
		return float64(latencies[min(len(latencies)-1, int(q*n))]) / float64(time.Millisecond)
	}
	per := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) / n }
	return figure{
		Name: name, Connections: connections, Rate: n / took.Seconds(), P50: at(0.50), P99: at(0.99),
		ServerCPU: per(used.server), PostgresCPU: per(used.postgres), ClientCPU: per(used.client),
	}
}

// compare fills in the ratios to the bare server at the same load.
func (r *report) compare() {
	bare := map[int]float64{}
	for i := range r.Service {
		f := &r.Service[i]
		if f.Name == bareJob.name {
			bare[f.Connections] = f.Rate
		}
		if base := bare[f.Connections]; base > 0 {
			f.ToBare = f.Rate / base
		}
	}
	r.Headline = r.headline()
}

// headline holds the figures that the project's aims are stated in.
func (r *report) headline() string {
	text := ""
	for _, f := range r.Device {
		text += fmt.Sprintf("hsm layer %s: %.2f of raw (aim 0.85). ", f.Operation, f.Ratio)
	}
	for _, f := range r.Service {
		if f.Connections == 16 && f.aimed {
			text += fmt.Sprintf("%s at 16 connections: %.2f of bare net/http (aim 0.35). ", f.Name, f.ToBare)
		}
	}
	return text
}

func (r *report) print(w io.Writer, asJSON bool) error {
	if asJSON {
		out := json.NewEncoder(w)
		out.SetIndent("", "  ")
		return out.Encode(r)
	}
	fmt.Fprintf(w, "%d cores, %s, %g s per figure; the load generator runs on the same cores\n\n", r.Cores, r.Go, r.Seconds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "AES-GCM, 32 B\traw ops/s\tsessions\thsm layer ops/s, 16 callers\tlayer/raw\t")
	for _, f := range r.Device {
		fmt.Fprintf(t, "%s\t%.0f\t%d\t%.0f\t%.2f\t\n", f.Operation, f.Raw, f.RawSessions, f.Layer, f.Ratio)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	if err := r.printKeys(w); err != nil {
		return err
	}
	if len(r.Service) == 0 {
		_, err := fmt.Fprintln(w, "\n"+r.Headline)
		return err
	}
	fmt.Fprintf(w, "\nPostgres, one connection: %.0f durable commits/s, %.2f ms each\n\n", r.Commits, 1000/r.Commits)
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "over HTTP\tconns\treq/s\tp50 ms\tp99 ms\tserver µs/req\tPostgres µs/req\tclient µs/req\tto bare\t")
	for _, f := range r.Service {
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.2f\t%.2f\t%.0f\t%.0f\t%.0f\t%.2f\t\n",
			f.Name, f.Connections, f.Rate, f.P50, f.P99, f.ServerCPU, f.PostgresCPU, f.ClientCPU, f.ToBare)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	_, err := fmt.Fprintln(w, "\n"+r.Headline)
	return err
}

func (r *report) printKeys(w io.Writer) error {
	if len(r.Keys) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "other keys, 32 B\traw ops/s\tsessions\thsm layer ops/s, 16 callers\tlayer/raw\tuncached ops/s\t")
	for _, f := range r.Keys {
		fmt.Fprintf(t, "%s\t%.0f\t%d\t%.0f\t%.2f\t%.0f\t\n", f.Operation, f.Raw, f.RawSessions, f.Layer, f.Ratio, f.Uncached)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}
