package attestation

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/enclave"
)

// FuzzDocument gives the parsers on both sides of the signature the same
// bytes: as a signed document, and as the payload of one that a trusted signer
// has signed. The signature itself is left out, for speed. Whatever comes of it
// is refused as a caller's mistake, or keeps the bounds.
func FuzzDocument(f *testing.F) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	e := enclave.New(f, enclave.Config{At: now, Seed: "fuzz"})
	if again := enclave.New(f, enclave.Config{At: now, Seed: "fuzz"}); !bytes.Equal(again.Chain[enclave.Leaf], e.Chain[enclave.Leaf]) {
		f.Fatal("the chain is another each time")
	}
	roots, err := ParseRoots(e.Roots())
	if err != nil {
		f.Fatal(err)
	}
	signed := e.Document(f, now)
	message, err := parseMessage(signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(append([]byte{tagged}, signed...))
	f.Add(message.Payload)
	f.Add([]byte{0xbf, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		message, err := parseMessage(data)
		wantRefused(t, err)
		if err == nil && (len(message.Payload) == 0 || len(message.Signature) != signatureSize) {
			t.Fatalf("taken: %+v", message)
		}
		said, err := parsePayload(data)
		wantRefused(t, err)
		if err != nil {
			return
		}
		d := said.document()
		if d.ModuleID == "" || len(d.PCRs) == 0 || len(d.PCRs) > maxPCRs || d.Made.Year() > 9999 || len(d.Nonce) > maxUserData {
			t.Fatalf("taken: %+v", d)
		}
		_, err = roots.signer(said, now)
		wantRefused(t, err)
		d.publicKey, err = parsePublicKey(d.spki)
		wantRefused(t, err)
		if err == nil {
			if _, err := d.Envelope([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func wantRefused(t *testing.T, err error) {
	t.Helper()
	var refusal *Refusal
	if err != nil && !errors.As(err, &refusal) {
		t.Fatalf("%v is not a refusal", err)
	}
}
