package attestation_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/trent-kms/trent/attestation"
	"github.com/trent-kms/trent/internal/enclave"
)

func spki(t testing.TB, public any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// What a trusted signer has signed must still be a document.
func TestPayloadRefusals(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	r := roots(t, e)
	now := time.Now()
	const outOfBounds = " is missing or out of bounds"
	const noPayload = "its payload is not what a Nitro enclave writes"
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	modulus := func(bits uint) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return n.Add(n, big.NewInt(1))
	}
	cert := make([]byte, 1025)
	for name, c := range map[string]struct {
		member string
		value  any // nil: left out
		reason string
	}{
		"no module":           {"module_id", nil, "its module_id" + outOfBounds},
		"empty module":        {"module_id", "", "its module_id" + outOfBounds},
		"long module":         {"module_id", strings.Repeat("i", 513), "its module_id" + outOfBounds},
		"bytes for module":    {"module_id", []byte("i"), noPayload},
		"no UTF-8":            {"module_id", "\xff", noPayload},
		"no digest":           {"digest", nil, "its digest" + outOfBounds},
		"another digest":      {"digest", "SHA256", "its digest" + outOfBounds},
		"no timestamp":        {"timestamp", nil, "its timestamp" + outOfBounds},
		"timestamp 0":         {"timestamp", 0, "its timestamp" + outOfBounds},
		"negative timestamp":  {"timestamp", -1, noPayload},
		"fractional":          {"timestamp", 1.5, noPayload},
		"text for timestamp":  {"timestamp", "1", noPayload},
		"far timestamp":       {"timestamp", uint64(1) << 63, "its timestamp" + outOfBounds},
		"timestamp in s":      {"timestamp", now.Unix(), "its timestamp is more than 5 minutes off"},
		"yesterday":           {"timestamp", now.Add(-24 * time.Hour).UnixMilli(), "its timestamp is more than 5 minutes off"},
		"tomorrow":            {"timestamp", now.Add(24 * time.Hour).UnixMilli(), "its timestamp is more than 5 minutes off"},
		"no PCRs":             {"pcrs", nil, "its pcrs" + outOfBounds},
		"empty PCRs":          {"pcrs", map[int][]byte{}, "its pcrs" + outOfBounds},
		"PCR32":               {"pcrs", map[int][]byte{32: enclave.PCR(0)}, "its pcrs" + outOfBounds},
		"PCR-1":               {"pcrs", map[int][]byte{-1: enclave.PCR(0)}, noPayload},
		"short PCR":           {"pcrs", map[int][]byte{0: enclave.PCR(0)[:47]}, "its pcrs" + outOfBounds},
		"PCR of text":         {"pcrs", map[int]string{0: strings.Repeat("a", 48)}, noPayload},
		"PCR of a list":       {"pcrs", map[int][]int{0: make([]int, 16)}, noPayload},
		"named PCR":           {"pcrs", map[string][]byte{"0": enclave.PCR(0)}, noPayload},
		"both kinds":          {"nitrotpm_pcrs", map[int][]byte{0: enclave.PCR(0)}, "its pcrs" + outOfBounds},
		"no certificate":      {"certificate", nil, "its certificate" + outOfBounds},
		"long certificate":    {"certificate", cert, "its certificate" + outOfBounds},
		"no DER":              {"certificate", []byte("x"), "its certificate is malformed"},
		"trailing byte":       {"certificate", append(bytes.Clone(e.Chain[enclave.Leaf]), 0), "its certificate is malformed"},
		"another certificate": {"certificate", e.Chain[enclave.Instance], "its certificate is not one for signatures"},
		"no bundle":           {"cabundle", nil, "its cabundle" + outOfBounds},
		"empty bundle":        {"cabundle", [][]byte{}, "its cabundle" + outOfBounds},
		"empty entry":         {"cabundle", [][]byte{e.Chain[0], {}}, "its cabundle" + outOfBounds},
		"long bundle":         {"cabundle", make([][]byte, 17), noPayload},
		"long entry":          {"cabundle", [][]byte{cert}, "its cabundle" + outOfBounds},
		"entry no DER":        {"cabundle", [][]byte{[]byte("x")}, "a certificate of its cabundle is malformed"},
		"no root":             {"cabundle", e.Chain[1:enclave.Leaf], "its root certificate is not one that this deployment trusts"},
		"gap":                 {"cabundle", [][]byte{e.Chain[0], e.Chain[enclave.Instance]}, "its cabundle is not a chain, the root first"},
		"too short":           {"cabundle", [][]byte{e.Chain[0], e.Chain[enclave.Regional]}, "its certificate chain does not hold"},
		"reversed":            {"cabundle", [][]byte{e.Chain[2], e.Chain[1], e.Chain[0]}, "its cabundle is not a chain, the root first"},
		"leaf in the bundle":  {"cabundle", e.Chain[:], "a certificate of its cabundle is not an authority's"},
		"twice":               {"cabundle", [][]byte{e.Chain[0], e.Chain[0], e.Chain[1], e.Chain[2]}, "its cabundle is not a chain, the root first"},
		"no public key":       {"public_key", nil, "it has no public_key to answer to"},
		"long public key":     {"public_key", make([]byte, 1025), "its public_key" + outOfBounds},
		"key no DER":          {"public_key", []byte("dummy"), "its public_key is not a SubjectPublicKeyInfo"},
		"bare key":            {"public_key", x509.MarshalPKCS1PublicKey(&e.Key.PublicKey), "its public_key is not a SubjectPublicKeyInfo"},
		"key and more":        {"public_key", append(e.PublicKey(t), 0), "its public_key is not a SubjectPublicKeyInfo"},
		"EC key":              {"public_key", spki(t, ec.Public()), "its public_key is not an RSA key"},
		"RSA 1024":            {"public_key", spki(t, &rsa.PublicKey{N: modulus(1024), E: 65537}), "its public_key has not 2048 to 4096 bits"},
		"RSA 4104":            {"public_key", spki(t, &rsa.PublicKey{N: modulus(4104), E: 65537}), "its public_key has not 2048 to 4096 bits"},
		"exponent 3":          {"public_key", spki(t, &rsa.PublicKey{N: modulus(2048), E: 3}), "its public_key is weak"},
		"even exponent":       {"public_key", spki(t, &rsa.PublicKey{N: modulus(2048), E: 65538}), "its public_key is weak"},
		"long user data":      {"user_data", make([]byte, 513), "its user_data" + outOfBounds},
		"long nonce":          {"nonce", make([]byte, 513), "its nonce" + outOfBounds},
		"unknown member":      {"more", 1, noPayload},
		"other case":          {"Nonce", []byte("x"), noPayload},
	} {
		t.Run(name, func(t *testing.T) {
			payload := e.Payload(t, now)
			payload[c.member] = c.value
			if c.value == nil {
				delete(payload, c.member)
			}
			_, err := r.Verify(e.Sign(t, payload), now)
			wantRefusal(t, err, c.reason)
		})
	}
}

