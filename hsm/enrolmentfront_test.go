package hsm

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/softhsm"
)

// newShared makes a domain of two members in folders of their own, reached
// through workers only: the first holds generations 1 and 2, the second was
// enrolled with generation 2.
func newShared(t *testing.T) (cfg DomainConfig, old EKT) {
	t.Helper()
	cfg, _ = newDomainConfig(t, 1)
	folder, err := softhsm.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.InitToken(t.Context(), cfg.Members[0].TokenLabel, []byte("5678-officer"), []byte(cfg.Members[0].PIN.reveal())); err != nil {
		t.Fatal(err)
	}
	second := cfg.Members[0]
	second.Name, second.Environment = "m1", []string{"SOFTHSM2_CONF=" + folder.Conf}
	cfg.Members = append(cfg.Members, second)
	var each []*Domain
	var publicKeys [][]byte
	for i := range cfg.Members {
		alone := cfg
		alone.Members, alone.Enrolling, alone.Metrics = cfg.Members[i:i+1], true, nil
		d := openDomain(t, alone)
		public, err := d.EnrolmentKey(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		each, publicKeys = append(each, d), append(publicKeys, public)
	}
	old = newDomainKey(t, each[0])
	made, err := each[0].MakeShared(t.Context(), 2, publicKeys)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Proofs = Proofs{2: made.Proof}
	for i, d := range each {
		if err := errors.Join(d.TakeShared(t.Context(), 2, made.Parcels[i]), d.DropEnrolmentKey(t.Context(), 2)); err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	return cfg, old
}

// TestMembersHoldDifferentGenerations: what one member lacks another serves;
// while that is away, callers are told so, and not that their key is bad.
func TestMembersHoldDifferentGenerations(t *testing.T) {
	cfg, old := newShared(t)
	d := openDomain(t, cfg)
	eventually(t, "both members", func() bool { return workerOf(d, 0) != 0 && workerOf(d, 1) != 0 })
	iv, sealed, err := d.Encrypt(t.Context(), old, testAAD, []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	_, mac, err := d.front.sum(t, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetActive(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if plain, err := d.Decrypt(t.Context(), old, iv, testAAD, sealed); err != nil || string(plain) != "old" {
			t.Fatalf("a key of generation 1: %q, %v", plain, err)
		}
		if ok, err := d.Verify(t.Context(), 1, []byte("row"), mac); !ok || err != nil {
			t.Fatalf("a row of generation 1: %t, %v", ok, err)
		}
	}
	fresh := newDomainKey(t, d)
	if fresh.Generation() != 2 {
		t.Errorf("a new key is of generation %d", fresh.Generation())
	}
	if _, _, err := d.Encrypt(t.Context(), append(slices.Clone(old[:4]), append([]byte{9}, old[5:]...)...), nil, nil); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("a generation that nobody holds: %v", err)
	}

	// A member that comes back within Patience costs no call an error.
	signalWorker(t, d, 0, syscall.SIGKILL)
	if plain, err := d.Decrypt(t.Context(), old, iv, testAAD, sealed); err != nil || string(plain) != "old" {
		t.Errorf("while its holder comes back: %q, %v", plain, err)
	}
	d.Close()

	cfg.Members = slices.Clone(cfg.Members)
	cfg.Members[0].Environment = []string{"SOFTHSM2_CONF=/nonexistent"}
	cfg.Metrics, cfg.Patience = nil, 300*time.Millisecond
	alone := openDomain(t, cfg)
	if err := alone.SetActive(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if _, _, err := alone.Encrypt(t.Context(), fresh, testAAD, []byte("x")); err != nil {
		t.Errorf("a key of generation 2 without the first member: %v", err)
	}
	_, err = alone.Decrypt(t.Context(), old, iv, testAAD, sealed)
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrInvalidEKT) {
		t.Errorf("a key whose only holder is away: %v", err)
	}
	if ok, err := alone.Verify(t.Context(), 1, []byte("row"), mac); ok || !errors.Is(err, ErrUnavailable) {
		t.Errorf("a row whose only verifier is away: %t, %v", ok, err)
	}
}

// sum asks one member.
func (d *spread) sum(t *testing.T, member int) (uint32, []byte, error) {
	var r reply
	err := d.seats[member].target.Load().do(t.Context(), &call{op: callSum, in: []byte("row")}, &r)
	return r.number, r.out, err
}
