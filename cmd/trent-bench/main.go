// Command trent-bench measures, in one run on one machine: the PKCS#11 module
// alone, Trent's hsm layer on it, a bare net/http server, and the service
// over HTTP with SigV4 and durable audit; then it prints the ratios between
// them. Everything it needs (SoftHSM token, Postgres cluster, servers) is its
// own and gone afterwards.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

type cli struct {
	Duration    time.Duration `default:"3s" help:"How long each figure is measured."`
	Connections []int         `default:"1,16,64" help:"Numbers of connections to load the servers with."`
	Measure     []string      `default:"device,keys,service" enum:"device,keys,service" help:"What to measure: AES-GCM in the HSM, other keys in the HSM, the service over HTTP."`
	JSON        bool          `name:"json" help:"Print JSON instead of tables."`
	Trent       string        `type:"path" placeholder:"FILE" help:"The trent binary. The default is the one beside this program, or one built now."`

	Run    runCmd    `cmd:"" default:"1" hidden:""`
	HSM    hsmCmd    `cmd:"" name:"hsm" help:"Measure the hsm layer in this process and in worker processes, with one token and several."`
	Leak   leakCmd   `cmd:"" help:"Unwrap, use and destroy keys, and watch the memory."`
	Worker workerCmd `cmd:"" name:"hsm-worker" hidden:""`

	Bare bareCmd `cmd:"" hidden:"" help:"Serve a fixed body; the benchmark starts this itself."`
}

func main() {
	var c cli
	command := kong.Parse(&c, kong.Name("trent-bench"), kong.Description("Measure raw PKCS#11, the hsm layer and the service."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	command.BindTo(ctx, (*context.Context)(nil))
	if err := command.Run(&c); err != nil {
		fmt.Fprintf(os.Stderr, "trent-bench: %v\n", err)
		os.Exit(1)
	}
}

type runCmd struct{}

// Run measures everything and prints it.
func (runCmd) Run(ctx context.Context, c *cli) (err error) {
	// Requests are signed once per figure and hold for five minutes.
	if c.Duration <= 0 || c.Duration > 4*time.Minute {
		return errors.New("--duration is more than 0 and at most 4m")
	}
	s, err := newStack(ctx, c.Trent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := newReport(c.Duration)
	if slices.Contains(c.Measure, "device") {
		note("the PKCS#11 module and the hsm layer")
		if err := s.measureDevice(ctx, c.Duration, r); err != nil {
			return err
		}
	}
	if slices.Contains(c.Measure, "keys") {
		note("the same with other keys")
		if err := s.measureKeys(ctx, c.Duration, r); err != nil {
			return err
		}
	}
	if slices.Contains(c.Measure, "service") {
		if err := s.measureService(ctx, c, r); err != nil {
			return err
		}
	}
	r.compare()
	return r.print(os.Stdout, c.JSON)
}

func note(text string) { fmt.Fprintln(os.Stderr, "measuring "+text) }

// measureService loads the bare server and the service in turn.
func (s *stack) measureService(ctx context.Context, c *cli, r *report) (err error) {
	note("durable commits of Postgres")
	if r.Commits, err = commitRate(ctx, s.pg.URL("postgres"), c.Duration); err != nil {
		return err
	}
	bare, err := s.startBare(ctx)
	if err != nil {
		return err
	}
	trent, err := s.startTrent(ctx)
	if err != nil {
		return err
	}
	for _, connections := range c.Connections {
		for _, on := range []*target{bare, trent} {
			for _, job := range on.jobs {
				if job.only != 0 && job.only != connections {
					continue
				}
				note(fmt.Sprintf("%s at %d connections", job.name, connections))
				f, err := on.measure(ctx, job, connections, c.Duration)
				if err != nil {
					return fmt.Errorf("measuring %s: %w", job.name, err)
				}
				r.Service = append(r.Service, f)
			}
		}
	}
	return nil
}