// The payload's bytes themselves: what encoders do not write.
func TestEncodingRefusals(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	r := roots(t, e)
	now := time.Now()
	whole := streamed(t, e.Payload(t, now))
	digest := "\x66digest\x66SHA384"
	for name, payload := range map[string][]byte{
		"trailing byte":  append(bytes.Clone(whole), 0),
		"cut":            whole[:len(whole)-1],
		"member twice":   append(append([]byte{0xbf}, digest...), whole[1:]...),
		"tag":            bytes.Replace(whole, []byte(digest), []byte("\x66digest\xc0\x66SHA384"), 1),
		"no map":         {0x80},
		"deep":           append(append([]byte{0xbf, 0x61, 'x'}, bytes.Repeat([]byte{0x81}, 100)...), 0x01, 0xff),
		"map of 2^32":    {0xba, 0xff, 0xff, 0xff, 0xff},
		"bytes of 2^63":  {0xa1, 0x65, 'n', 'o', 'n', 'c', 'e', 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"no payload's":   []byte("hello"),
		"17 of cabundle": append(append([]byte{0xa1, 0x68}, "cabundle\x91"...), bytes.Repeat([]byte{0x40}, 17)...),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Verify(e.SignRaw(t, payload), now)
			wantRefusal(t, err, "its payload is not what a Nitro enclave writes")
		})
	}
}

