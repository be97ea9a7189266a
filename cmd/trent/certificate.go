package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificateCheck is how often the files are looked at for a renewal.
const certificateCheck = 10 * time.Second

// certificate serves a certificate from files, and follows their renewal.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu
	changed time.Time        // newest of the files' times when read; guarded by mu
	checked time.Time        // guarded by mu
}

// tlsConfig loads the certificate, so that a wrong one is found at start.
func tlsConfig(s tlsSettings, log *slog.Logger) (*tls.Config, error) {
	c := &certificate{certFile: s.TLSCert, keyFile: s.TLSKey, log: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.get(), nil },
	}, nil
}

// load reads the files. The caller holds mu, or is alone.
func (c *certificate) load() error {
	changed, err := c.newest()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("loading the TLS certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.current, c.changed = &pair, changed
	return nil
}

func (c *certificate) newest() (time.Time, error) {
	var newest time.Time
	for _, path := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return newest, fmt.Errorf("loading the TLS certificate: %w", err)
		}
		if info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	return newest, nil
}

// get returns the certificate, renewed if the files changed. A broken or
// half-written renewal keeps the old one and is tried again.
func (c *certificate) get() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) < certificateCheck {
		return c.current
	}
	c.checked = time.Now()
	changed, err := c.newest()
	if err == nil && !changed.Equal(c.changed) {
		if err = c.load(); err == nil {
			c.log.Info("TLS certificate renewed", "file", c.certFile)
		}
	}
	if err != nil {
		c.log.Error("renewing the TLS certificate: the old one stays", "error", err)
	}
	if ends := c.current.Leaf.NotAfter; time.Now().After(ends) {
		c.log.Error("the TLS certificate has expired, and clients refuse it: renew it in its file", "file", c.certFile, "expired", ends)
	}
	return c.current
}
