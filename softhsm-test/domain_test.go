package softhsmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// domain runs a `trent domain` command.
func (d *deployment) domain(t testing.TB, args ...string) (string, error) {
	t.Helper()
	cmd := d.command(t, append([]string{"domain"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (d *deployment) mustDomain(t testing.TB, args ...string) string {
	t.Helper()
	out, err := d.domain(t, args...)
	if err != nil {
		t.Fatalf("trent domain %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// refusedDomain demands that the command fails and says why.
func (d *deployment) refusedDomain(t testing.TB, why string, args ...string) {
	t.Helper()
	if out, err := d.domain(t, args...); err == nil || !strings.Contains(out, why) {
		t.Errorf("trent domain %s: %v, want %q\n%s", strings.Join(args, " "), err, why, out)
	}
}

type generationStatus struct {
	Generation              int64
	State, Profile, OnToken string
	WrappedKeys, SealedRows int64
}

func (d *deployment) generations(t testing.TB) map[int64]generationStatus {
	t.Helper()
	cmd := d.command(t, "domain", "status", "--json")
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("trent domain status: %v\n%s", err, &faults)
	}
	var all []generationStatus
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	found := map[int64]generationStatus{}
	for _, g := range all {
		found[g.Generation] = g
	}
	return found
}

// until waits for what the background work does.
func (d *deployment) until(t testing.TB, what string, done func(map[int64]generationStatus) bool) {
	t.Helper()
	began := time.Now()
	deadline := began.Add(90 * time.Second)
	for {
		all := d.generations(t)
		if done(all) {
			t.Logf("%s took %s", what, time.Since(began).Round(100*time.Millisecond))
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 90 s: %+v", what, all)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// ektGeneration is the generation that the newest material of a key is under.
func (d *deployment) ektGeneration(t testing.TB, keyID string) (generation int) {
	t.Helper()
	err := d.pool.QueryRow(context.Background(),
		"SELECT get_byte(ekt, 4) FROM backing_keys WHERE key_id = $1 ORDER BY number DESC LIMIT 1", keyID).Scan(&generation)
	if err != nil {
		t.Fatal(err)
	}
	return generation
}

// busy has clients use keys on the hosts until the returned function is called,
// which demands that not one call failed.
func busy(t *testing.T, clients ...*kms.Client) (stop func()) {
	t.Helper()
	key := createKey(t, clients[0])
	sign := must(clients[0].CreateKey(context.Background(), &kms.CreateKeyInput{KeySpec: types.KeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify}))(t)
	blob := encrypt(t, clients[0], *key.KeyId, marker, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var calls atomic.Int64
	var users sync.WaitGroup
	for _, c := range clients {
		users.Go(func() {
			for ctx.Err() == nil {
				out, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: blob})
				if err != nil || string(out.Plaintext) != marker {
					t.Errorf("decrypting meanwhile: %v", err)
					return
				}
				if _, err := c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte(marker)}); err != nil {
					t.Errorf("encrypting meanwhile: %v", err)
					return
				}
				if _, err := c.Sign(context.Background(), &kms.SignInput{
					KeyId: sign.KeyMetadata.KeyId, Message: []byte(marker), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
				}); err != nil {
					t.Errorf("signing meanwhile: %v", err)
					return
				}
				if _, err := c.UpdateKeyDescription(context.Background(), &kms.UpdateKeyDescriptionInput{KeyId: key.KeyId, Description: aws.String("x")}); err != nil {
					t.Errorf("changing meanwhile: %v", err)
					return
				}
				calls.Add(1)
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return func() {
		cancel()
		users.Wait()
		if calls.Load() == 0 {
			t.Error("no call was made meanwhile")
		}
	}
}

// rotated rotates the domain keys as an officer does, with a backup that he
// confirms meanwhile.
func (d *deployment) rotated(t *testing.T, number string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := d.command(t, append([]string{"domain", "rotate"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// Not before: SoftHSM may refuse one of two processes that log in at the
	// same instant.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var made bool
		if err := d.pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM domain_generations WHERE number::text = $1)", number).Scan(&made); err != nil {
			t.Fatal(err)
		}
		if made {
			break
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			t.Fatalf("the generation was not made in 30 s: %v\n%s", <-ended, &out)
		}
	}
	d.mustDomain(t, "confirm-backup", "--generation", number, "--operator", "A. Officer")
	select {
	case err := <-ended:
		if err != nil {
			t.Fatalf("trent domain rotate: %v\n%s", err, &out)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("trent domain rotate did not end after the backup was confirmed")
	}
}

func (d *deployment) fleet(t *testing.T) (a, b *kms.Client) {
	first, second := d.serve(t, "TRENT_HOST=host-a"), d.serve(t, "TRENT_HOST=host-b")
	return newClient(first.url, d.admin, http.DefaultTransport), newClient(second.url, d.admin, http.DefaultTransport)
}

// followed waits until all hosts are at the generation, and demands that they
// wrap under it.
func (d *deployment) followed(t *testing.T, generation int, hosts ...*kms.Client) {
	t.Helper()
	for _, s := range d.servers {
		eventually(t, "a host following", func() bool {
			select {
			case <-s.exited:
				return true
			default:
				return s.metric(t, "trent_domain_generation") == float64(generation)
			}
		})
	}
	for i, c := range hosts {
		key := createKey(t, c)
		if got := d.ektGeneration(t, *key.KeyId); got != generation {
			t.Errorf("host %d says that it is at generation %d, and wraps under %d", i, generation, got)
		}
	}
}

// TestRotateLockedDomainKeys: a rotation under the locked profile, on two
// hosts that serve meanwhile.
func TestRotateLockedDomainKeys(t *testing.T) {
	d := newDeployment(t, "")
	a, b := d.fleet(t)
	stop := busy(t, a, b)
	old := createKey(t, a)
	blob := encrypt(t, a, *old.KeyId, marker, nil)

	d.mustDomain(t, "rotate", "--no-wait")
	if all := d.generations(t); all[1].State != "active" || all[2].State != "created" || all[2].OnToken != "whole" {
		t.Fatalf("%+v", all)
	}
	d.refusedDomain(t, "trent domain confirm-backup --generation 2", "activate", "--generation", "2")
	d.refusedDomain(t, "there is no generation 7", "confirm-backup", "--generation", "7")
	d.refusedDomain(t, "is the active one", "retire", "--generation", "1")
	d.refusedDomain(t, "is not active yet", "rotate", "--no-wait", "--profile", "trusted", "--so-pin-file", d.pinFile())
	d.rotated(t, "2")
	d.followed(t, 2, a, b)
	for _, s := range d.servers {
		if got := s.metric(t, "trent_domain_generation"); got != 2 {
			t.Errorf("a host's metrics show generation %v", got)
		}
		if got := s.metric(t, "trent_kms_encryption_budget_used_ratio_count"); got < 1 {
			t.Errorf("a host that has encrypted shows %v reserved blocks", got)
		}
	}
	d.until(t, "sealing rows anew", func(all map[int64]generationStatus) bool { return all[1].SealedRows == 0 })
	all := d.generations(t)
	if all[1].State != "superseded" || all[2].State != "active" || all[1].WrappedKeys == 0 {
		t.Errorf("%+v", all)
	}
	d.refusedDomain(t, "locked profile", "retire", "--generation", "1")
	if out := d.mustDomain(t, "rotate", "--rotation-period", "2160h"); !strings.Contains(out, "nothing to do") {
		t.Errorf("rotated before the period was over:\n%s", out)
	}
	stop()
	for _, c := range []*kms.Client{a, b} {
		wantDecrypt(t, c, blob, marker, nil)
	}
	// A key's own rotation takes it to the new generation.
	must(a.RotateKeyOnDemand(context.Background(), &kms.RotateKeyOnDemandInput{KeyId: old.KeyId}))(t)
	if got := d.ektGeneration(t, *old.KeyId); got != 2 {
		t.Errorf("rotated under generation %d", got)
	}
	wantDecrypt(t, b, blob, marker, nil)
	for _, event := range []string{"CreateDomainKeyGeneration", "ConfirmDomainKeyBackup", "ActivateDomainKeyGeneration"} {
		if n := len(d.records(t, "record->>'eventName' = $1 AND record->>'eventType' = 'AwsServiceEvent'", event)); n != 1 {
			t.Errorf("%d records of %s", n, event)
		}
	}
	d.mustDomain(t, "rotate", "--rotation-period", "1ms", "--no-wait")
	if all := d.generations(t); all[3].State != "created" {
		t.Errorf("not rotated after the period: %+v", all)
	}
	d.wantChains(t)
	d.stopAll()
	d.serve(t)
	wantDecrypt(t, d.client(t), blob, marker, nil)
	d.followed(t, 2, d.client(t))
}

// TestRotateTrustedDomainKeys: under the trusted profile every key moves to the
// new generation while requests go on and the host that works is killed, and
// the old one can be destroyed.
func TestRotateTrustedDomainKeys(t *testing.T) {
	d := newDeployment(t, "failpoint")
	clock := filepath.Join(d.dir, "clock")
	d.extra = append(d.extra, "TRENT_TEST_CLOCK="+clock, "TRENT_SO_PIN="+officerPIN)
	d.rotated(t, "2", "--profile", "trusted")
	a, b := d.fleet(t)
	var blobs [][]byte
	var first string
	for i := range 60 {
		key := createKey(t, a)
		blobs = append(blobs, encrypt(t, a, *key.KeyId, marker, nil))
		if i == 0 {
			first = *key.KeyId
			must(a.RotateKeyOnDemand(context.Background(), &kms.RotateKeyOnDemandInput{KeyId: key.KeyId}))(t)
			blobs = append(blobs, encrypt(t, a, *key.KeyId, marker, nil))
		}
	}
	mac := must(a.CreateKey(context.Background(), &kms.CreateKeyInput{KeySpec: types.KeySpecHmac224, KeyUsage: types.KeyUsageTypeGenerateVerifyMac}))(t)
	tag := must(a.GenerateMac(context.Background(), &kms.GenerateMacInput{KeyId: mac.KeyMetadata.KeyId, Message: []byte(marker), MacAlgorithm: types.MacAlgorithmSpecHmacSha224}))(t)
	// More than are told of in a slice, of keys that come before all others.
	must(d.pool.Exec(t.Context(), `
		INSERT INTO keys SELECT (jsonb_populate_record(k, jsonb_build_object('account', '000000000000', 'id', 'forged-' || n))).*
		FROM keys k, generate_series(1, 120) n WHERE id = $1`, first))(t)
	must(d.pool.Exec(t.Context(), `
		INSERT INTO backing_keys SELECT (jsonb_populate_record(b, jsonb_build_object('account', '000000000000', 'key_id', 'forged-' || n, 'id', gen_random_uuid()))).*
		FROM backing_keys b, generate_series(1, 120) n WHERE key_id = $1 AND number = 0`, first))(t)
	stop := busy(t, a)
	d.rotated(t, "3")
	d.followed(t, 3, a, b)
	must(0, d.servers[1].cmd.Process.Kill())(t) // whichever host was at it, the other goes on
	d.until(t, "moving the keys", func(all map[int64]generationStatus) bool {
		return all[2].WrappedKeys == 120 && all[2].SealedRows == 240
	})
	stop()
	must(d.pool.Exec(t.Context(), "DELETE FROM backing_keys WHERE account = '000000000000'"))(t)
	must(d.pool.Exec(t.Context(), "DELETE FROM keys WHERE account = '000000000000'"))(t)
	if got := d.ektGeneration(t, first); got != 3 {
		t.Errorf("a key is under generation %d", got)
	}
	d.refusedDomain(t, "--backup-retention", "retire", "--generation", "2")
	if err := os.WriteFile(clock, []byte("864h"), 0o600); err != nil { // 36 days
		t.Fatal(err)
	}
	d.mustDomain(t, "retire", "--generation", "2")
	if all := d.generations(t); all[2].State != "retired" || all[2].OnToken != "MAC key" {
		t.Errorf("%+v", all)
	}
	d.stopAll()
	d.serve(t)
	c := d.client(t)
	for _, blob := range blobs {
		wantDecrypt(t, c, blob, marker, nil)
	}
	must(c.VerifyMac(context.Background(), &kms.VerifyMacInput{KeyId: mac.KeyMetadata.KeyId, Message: []byte(marker), Mac: tag.Mac, MacAlgorithm: types.MacAlgorithmSpecHmacSha224}))(t)
	if n := len(d.records(t, "record->>'eventName' = 'RewrapKeyMaterial' AND record->'serviceEventDetails'->>'keyId' = $1", first)); n != 1 {
		t.Errorf("%d records of the moved key", n)
	}
	d.wantChains(t)
}