// The COSE_Sign1 around the payload.
func TestMessageRefusals(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	r := roots(t, e)
	now := time.Now()
	good := e.Document(t, now)
	payload := streamed(t, e.Payload(t, now))
	message := func(protected string, unprotected any) []byte {
		p := []byte(protected)
		return enclave.Message(t, p, unprotected, payload, e.Signature(t, p, payload))
	}
	const es384 = "\xa1\x01\x38\x22"
	signature := e.Signature(t, []byte(es384), payload)
	tagged := append([]byte{0xd2}, good...)
	for name, c := range map[string]struct {
		signed []byte
		reason string
	}{
		"empty":              {nil, "it has not 1 to 16512 bytes"},
		"oversized":          {append(bytes.Clone(good), make([]byte, 16513-len(good))...), "it has not 1 to 16512 bytes"},
		"trailing byte":      {append(bytes.Clone(good), 0), "it is not a COSE_Sign1"},
		"tagged, trailing":   {append(tagged, 0), "it is not a COSE_Sign1"},
		"another tag":        {append([]byte{0xd1}, good...), "it is not a COSE_Sign1"},
		"tagged twice":       {append([]byte{0xd2}, tagged...), "it is not a COSE_Sign1"},
		"no CBOR":            {[]byte("hello"), "it is not a COSE_Sign1"},
		"five parts":         {append([]byte{0x85}, append(bytes.Clone(good[1:]), 0)...), "it is not a COSE_Sign1"},
		"ES256":              {message("\xa1\x01\x26", map[int]any{}), "its algorithm is not ES384"},
		"ES512":              {message("\xa1\x01\x38\x23", map[int]any{}), "its algorithm is not ES384"},
		"alg as text":        {message("\xa1\x01\x65ES384", map[int]any{}), "its algorithm is not ES384"},
		"no alg":             {message("\xa0", map[int]any{}), "its algorithm is not ES384"},
		"unprotected alg":    {message("", map[int]any{1: -35}), "its algorithm is not ES384"},
		"kid":                {message("\xa2\x01\x38\x22\x04\x41k", map[int]any{}), "it has headers other than the algorithm"},
		"unprotected kid":    {message(es384, map[int]any{4: []byte("k")}), "it has headers other than the algorithm"},
		"alg twice":          {message("\xa2\x01\x38\x22\x01\x38\x22", map[int]any{}), "it is not a COSE_Sign1"},
		"no payload":         {enclave.Message(t, []byte(es384), map[int]any{}, nil, signature), "its payload has not 1 to 16384 bytes"},
		"large payload":      {e.SignRaw(t, make([]byte, 16385)), "its payload has not 1 to 16384 bytes"},
		"no signature":       {enclave.Message(t, []byte(es384), map[int]any{}, payload, []byte{}), "it is not a COSE_Sign1"},
		"short signature":    {enclave.Message(t, []byte(es384), map[int]any{}, payload, signature[:95]), "its signature is not of ES384"},
		"signature of zeros": {enclave.Message(t, []byte(es384), map[int]any{}, payload, make([]byte, 96)), "its signature is wrong"},
		"another payload":    {enclave.Message(t, []byte(es384), map[int]any{}, streamed(t, e.Payload(t, now.Add(time.Second))), signature), "its signature is wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Verify(c.signed, now)
			wantRefusal(t, err, c.reason)
		})
	}
}

