package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A renewed certificate is served without a restart; one that is half written,
// or does not fit its key, is not, and keeps nobody out.
func TestCertificateRenewal(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	if err := writeCertificate(dir); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	c := &certificate{certFile: cert, keyFile: key, log: slog.New(slog.NewTextHandler(&log, nil))}
	if err := c.load(); err != nil {
		t.Fatal(err)
	}
	served := func() []byte {
		c.checked = time.Time{} // as if it had been long ago
		return c.get().Certificate[0]
	}
	// The files' times must differ also where the clock of the disk is coarse.
	later := func(n int) {
		for _, path := range []string{cert, key} {
			if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Duration(n)*time.Second)); err != nil {
				t.Fatal(err)
			}
		}
	}
	first := served()
	if err := os.WriteFile(cert, []byte("-----BEGIN CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	later(1)
	if !bytes.Equal(served(), first) {
		t.Error("half a certificate took the place of a whole one")
	}
	if err := writeCertificate(dir); err != nil {
		t.Fatal(err)
	}
	later(2)
	second := served()
	if bytes.Equal(second, first) {
		t.Error("the renewed certificate is not served")
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(served(), second) {
		t.Error("without its key's file the certificate is no longer served")
	}
	if strings.Contains(log.String(), "has expired") {
		t.Errorf("a certificate that is good for an hour has expired:\n%s", &log)
	}
	c.current.Leaf.NotAfter = time.Now().Add(-time.Second)
	if served(); !strings.Contains(log.String(), "has expired") {
		t.Errorf("nothing is said of an expired certificate:\n%s", &log)
	}
}
