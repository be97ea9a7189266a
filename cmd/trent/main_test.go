package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/trent-kms/trent/internal/testenv"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"trent": func() { os.Exit(run(os.Args[1:])) },
	})
}

// TestCommandLine runs what needs neither token nor database.
func TestCommandLine(t *testing.T) {
	packaging, err := filepath.Abs("../../packaging")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/settings",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PACKAGING", packaging)
			return nil
		},
	})
}

// TestRunning runs the commands on a real token and a real database.
func TestRunning(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/running",
		Setup: func(env *testscript.Env) error {
			// The scripts' own T cannot be had here.
			token := testenv.SoftHSM(t)
			env.Setenv("SOFTHSM2_CONF", token.Conf)
			env.Setenv("TRENT_HSM_MODULE", token.Module)
			env.Setenv("TRENT_HSM_TOKEN", token.Label)
			env.Setenv("TRENT_PIN_FILE", env.WorkDir+"/pin")
			env.Setenv("TRENT_DATABASE_URL_FILE", env.WorkDir+"/database-url")
			env.Setenv("TRENT_ACCOUNT", "111122223333")
			env.Setenv("TRENT_REGIONS", "us-east-1")
			env.Defer(func() { removePostgres(t, env.WorkDir) })
			for _, name := range []string{"API", "ADMIN", "API2", "ADMIN2"} {
				env.Setenv(name, testenv.Address(t))
			}
			// Not the default: make run may be at work beside the tests.
			env.Setenv("TRENT_LISTEN", env.Getenv("API"))
			env.Setenv("TRENT_ADMIN_LISTEN", env.Getenv("ADMIN"))
			for name, content := range map[string]string{
				"pin": token.PIN + "\n", "database-url": testenv.Postgres(t),
			} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), []byte(content), 0o600); err != nil {
					return err
				}
			}
			return writeCertificate(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"get": get, "sql": sql},
	})
}

// get waits until a URL answers: get STATUS URL [CA-FILE]. It prints the body.
func get(ts *testscript.TestScript, _ bool, args []string) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if len(args) == 3 {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(ts.ReadFile(args[2])))
		client.Transport = &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	}
	last := "nothing"
	for range 200 {
		response, err := client.Get(args[1])
		if err != nil {
			last = err.Error()
		} else {
			body, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			ts.Check(err)
			if last = fmt.Sprint(response.StatusCode); last == args[0] {
				_, err = ts.Stdout().Write(body)
				ts.Check(err)
				return
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	ts.Fatalf("%s answered %s, want %s", args[1], last, args[0])
}

// sql runs a statement: sql URL-FILE STATEMENT.
func sql(ts *testscript.TestScript, _ bool, args []string) {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	defer conn.Close(ctx) //nolint:errcheck // nothing is pending
	_, err = conn.Exec(ctx, args[1])
	ts.Check(err)
}

// removePostgres removes the cluster that dev, as root, has put outside of its
// state folder.
func removePostgres(t *testing.T, dir string) {
	t.Helper()
	path, err := os.ReadFile(filepath.Join(dir, ".trent", "postgres.path"))
	if err != nil {
		return
	}
	if err := os.RemoveAll(strings.TrimSpace(string(path))); err != nil {
		t.Error(err)
	}
}

// writeCertificate makes tls.crt and tls.key for 127.0.0.1.
func writeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "trent test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: der},
		"tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}