// Chains that do not hold, of enclaves that sign as they should.
func TestChainRefusals(t *testing.T) {
	const chain, notValid, noSigner = "its certificate chain does not hold", "a certificate of its chain is not valid at this time", "its certificate is not one for signatures"
	now := time.Now()
	at := func(which int, alter func(*x509.Certificate)) enclave.Config {
		return enclave.Config{Alter: func(level int, c *x509.Certificate) {
			if level == which {
				alter(c)
			}
		}}
	}
	expired := func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }
	early := func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }
	key := func(k crypto.Signer, err error) enclave.Config {
		if err != nil {
			t.Fatal(err)
		}
		return enclave.Config{LeafKey: k}
	}
	for name, c := range map[string]struct {
		cfg    enclave.Config
		reason string
	}{
		"leaf expired":          {at(enclave.Leaf, expired), notValid},
		"intermediate expired":  {at(enclave.Instance, expired), notValid},
		"root expired":          {at(enclave.Root, expired), notValid},
		"leaf early":            {at(enclave.Leaf, early), notValid},
		"leaf is an authority":  {at(enclave.Leaf, func(c *x509.Certificate) { c.IsCA = true }), noSigner},
		"leaf may not sign":     {at(enclave.Leaf, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), noSigner},
		"no authority":          {at(enclave.Instance, func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false }), "a certificate of its cabundle is not an authority's"},
		"may not certify":       {at(enclave.Instance, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), "a certificate of its cabundle is not an authority's"},
		"path too long":         {at(enclave.Regional, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }), chain},
		"unknown critical part": {at(enclave.Leaf, critical), chain},
		"P-256":                 {key(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), "its certificate's key is not on P-384"},
		"RSA":                   {key(rsa.GenerateKey(rand.Reader, 2048)), "its certificate's key is not on P-384"},
	} {
		t.Run(name, func(t *testing.T) {
			e := enclave.New(t, c.cfg)
			_, err := roots(t, e).Verify(e.Document(t, now), now)
			wantRefusal(t, err, c.reason)
		})
	}
	e, other := enclave.New(t, enclave.Config{}), enclave.New(t, enclave.Config{})
	_, err := roots(t, other).Verify(e.Document(t, now), now)
	wantRefusal(t, err, "its root certificate is not one that this deployment trusts")
	forged := e.Payload(t, now) // names as they should be, signatures not
	forged["cabundle"] = [][]byte{other.Chain[0], e.Chain[1], e.Chain[2]}
	_, err = roots(t, other).Verify(e.Sign(t, forged), now)
	wantRefusal(t, err, chain)
	stolen := e.Payload(t, now) // another enclave's certificate
	stolen["certificate"], stolen["cabundle"] = other.Chain[enclave.Leaf], other.Chain[:enclave.Leaf]
	_, err = roots(t, other).Verify(e.Sign(t, stolen), now)
	wantRefusal(t, err, "its signature is wrong")
}

// critical adds an extension that nobody knows.
func critical(c *x509.Certificate) {
	c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}}}
}

func TestParseRoots(t *testing.T) {
	one, two := enclave.New(t, enclave.Config{}), enclave.New(t, enclave.Config{})
	both, err := attestation.ParseRoots(append(append(one.Roots(), "and\n"...), two.Roots()...))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []*enclave.Enclave{one, two} {
		if _, err := both.Verify(e.Document(t, time.Now()), time.Now()); err != nil {
			t.Error(err)
		}
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	for name, c := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":      {nil, "there is no certificate"},
		"DER":          {one.Chain[0], "there is no certificate"},
		"key":          {append(one.Roots(), block("PRIVATE KEY", []byte("x"))...), "there is a PRIVATE KEY among"},
		"damaged":      {block("CERTIFICATE", one.Chain[0][1:]), "parsing certificate 1"},
		"leaf":         {block("CERTIFICATE", one.Chain[enclave.Leaf]), "is not the certificate of a certification authority"},
		"intermediate": {block("CERTIFICATE", one.Chain[enclave.Instance]), "is not a root certificate"},
		"cut":          {append(one.Roots(), two.Roots()[:200]...), "is cut or damaged"},
	} {
		if _, err := attestation.ParseRoots(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
