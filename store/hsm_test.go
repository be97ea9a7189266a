package store

import (
	"errors"
	"testing"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/internal/testenv"
)

// TestSealedInHSM seals with a domain on a real token, as Trent does.
func TestSealedInHSM(t *testing.T) {
	token := testenv.SoftHSM(t)
	device, err := hsm.Open(t.Context(), hsm.Config{Module: token.Module, TokenLabel: token.Label, PIN: hsm.NewPIN([]byte(token.PIN))})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close() //nolint:errcheck // the test is over
	if err := device.CreateDomain(t.Context(), testDeployment); err != nil {
		t.Fatal(err)
	}
	domain, err := device.OpenDomain(t.Context(), testDeployment)
	if err != nil {
		t.Fatal(err)
	}
	db, _ := open(t)
	db.SetSealer(testDeployment, domain)
	k, _ := insertKey(t, db, "k1")
	var tampered *ErrTampered
	for _, sql := range []string{"UPDATE keys SET state = 'Disabled'", "UPDATE keys SET state = 'Enabled', mac_generation = 9"} {
		exec(t, db, sql)
		if _, err := db.Key(t.Context(), k.Account, k.Region, k.ID); !errors.As(err, &tampered) {
			t.Errorf("%s: %v", sql, err)
		}
	}
	exec(t, db, "UPDATE keys SET mac_generation = 1")
	if _, err := db.Key(t.Context(), k.Account, k.Region, k.ID); err != nil {
		t.Errorf("row put back: %v", err)
	}
}
