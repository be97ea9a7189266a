package attestation_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/trent-kms/trent/attestation"
	"github.com/trent-kms/trent/internal/enclave"
)

func roots(t testing.TB, e *enclave.Enclave) *attestation.Roots {
	t.Helper()
	r, err := attestation.ParseRoots(e.Roots())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVerify(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	r := roots(t, e)
	now := time.Now()
	untagged := e.Document(t, now)
	for name, signed := range map[string][]byte{
		"untagged": untagged, "tagged": append([]byte{0xd2}, untagged...), "as enclaves write it": e.SignRaw(t, streamed(t, e.Payload(t, now))),
	} {
		d, err := r.Verify(signed, now)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d.ModuleID != enclave.ModuleID || d.NitroTPM || len(d.PCRs) != 16 || !bytes.Equal(d.PCRs[8], enclave.PCR(8)) ||
			!d.Made.Equal(now.Truncate(time.Millisecond)) || string(d.UserData) != "data" || len(d.Nonce) != 0 {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// streamed encodes a payload as a map of indefinite length.
func streamed(t *testing.T, payload map[string]any) []byte {
	t.Helper()
	out := []byte{0xbf}
	for name, value := range payload {
		for _, item := range []any{name, value} {
			encoded, err := cbor.Marshal(item)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, encoded...)
		}
	}
	return append(out, 0xff)
}

func TestVerifyNitroTPM(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	payload := e.Payload(t, time.Now())
	payload["nitrotpm_pcrs"] = map[int][]byte{4: enclave.PCR(4), 23: enclave.PCR(23)}
	delete(payload, "pcrs")
	payload["module_id"] = "i-0123456789abcdef0-tpm0000000000000000"
	d, err := roots(t, e).Verify(e.Sign(t, payload), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if !d.NitroTPM || len(d.PCRs) != 2 || !bytes.Equal(d.PCRs[23], enclave.PCR(23)) {
		t.Errorf("%+v", d)
	}
}

// A document is believed for five minutes, and as long before by a clock that
// is behind.
func TestWindow(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	r := roots(t, e)
	made := time.Now().Truncate(time.Millisecond)
	signed := e.Document(t, made)
	for _, after := range []time.Duration{-5 * time.Minute, 0, 5 * time.Minute} {
		if _, err := r.Verify(signed, made.Add(after)); err != nil {
			t.Errorf("%s after: %v", after, err)
		}
	}
	for _, after := range []time.Duration{-5*time.Minute - 1, 5*time.Minute + 1, time.Hour} {
		_, err := r.Verify(signed, made.Add(after))
		wantRefusal(t, err, "its timestamp is more than 5 minutes off")
	}
}

func wantRefusal(t testing.TB, err error, reason string) {
	t.Helper()
	var refusal *attestation.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != reason {
		t.Errorf("error = %v, want the refusal %q", err, reason)
	}
}

// Nothing of a signed document may change: both ends are tried byte by byte,
// what is between by samples.
func TestAllIsSigned(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	r := roots(t, e)
	now := time.Now()
	signed := e.Document(t, now)
	for i := range signed {
		if i > 24 && i < len(signed)-24 && i%31 != 0 {
			continue
		}
		altered := bytes.Clone(signed)
		altered[i] ^= 1 << (i % 8)
		if _, err := r.Verify(altered, now); err == nil {
			t.Errorf("byte %d of %d can be altered", i, len(signed))
		}
		if _, err := r.Verify(signed[:i], now); err == nil {
			t.Errorf("%d of %d bytes are enough", i, len(signed))
		}
	}
}

func TestEnvelope(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	d, err := roots(t, e).Verify(e.Document(t, time.Now()), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, 15, 16, 17, 32, 1024, 6144} {
		plaintext := bytes.Repeat([]byte{7}, size)
		sealed, err := d.Envelope(plaintext)
		if err != nil {
			t.Fatal(err)
		}
		again, err := d.Envelope(plaintext)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(sealed[len(sealed)-26:], again[len(again)-26:]) {
			t.Error("two envelopes have the same content")
		}
		if got := e.Open(t, sealed); !bytes.Equal(got, plaintext) {
			t.Errorf("OpenSSL opens %d bytes to %d", size, len(got))
		}
		if slices.ContainsFunc(plaintext, func(b byte) bool { return b != 7 }) {
			t.Error("the caller's plaintext was changed")
		}
	}
}

// TestEnvelopeForm pins what the parser of AWS's Nitro Enclaves SDK needs:
// indefinite lengths where AWS has them, and DER within.
func TestEnvelopeForm(t *testing.T) {
	e := enclave.New(t, enclave.Config{})
	d, err := roots(t, e).Verify(e.Document(t, time.Now()), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := d.Envelope(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	form := []struct {
		at   int
		want string
	}{
		{0, "\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03\xa0\x80\x30\x80\x02\x01\x02\x31\x82\x01\x6b\x30\x82\x01\x67\x02\x01\x02\x80\x20"},
		{65, "\x30\x3c\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07\x30\x2f\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00" +
			"\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x82\x01\x00"},
		{387, "\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01\x30\x1d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x01\x2a\x04\x10"},
		{431, "\xa0\x80\x04\x30"},
		{len(sealed) - 10, "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	}
	for _, part := range form {
		if got := string(sealed[part.at:][:len(part.want)]); got != part.want {
			t.Errorf("at %d: %x, want %x", part.at, got, part.want)
		}
	}
	if len(sealed) != 431+4+48+10 {
		t.Errorf("%d bytes", len(sealed))
	}
	if id := sha256.Sum256(e.PublicKey(t)); !bytes.Equal(sealed[33:65], id[:]) {
		t.Errorf("key identifier %x, want %x", sealed[33:65], id)
	}
}
