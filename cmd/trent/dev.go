package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/internal/pgcluster"
	"github.com/trent-kms/trent/kms"
	"github.com/trent-kms/trent/store"
)

type devCmd struct {
	State       string   `env:"TRENT_DEV_STATE" default:".trent" type:"path" help:"Folder that keeps the token, the database and the credentials."`
	Listen      string   `env:"TRENT_DEV_LISTEN" default:"127.0.0.1:4600" help:"Loopback address of the API."`
	AdminListen string   `env:"TRENT_DEV_ADMIN_LISTEN" default:"127.0.0.1:4601" help:"Loopback address of /metrics, /healthz and /readyz."`
	Account     string   `env:"TRENT_DEV_ACCOUNT" default:"111122223333" help:"Account id, 12 digits; fixed once the folder is made."`
	Regions     []string `env:"TRENT_DEV_REGIONS" default:"us-east-1" help:"Region names to serve, separated by commas."`
	logSettings
}

// The names of what dev makes.
const (
	devHost     = "dev"
	devToken    = "trent-dev"
	devDatabase = "trent"
	devAdmin    = "admin"
)

// Help implements kong.HelpProvider.
func (*devCmd) Help() string {
	return `Token and database are real and private to the folder; keys outlive restarts. Nothing that is on the machine is used or changed. It serves this machine only, over plain HTTP, and prints what AWS clients need.

Example:

    trent dev
    . .trent/env
    aws kms create-key`
}

// Validate is called by kong when all settings are known.
func (c *devCmd) Validate() error {
	deployment := deploymentSettings{Account: c.Account, Partition: "aws"}
	addresses := listenSettings{Regions: c.Regions, Host: devHost, Listen: c.Listen, AdminListen: c.AdminListen}
	if err := errors.Join(deployment.Validate(), addresses.Validate()); err != nil {
		return err
	}
	if !loopback(c.Listen) || !loopback(c.AdminListen) {
		return errors.New("dev serves this machine only: --listen and --admin-listen take a loopback address (trent serve is for others)")
	}
	return nil
}

// Run makes what is missing in the state folder, and serves.
func (c *devCmd) Run(ctx context.Context) error {
	log := c.logger(os.Stderr, "text")
	harden(log)
	state, err := openDevState(c.State)
	if err != nil {
		return err
	}
	defer state.close()
	s := serving{system: systemConfig{
		account: c.Account, partition: "aws", regions: c.Regions, host: devHost, log: log, metrics: newMetrics(),
	}}
	if s.api, err = listen(ctx, "--listen", c.Listen); err != nil {
		return err
	}
	if s.admin, err = listen(ctx, "--admin-listen", c.AdminListen); err != nil {
		return err
	}
	token, err := state.token(ctx, log)
	if err != nil {
		return err
	}
	cluster, err := state.postgres(ctx, log)
	if err != nil {
		return err
	}
	defer stopPostgres(cluster, log)
	s.system.hsm = hsm.DomainConfig{Isolation: hsm.IsolationWorker, Members: []hsm.MemberConfig{{Config: token}}, Logger: log}
	s.system.store = store.Config{URL: cluster.URL(devDatabase), Logger: log}
	if err := c.initialise(ctx, s.system, state); err != nil {
		return err
	}
	// Only now: setting up has opened and closed both once.
	s.system.hsm.Metrics, s.system.store.Metrics = s.system.metrics, s.system.metrics
	env, err := state.writeEnv(s.api.Addr().(*net.TCPAddr), c.Regions[0])
	if err != nil {
		return err
	}
	defer clear(env)
	s.ready = func() { c.welcome(s, state, env) }
	return serveBeside(ctx, s, cluster)
}

// serveBeside serves until ctx ends or the cluster does.
func serveBeside(ctx context.Context, s serving, cluster *pgcluster.Cluster) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := errors.New("Postgres ended by itself: its reason is in " + cluster.Log())
	go func() {
		select {
		case <-cluster.Exited():
			cancel(ended)
		case <-ctx.Done():
		}
	}()
	err := serve(ctx, s)
	if errors.Is(context.Cause(ctx), ended) {
		return errors.Join(ended, err)
	}
	return err
}

func stopPostgres(cluster *pgcluster.Cluster, log *slog.Logger) {
	if err := cluster.Stop(); err != nil {
		log.Error("stopping Postgres", "error", err)
	}
}

// initialise does what trent init does, if it has not been done.
func (c *devCmd) initialise(ctx context.Context, cfg systemConfig, state *devState) error {
	if err := createDatabase(ctx, cfg.store.URL); err != nil {
		return err
	}
	err := initialise(ctx, cfg, devAdmin, state.keepCredentials)
	if errors.Is(err, kms.ErrAlreadyInitialised) {
		return nil
	}
	return err
}

// createDatabase makes the database that url names, beside "postgres".
func createDatabase(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, strings.Replace(url, "/"+devDatabase+"?", "/postgres?", 1))
	if err != nil {
		return fmt.Errorf("connecting to the private Postgres: %w", err)
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing is pending
	var exists bool
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", devDatabase).Scan(&exists)
	if err == nil && !exists {
		_, err = conn.Exec(ctx, "CREATE DATABASE "+devDatabase)
	}
	if err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	return nil
}

// welcome tells the developer what to type.
func (c *devCmd) welcome(s serving, state *devState, env []byte) {
	endpoint := "http://" + s.api.Addr().String()
	file := state.envFile()
	if here, err := os.Getwd(); err == nil {
		if short, err := filepath.Rel(here, file); err == nil && !strings.HasPrefix(short, "..") {
			file = "./" + short
		}
	}
	text := fmt.Sprintf(`
Trent is ready: %s

%s
These lines are in %s. In another terminal:

    . %s
    aws kms create-key

AWS clients that do not know AWS_ENDPOINT_URL_KMS (Debian 12's aws and boto3 among them) need:

    aws --endpoint-url %s kms create-key
    boto3.client("kms", endpoint_url="%s")

Ctrl-C ends; token, database and keys stay in %s.
`, endpoint, env, file, file, endpoint, endpoint, state.dir)
	// A closed standard output is no reason to stop serving.
	_, _ = os.Stdout.WriteString(text)
}

// token returns the folder's token, made if it is not there.
func (s *devState) token(ctx context.Context, log *slog.Logger) (hsm.Config, error) {
	pin, err := s.softHSM(ctx)
	if err != nil {
		return hsm.Config{}, err
	}
	defer clear(pin)
	return hsm.Config{Module: s.module, TokenLabel: devToken, PIN: hsm.NewPIN(pin), Logger: log}, nil
}
