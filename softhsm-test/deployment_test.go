package softhsmtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/trent-kms/trent/internal/softhsm"
	"github.com/trent-kms/trent/internal/testenv"
)

const (
	otherRegion = "eu-central-1"
	thirdRegion = "ap-southeast-2"
	userPIN     = "1234-user"
	officerPIN  = "5678-officer"
)

// A deployment is one token and one database, and what runs on them.
type deployment struct {
	dir      string
	conf     string // SOFTHSM2_CONF
	module   string
	label    string
	database string // URL
	pool     *pgxpool.Pool
	admin    secretKey

	tags  string   // build tags of the binary
	extra []string // further environment of every process

	url     string // of the first server
	servers []*server
}

var (
	sharedMu sync.Mutex
	sharedOf *deployment
)

// shared is the deployment that most tests use. It outlives them.
func shared(t testing.TB) *deployment {
	t.Helper()
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if sharedOf == nil {
		d := prepare(t, testenv.Postgres(t))
		d.initialise(t)
		d.serve(t)
		sharedOf = d
	}
	return sharedOf
}

func closeShared() {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if sharedOf != nil {
		sharedOf.stopAll()
		sharedOf.pool.Close()
	}
}

// newDeployment is an initialised deployment of this test's own, not yet
// served.
func newDeployment(t testing.TB, tags string) *deployment {
	t.Helper()
	d := prepare(t, testenv.Postgres(t))
	d.tags = tags
	d.endWith(t)
	d.initialise(t)
	return d
}

// endWith ends the deployment with the test, and shows what its servers have
// logged if the test has failed.
func (d *deployment) endWith(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		d.stopAll()
		d.pool.Close()
		if !t.Failed() {
			return
		}
		for _, s := range d.servers {
			log, _ := os.ReadFile(s.log)
			t.Logf("%s ends with:\n%s", s.log, log[max(0, len(log)-3000):])
		}
	})
}

// prepare makes an empty token and takes an empty database.
func prepare(t testing.TB, database string) *deployment {
	t.Helper()
	module, err := softhsm.Module()
	if err != nil {
		testenv.Missing(t, err)
	}
	dir, err := os.MkdirTemp(workspace, "deployment-")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := softhsm.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &deployment{dir: dir, conf: folder.Conf, module: module, label: "trent-test", database: database}
	if err := folder.InitToken(context.Background(), d.label, []byte(officerPIN), []byte(userPIN)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.pinFile(), []byte(userPIN), 0o600); err != nil {
		t.Fatal(err)
	}
	d.pool = must(pgxpool.New(context.Background(), database))(t)
	return d
}

func (d *deployment) pinFile() string { return filepath.Join(d.dir, "pin") }

// settings are the deployment's, as environment.
func (d *deployment) settings() []string {
	return []string{
		"TRENT_HSM_MODULE=" + d.module, "TRENT_HSM_TOKEN=" + d.label, "TRENT_PIN_FILE=" + d.pinFile(),
		"TRENT_DATABASE_URL=" + d.database,
		"TRENT_ACCOUNT=" + account, "TRENT_REGIONS=" + region + "," + otherRegion + "," + thirdRegion, "TRENT_HOST=test-host",
	}
}

// command is the trent binary with this deployment's configuration. Later
// settings win over earlier ones.
func (d *deployment) command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program(t, d.tags), args...)
	cmd.Dir = d.dir
	cmd.Env = append([]string{
		"PATH=/usr/bin:/bin", "HOME=" + d.dir, "TZ=UTC",
		"SOFTHSM2_CONF=" + d.conf,
	}, append(d.settings(), d.extra...)...)
	return cmd
}

var (
	accessKeyID = regexp.MustCompile(`\bAKIA[A-Z2-7]{16}\b`)
	accessKey   = regexp.MustCompile(`(?:^|[^A-Za-z0-9+/])([A-Za-z0-9+/]{40})(?:$|[^A-Za-z0-9+/])`)
)

// initialise runs `trent init` and keeps the administrator's secret.
func (d *deployment) initialise(t testing.TB) {
	t.Helper()
	out, err := d.tryInitialise(t)
	if err != nil {
		t.Fatalf("trent init: %v\n%s", err, out)
	}
	if d.admin.ID == "" {
		t.Fatalf("trent init showed no access key:\n%s", out)
	}
}

