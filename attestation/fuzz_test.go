package attestation_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/trent-kms/trent/attestation"
	"github.com/trent-kms/trent/internal/enclave"
)

// FuzzVerify changes a document on both sides of the signature. Whatever comes
// of it is refused as a caller's mistake, or is a document that was signed.
func FuzzVerify(f *testing.F) {
	e := enclave.New(f, enclave.Config{})
	r := roots(f, e)
	now := time.Now()
	good := e.Document(f, now)
	payload := bytes.Index(good, []byte("module_id")) - 2
	f.Add(good, false)
	f.Add(append([]byte{0xd2}, good...), false)
	f.Add(good[payload:len(good)-98], true)
	f.Add([]byte{0xbf, 0xff}, true)
	f.Fuzz(func(t *testing.T, data []byte, sign bool) {
		if sign {
			data = e.SignRaw(t, data)
		}
		d, err := r.Verify(data, now)
		var refusal *attestation.Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("%v is not a refusal", err)
		}
		if err != nil {
			return
		}
		if d.ModuleID == "" || len(d.PCRs) == 0 || now.Sub(d.Made).Abs() > attestation.Window {
			t.Fatalf("believed: %+v", d)
		}
		if _, err := d.Envelope([]byte("x")); err != nil {
			t.Fatal(err)
		}
	})
}
