package attestation

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Roots are the certificates that are trusted to vouch for attestation
// documents. It is safe for concurrent use.
type Roots struct{ certificates []*x509.Certificate }

// ParseRoots takes PEM with one CERTIFICATE or more, each a CA's that has
// signed itself, and nothing else but text between them.
func ParseRoots(text []byte) (*Roots, error) {
	roots := &Roots{}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("there is a %s among the certificates", block.Type)
		}
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parsing certificate %d: %w", len(roots.certificates)+1, err)
		}
		if !isCA(root) {
			return nil, fmt.Errorf("%s is not the certificate of a certification authority", root.Subject)
		}
		if err := root.CheckSignatureFrom(root); err != nil {
			return nil, fmt.Errorf("%s is not a root certificate: %w", root.Subject, err)
		}
		roots.certificates = append(roots.certificates, root)
	}
	if len(roots.certificates) == 0 {
		return nil, errors.New("there is no certificate (PEM) in it")
	}
	if bytes.Contains(text, []byte("-----BEGIN")) {
		return nil, errors.New("a certificate in it is cut or damaged")
	}
	return roots, nil
}

func isCA(c *x509.Certificate) bool {
	return c.BasicConstraintsValid && c.IsCA && c.KeyUsage&x509.KeyUsageCertSign != 0
}

// verifyChain demands that bundle, from the root down, is the chain of the
// certificate that has signed a document, and that it begins with one of the
// roots. Lists of revoked certificates are not asked for: by AWS's
// specification of the process they are not used.
func (r *Roots) verifyChain(signer []byte, bundle [][]byte, now time.Time) (*x509.Certificate, error) {
	leaf, err := x509.ParseCertificate(signer)
	if err != nil {
		return nil, refuse("its certificate is malformed", err)
	}
	chain, err := parseBundle(bundle)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(r.certificates, chain[0].Equal) {
		return nil, refuse("its root certificate is not one that this deployment trusts", nil)
	}
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, refuse("its certificate is not one for signatures", nil)
	}
	trusted, others := x509.NewCertPool(), x509.NewCertPool()
	trusted.AddCert(chain[0])
	for _, intermediate := range chain[1:] {
		others.AddCert(intermediate)
	}
	found, err := leaf.Verify(x509.VerifyOptions{
		Roots: trusted, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return nil, refuse("a certificate of its chain is not valid at this time", err)
	}
	if err != nil {
		return nil, refuse("its certificate chain does not hold", err)
	}
	// With distinct names there is one way up at most. It must be the whole
	// bundle: what stands beside the chain has no business there.
	if len(found) != 1 || len(found[0]) != len(chain)+1 {
		return nil, refuse("its cabundle has certificates beside the chain", nil)
	}
	return leaf, nil
}

// parseBundle parses CA certificates, which must name each other as issuers
// from the first to the last, under distinct names. That keeps the search for
// a chain from trying many ways.
func parseBundle(bundle [][]byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	names := map[string]bool{}
	for i, der := range bundle {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, refuse("a certificate of its cabundle is malformed", err)
		}
		if !isCA(c) {
			return nil, refuse("a certificate of its cabundle is not an authority's", nil)
		}
		if names[string(c.RawSubject)] || i > 0 && !bytes.Equal(c.RawIssuer, chain[i-1].RawSubject) {
			return nil, refuse("its cabundle is not a chain, the root first", nil)
		}
		names[string(c.RawSubject)] = true
		chain = append(chain, c)
	}
	return chain, nil
}
