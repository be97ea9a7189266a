package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/internal/softhsm"
)

// hsmCmd measures what a process boundary costs and what further members
// bring: the module alone, Trent's hsm layer in this process, and in workers.
type hsmCmd struct {
	Callers []int    `default:"1,4,16,64" help:"Numbers of callers."`
	Members []int    `default:"1,2,3" help:"Numbers of members, each a token of its own."`
	Keys    []string `default:"cached,unwrapped" enum:"cached,unwrapped" help:"Keys that are held ready, or unwrapped for each call."`
}

// memberFigure is one way to reach the device under one load, in encryptions
// of 32 B per second.
type memberFigure struct {
	Isolation string  `json:"isolation"`
	Members   int     `json:"members"`
	Key       string  `json:"key"` // cached, or unwrapped for each call
	Callers   int     `json:"callers"`
	Rate      float64 `json:"perSecond"`
	ToProcess float64 `json:"ratioToInProcess"` // at the same key and callers
	ToRaw     float64 `json:"ratioToRaw"`       // of the module with one session
	CPU       float64 `json:"cpuUs"`            // of this process and its workers for each, which noise moves least
}

// Run measures and prints.
func (h hsmCmd) Run(ctx context.Context, c *cli) (err error) {
	b, err := newMemberBench(ctx, h.Members)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	raw, err := hsm.RawBench(b.members[0].Config, c.Duration, 1, false)
	if err != nil {
		return fmt.Errorf("measuring the module: %w", err)
	}
	var figures []memberFigure
	base := map[string]float64{}
	for _, key := range h.Keys {
		for _, callers := range h.Callers {
			for _, way := range b.ways(h.Members) {
				f, err := b.measure(ctx, way, key, callers, c.Duration)
				if err != nil {
					return err
				}
				at := fmt.Sprint(f.Key, callers)
				if way.Isolation == hsm.IsolationNone {
					base[at] = f.Rate
				}
				f.ToProcess, f.ToRaw = f.Rate/base[at], f.Rate/raw
				figures = append(figures, f)
			}
		}
	}
	return printMembers(raw, figures, c.JSON)
}

func printMembers(raw float64, figures []memberFigure, asJSON bool) error {
	if asJSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(map[string]any{"cores": runtime.NumCPU(), "rawPerSecond": raw, "figures": figures})
	}
	fmt.Printf("%d cores; AES-GCM, 32 B; the module alone, one session: %.0f ops/s\n\n", runtime.NumCPU(), raw)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "isolation\tmembers\tkey\tcallers\tops/s\tto in-process\tto raw\tCPU µs/op\t")
	for _, f := range figures {
		fmt.Fprintf(t, "%s\t%d\t%s\t%d\t%.0f\t%.2f\t%.2f\t%.1f\t\n",
			f.Isolation, f.Members, f.Key, f.Callers, f.Rate, f.ToProcess, f.ToRaw, f.CPU)
	}
	return t.Flush()
}

// memberBench is tokens that hold the same domain, in folders of their own.
type memberBench struct {
	dir     string
	id      hsm.DomainID
	members []hsm.MemberConfig
}

func newMemberBench(ctx context.Context, members []int) (*memberBench, error) {
	module, err := softhsm.Module()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "trent-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	b := &memberBench{dir: dir, id: hsm.DomainID{1}}
	most := 1
	for _, n := range members {
		most = max(most, n)
	}
	if err := b.fill(ctx, module, most); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return b, nil
}

// fill makes one token and copies it, as a vendor's cloning would.
func (b *memberBench) fill(ctx context.Context, module string, most int) error {
	cfg := hsm.Config{Module: module, TokenLabel: "member", PIN: hsm.NewPIN([]byte(userPIN))}
	for i := range most {
		dir := filepath.Join(b.dir, fmt.Sprint(i))
		folder, err := softhsm.Open(dir)
		if err != nil {
			return err
		}
		if i == 0 {
			err = b.fillFirst(ctx, folder, cfg)
		} else {
			err = os.CopyFS(filepath.Join(dir, "tokens"), os.DirFS(filepath.Join(b.dir, "0", "tokens")))
		}
		if err != nil {
			return fmt.Errorf("making a token: %w", err)
		}
		b.members = append(b.members, hsm.MemberConfig{
			Config: cfg, Name: fmt.Sprint(i), Environment: []string{"SOFTHSM2_CONF=" + folder.Conf},
		})
	}
	return nil
}