func (d *deployment) tryInitialise(t testing.TB, extra ...string) (string, error) {
	t.Helper()
	cmd := d.command(t, "init")
	cmd.Env = append(cmd.Env, extra...)
	out, err := cmd.CombinedOutput()
	if id, secret := accessKeyID.Find(out), accessKey.FindSubmatch(out); id != nil && secret != nil {
		d.admin = secretKey{string(id), string(secret[1])}
	}
	return string(out), err
}

// A server is one `trent serve` process.
type server struct {
	url, adminURL string
	log           string // path
	cmd           *exec.Cmd
	exited        chan struct{} // closed when the process has ended
}

// serve starts a server and waits until it is ready.
func (d *deployment) serve(t testing.TB, extra ...string) *server {
	t.Helper()
	s := d.launch(t, extra...)
	if err := s.ready(30 * time.Second); err != nil {
		log, _ := os.ReadFile(s.log)
		t.Fatalf("%v\n%s", err, log)
	}
	return s
}

// launch starts a server without waiting for it.
func (d *deployment) launch(t testing.TB, extra ...string) *server {
	t.Helper()
	listen, admin := testenv.Address(t), testenv.Address(t)
	s := &server{
		url: "http://" + listen, adminURL: "http://" + admin, exited: make(chan struct{}),
		log: filepath.Join(d.dir, fmt.Sprintf("serve-%d.log", len(d.servers))),
	}
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = d.command(t, "serve")
	s.cmd.Env = append(append(s.cmd.Env, "TRENT_LISTEN="+listen, "TRENT_ADMIN_LISTEN="+admin), extra...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.cmd.Wait(); close(s.exited) }()
	d.servers = append(d.servers, s)
	d.url = s.url
	return s
}

// ready waits until /readyz says so.
func (s *server) ready(within time.Duration) error {
	deadline := time.Now().Add(within)
	for time.Now().Before(deadline) {
		if status, _ := get(s.adminURL + "/readyz"); status == 200 {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("trent serve ended: %s", s.cmd.ProcessState)
		case <-time.After(30 * time.Millisecond):
		}
	}
	return fmt.Errorf("trent serve is not ready after %s", within)
}

// stop ends a server in order, and kills it if it takes longer than 20 s.
func (s *server) stop() error {
	_ = s.cmd.Process.Signal(os.Interrupt)
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.exited
		return fmt.Errorf("trent serve did not stop within 20 s of SIGINT")
	}
	if !s.cmd.ProcessState.Success() {
		return fmt.Errorf("trent serve ended with %s", s.cmd.ProcessState)
	}
	return nil
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

func (d *deployment) stopAll() {
	for _, s := range d.servers {
		_ = s.stop()
	}
}

// client is an SDK client of the administrator. When the test ends, each of
// its calls must have exactly one audit record.
func (d *deployment) client(t testing.TB) *kms.Client {
	t.Helper()
	r := &recorder{}
	t.Cleanup(func() { d.wantRecords(t, r.all()) })
	return newClient(d.url, d.admin, r)
}

// racingClient is client for a test whose calls a sweep may overtake.
func (d *deployment) racingClient(t testing.TB) *kms.Client {
	t.Helper()
	r := &recorder{}
	t.Cleanup(func() { d.checkRecords(t, r.all(), true) })
	return newClient(d.url, d.admin, r)
}

// logs is what every server of the deployment has written.
func (d *deployment) logs(t testing.TB) []byte {
	t.Helper()
	var all []byte
	for _, s := range d.servers {
		all = append(all, must(os.ReadFile(s.log))(t)...)
	}
	return all
}

// metric is the sum of a metric's samples, over its labels.
func (s *server) metric(t testing.TB, name string) float64 {
	t.Helper()
	_, body := get(s.adminURL + "/metrics")
	sum := 0.0
	for line := range bytes.Lines(body) {
		sample, value, ok := strings.Cut(strings.TrimSpace(string(line)), " ")
		if base, _, _ := strings.Cut(sample, "{"); !ok || base != name {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(value, &v); err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}
