package hsm

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"

	"github.com/trent-kms/trent/internal/faultshim"
)

// lengths are the functions that tell a length of what they were asked for.
var lengths = strings.Fields(`C_FindObjects C_GetAttributeValue C_Encrypt C_Decrypt C_Sign C_WrapKey`)

// TestLengthsAreChecked: a length beyond the buffer is the device's fault, which
// costs the call another try and nothing else.
func TestLengthsAreChecked(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	ctx := t.Context()
	ekt := newAES(t, d)
	iv, sealed, err := d.Encrypt(ctx, ekt, nil, []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	agreeing := must(d.Generate(ctx, "ECC_NIST_P256", UseAgree))(t)
	peer := must(x509.MarshalPKIXPublicKey(must(ecdh.P256().GenerateKey(rand.Reader))(t).PublicKey()))(t)
	calls := map[string]func() error{
		"encrypt": func() error { _, _, err := d.Encrypt(ctx, ekt, nil, []byte("x")); return err },
		"decrypt": func() error {
			plain, err := d.Decrypt(ctx, ekt, iv, nil, sealed)
			if err == nil && !bytes.Equal(plain, []byte("plain")) {
				return wrong("decrypted to %q", plain)
			}
			return err
		},
		"check value":      func() error { _, err := d.CheckValue(ctx, ekt); return err },
		"sum":              func() error { _, _, err := d.Sum(ctx, []byte("row")); return err },
		"agree":            func() error { _, err := d.Agree(ctx, agreeing.EKT, peer); return err },
		"pair that signs":  func() error { _, err := d.Generate(ctx, "RSA_2048", UseSign); return err },
		"pair that opens":  func() error { _, err := d.Generate(ctx, "RSA_2048", UseEncrypt); return err },
		"pair that agrees": func() error { _, err := d.Generate(ctx, "ECC_NIST_P256", UseAgree); return err },
		"data key pair":    func() error { _, _, err := d.GenerateDataKeyPair(ctx, "ECC_NIST_P256"); return err },
		"look": func() error {
			d.t.calm()
			loseKeeper(t, d.t)
			_, err := d.Generations(ctx)
			return err
		},
	}
	happened := map[string]int{}
	for name, do := range calls {
		for _, function := range lengths {
			before := shim.Injected()[function]
			shim.Set(function, faultshim.Fault{Action: faultshim.Lengthen, Times: 1})
			err := do()
			shim.Clear()
			happened[function] += shim.Injected()[function] - before
			if err != nil {
				t.Errorf("%s, %s: %v", name, function, err)
			}
			wantHealthy(t, d)
		}
	}
	for _, function := range lengths {
		if happened[function] == 0 {
			t.Errorf("%s: it did not happen", function)
		}
	}
}

// TestLengthsElsewhere: neither the list of slots nor what is wrapped for
// another member is read past its buffer.
func TestLengthsElsewhere(t *testing.T) {
	shim, d := newFaultyDomain(t, nil)
	public := must(d.EnrolmentKey(t.Context(), 2))(t)
	shim.Set("C_WrapKey", faultshim.Fault{Action: faultshim.Lengthen, Times: 1})
	if _, err := d.MakeShared(t.Context(), 2, [][]byte{public}); err != nil {
		t.Error(err)
	}
	shim.Set("C_GetSlotList", faultshim.Fault{Action: faultshim.Lengthen, Times: 1})
	d.t.module.mu.Lock()
	slots, err := d.t.module.slots()
	d.t.module.mu.Unlock()
	if code, _ := codeOf(err); code != ckrWrongLength || len(slots) > 0 {
		t.Errorf("%d slots, %v", len(slots), err)
	}
	for _, function := range []string{"C_WrapKey", "C_GetSlotList"} {
		if shim.Injected()[function] == 0 {
			t.Errorf("%s: it did not happen", function)
		}
	}
}