func (b *memberBench) fillFirst(ctx context.Context, folder softhsm.Folder, cfg hsm.Config) error {
	if err := folder.InitToken(ctx, cfg.TokenLabel, []byte(officerPIN), []byte(userPIN)); err != nil {
		return err
	}
	if err := os.Setenv("SOFTHSM2_CONF", folder.Conf); err != nil { // of this process's own module
		return err
	}
	token, err := hsm.Open(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(token.CreateDomain(ctx, b.id), token.Close())
}

// ways are the first member in this process, and each number in workers.
func (b *memberBench) ways(members []int) []hsm.DomainConfig {
	first := b.members[0]
	first.Environment = nil
	ways := []hsm.DomainConfig{{ID: b.id, Isolation: hsm.IsolationNone, Members: []hsm.MemberConfig{first}}}
	for _, n := range members {
		ways = append(ways, hsm.DomainConfig{ID: b.id, Isolation: hsm.IsolationWorker, Members: b.members[:n]})
	}
	return ways
}

// uncachedKeys is how many keys take turns in a cache of half of them, so that
// every call finds its key gone.
const uncachedKeys = 256

func (b *memberBench) measure(ctx context.Context, way hsm.DomainConfig, key string, callers int, d time.Duration) (memberFigure, error) {
	f := memberFigure{Isolation: string(way.Isolation), Members: len(way.Members), Key: key, Callers: callers}
	keys := 16
	way.Members = append([]hsm.MemberConfig(nil), way.Members...)
	if key == "unwrapped" {
		keys = uncachedKeys
		for i := range way.Members {
			way.Members[i].HandleCache = uncachedKeys / (2 * len(way.Members))
		}
	}
	domain, err := hsm.OpenDomain(ctx, way)
	if err != nil {
		return f, fmt.Errorf("opening the domain: %w", err)
	}
	defer domain.Close()
	ekts := make([]hsm.EKT, keys)
	for i := range ekts {
		if ekts[i], _, err = domain.GenerateAES(ctx); err != nil {
			return f, err
		}
	}
	before, err := familyCPU(os.Getpid())
	if err != nil {
		return f, err
	}
	start := time.Now()
	calls, err := encryptions(ctx, domain, ekts, callers, d)
	took := time.Since(start)
	if err != nil {
		return f, err
	}
	after, err := familyCPU(os.Getpid())
	f.Rate = float64(calls) / took.Seconds()
	f.CPU = float64(after-before) / float64(time.Microsecond) / float64(calls)
	return f, err
}

// encryptions makes calls for d, with the keys in turn, and counts them.
func encryptions(ctx context.Context, domain *hsm.Domain, keys []hsm.EKT, callers int, d time.Duration) (int64, error) {
	var (
		group sync.WaitGroup
		total atomic.Int64
	)
	aad, text := make([]byte, 64), make([]byte, 32)
	faults := make([]error, callers)
	end := time.Now().Add(d)
	for i := range callers {
		group.Go(func() {
			n := 0
			for ; faults[i] == nil && time.Now().Before(end); n++ {
				_, _, faults[i] = domain.Encrypt(ctx, keys[(i*len(keys)/callers+n)%len(keys)], aad, text)
			}
			total.Add(int64(n))
		})
	}
	group.Wait()
	return total.Load(), errors.Join(faults...)
}

// workerCmd is what a domain under measurement starts.
type workerCmd struct{}

// Run serves one token.
func (workerCmd) Run() error { return hsm.ServeWorker() }
