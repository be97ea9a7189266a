package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trent-kms/trent/store"
)

// hsmSettings choose the token.
type hsmSettings struct {
	HSMModule   string `name:"hsm-module" env:"TRENT_HSM_MODULE" placeholder:"FILE" type:"path" help:"PKCS#11 library of the HSM's vendor."`
	HSMToken    string `name:"hsm-token" env:"TRENT_HSM_TOKEN" placeholder:"LABEL" help:"Label of the token. Slot numbers are never used: they move."`
	HSMSerial   string `name:"hsm-serial" env:"TRENT_HSM_SERIAL" placeholder:"SERIAL" help:"Serial number of the token; together with a label, both must match."`
	HSMSessions int    `name:"hsm-sessions" env:"TRENT_HSM_SESSIONS" default:"0" help:"Sessions that symmetric operations share. 0 means 1, which measures best on SoftHSM."`
	HSMHandles  int    `name:"hsm-handles" env:"TRENT_HSM_HANDLES" default:"0" help:"Most unwrapped secret keys on the token at a time, and as many private keys. 0 means 1024."`
	HSMIVSource string `name:"hsm-iv-source" env:"TRENT_HSM_IV_SOURCE" enum:"auto,process,hsm,mechanism" default:"auto" help:"Who makes the IVs of AES-GCM: this process, the HSM's generator, or the HSM's mechanism; auto tries what the device takes."`

	HSMIsolation    string        `name:"hsm-isolation" env:"TRENT_HSM_ISOLATION" enum:"worker,in-process" default:"worker" help:"Where the vendor's library runs: in a worker process for each token, which may hang or crash, or in-process."`
	HSMDeadline     time.Duration `name:"hsm-deadline" env:"TRENT_HSM_DEADLINE" default:"5s" help:"How long a call to the HSM may take before its worker is replaced."`
	HSMMakeDeadline time.Duration `name:"hsm-make-deadline" env:"TRENT_HSM_MAKE_DEADLINE" default:"1m" help:"The same for a call that makes or imports a key."`
	HSMRetire       uint64        `name:"hsm-retire" env:"TRENT_HSM_RETIRE" default:"0" help:"Unwrapped keys after which a worker is replaced, since libraries leak. 0 means 1000000."`
	HSMMembers      memberTables  `name:"hsm-member" hidden:"" help:"The [[hsm-member]] tables of the configuration file."`

	PINFile string `name:"pin-file" env:"TRENT_PIN_FILE" placeholder:"FILE" type:"path" help:"File that holds the token's user PIN. Otherwise TRENT_PIN or the systemd credential \"pin\"."`
}

func (s hsmSettings) Validate() error {
	if s.HSMSessions < 0 || s.HSMHandles < 0 {
		return errors.New("--hsm-sessions and --hsm-handles are 0 or more")
	}
	if s.HSMDeadline <= 0 || s.HSMMakeDeadline <= 0 {
		return errors.New("--hsm-deadline and --hsm-make-deadline are more than 0")
	}
	return nil
}

// databaseSettings say where Postgres is.
type databaseSettings struct {
	DatabaseURLFile string `name:"database-url-file" env:"TRENT_DATABASE_URL_FILE" placeholder:"FILE" type:"path" help:"File that holds the Postgres URL. Otherwise TRENT_DATABASE_URL or the systemd credential \"database-url\"."`
	DatabaseConns   int32  `name:"database-connections" env:"TRENT_DATABASE_CONNECTIONS" default:"0" help:"Most connections to Postgres at a time; at least 4 are used. 0 means 16."`
}

func (s databaseSettings) Validate() error {
	if s.DatabaseConns < 0 {
		return errors.New("--database-connections is 0 or more")
	}
	return nil
}

func (s databaseSettings) config(log *slog.Logger, metrics prometheus.Registerer) (store.Config, error) {
	url, err := databaseSecret(s.DatabaseURLFile).read(log)
	if err != nil {
		return store.Config{}, err
	}
	return store.Config{URL: string(url), MaxConns: s.DatabaseConns, Logger: log, Metrics: metrics}, nil
}

