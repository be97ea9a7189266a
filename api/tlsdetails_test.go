package api

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/trent-kms/trent/audit"
)

// A record has a connection's details in CloudTrail's words, and of a session
// that was resumed too.
func TestTLSDetails(t *testing.T) {
	var got *audit.TLSDetails
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = tlsDetails(r) }))
	t.Cleanup(server.Close)
	for version, name := range map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"} {
		client := server.Client()
		transport := client.Transport.(*http.Transport).Clone()
		transport.DisableKeepAlives = true
		transport.TLSClientConfig.MinVersion, transport.TLSClientConfig.MaxVersion = version, version
		transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		for i := range 2 {
			resp, err := (&http.Client{Transport: transport}).Get(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil {
				t.Error(err)
			}
			if got == nil || got.TLSVersion != name || got.KeyExchange != "X25519MLKEM768" && got.KeyExchange != "X25519" ||
				got.ClientProvidedHostHeader != server.Listener.Addr().String() || got.CipherSuite == "" || resp.TLS.DidResume != (i == 1) {
				t.Errorf("connection %d, resumed %t: %+v", i+1, resp.TLS.DidResume, got)
			}
		}
	}
}