// deploymentSettings must be the same on every host and for good: they are
// part of every ARN.
type deploymentSettings struct {
	Account   string `env:"TRENT_ACCOUNT" placeholder:"DIGITS" help:"Account id, 12 digits."`
	Partition string `env:"TRENT_PARTITION" default:"aws" help:"ARN partition."`
}

var (
	accountForm   = regexp.MustCompile(`^[0-9]{12}$`)
	partitionForm = regexp.MustCompile(`^aws(-[a-z]+)*$`)
	regionForm    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	hostForm      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)
)

func (s deploymentSettings) Validate() error {
	if s.Account == "" {
		return errors.New("no account is named: set --account to the 12 digits that your ARNs shall carry")
	}
	if !accountForm.MatchString(s.Account) {
		return fmt.Errorf("--account %q is not 12 digits", s.Account)
	}
	if !partitionForm.MatchString(s.Partition) {
		return fmt.Errorf("--partition %q is not aws, aws-cn, aws-us-gov or the like", s.Partition)
	}
	return nil
}

// listenSettings say how a serving process appears.
type listenSettings struct {
	Regions     []string `env:"TRENT_REGIONS" placeholder:"REGION" help:"Region names to serve, separated by commas. Clients name one in each signature."`
	Host        string   `env:"TRENT_HOST" default:"${hostname}" help:"Name of this process in the audit log; each running process needs its own."`
	Listen      string   `env:"TRENT_LISTEN" default:"127.0.0.1:4600" help:"Address of the API. Other than loopback it needs --tls-cert and --tls-key."`
	AdminListen string   `env:"TRENT_ADMIN_LISTEN" default:"127.0.0.1:4601" help:"Address of /metrics, /healthz and /readyz: plain HTTP, no secrets."`
}

func (s listenSettings) Validate() error {
	if len(s.Regions) == 0 {
		return errors.New("no region is named: set --regions, for example us-east-1")
	}
	for _, region := range s.Regions {
		if !regionForm.MatchString(region) {
			return fmt.Errorf("--regions: %q is not a region name (lower-case letters, digits and hyphens)", region)
		}
	}
	if !hostForm.MatchString(s.Host) {
		return fmt.Errorf("--host %q is not a host name", s.Host)
	}
	for flag, address := range map[string]string{"--listen": s.Listen, "--admin-listen": s.AdminListen} {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("%s %q is not ADDRESS:PORT: %w", flag, address, err)
		}
	}
	return nil
}

// loopback reports whether only this machine reaches address.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// tlsSettings name the certificate.
type tlsSettings struct {
	TLSCert string `name:"tls-cert" env:"TRENT_TLS_CERT" placeholder:"FILE" type:"path" help:"Certificate chain (PEM). Read again when it changes."`
	TLSKey  string `name:"tls-key" env:"TRENT_TLS_KEY" placeholder:"FILE" type:"path" help:"Private key of the certificate (PEM)."`
}

func (s tlsSettings) Validate() error {
	if (s.TLSCert == "") != (s.TLSKey == "") {
		return errors.New("--tls-cert and --tls-key go together: set both or none")
	}
	return nil
}

// logSettings shape the log, which goes to standard error.
type logSettings struct {
	LogLevel  slog.Level `env:"TRENT_LOG_LEVEL" default:"INFO" placeholder:"LEVEL" help:"DEBUG, INFO, WARN or ERROR."`
	LogFormat string     `env:"TRENT_LOG_FORMAT" enum:"json,text," default:"" help:"json or text. The default is json for serve and text for the others."`
}

func (s logSettings) logger(w io.Writer, format string) *slog.Logger {
	if s.LogFormat != "" {
		format = s.LogFormat
	}
	options := &slog.HandlerOptions{Level: s.LogLevel}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
