package softhsmtest

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/jackc/pgx/v5"

	"github.com/trent-kms/trent/failpoint"
	"github.com/trent-kms/trent/internal/testenv"
)

// kills runs do against a server that dies at point, and returns the errors
// that clients saw. The server is dead when it returns.
func (d *deployment) kills(t *testing.T, point string, do func(c *kms.Client) error) error {
	t.Helper()
	// Steps in the HSM are made by a worker, whose death is another matter:
	// see TestWorkerCrashes.
	s := d.serve(t, "TRENT_FAILPOINT="+point, "TRENT_HSM_ISOLATION=in-process")
	err := do(newClient(d.url, d.admin, http.DefaultTransport))
	select {
	case <-s.exited:
	case <-time.After(10 * time.Second):
		t.Fatalf("the server outlived %s", point)
	}
	if s.cmd.ProcessState.String() != "signal: killed" {
		t.Fatalf("the server ended with %s:\n%s", s.cmd.ProcessState, readLog(t, s))
	}
	return err
}

// kept is what has been acknowledged to a client, to be there after a crash.
type kept struct {
	key  *types.KeyMetadata
	blob []byte
}

func (d *deployment) wantKept(t *testing.T, before []kept) {
	t.Helper()
	c := d.client(t)
	for _, k := range before {
		wantDecrypt(t, c, k.blob, marker, nil)
		made := d.records(t, "record->>'eventName' = 'CreateKey' AND record->'responseElements'->'keyMetadata'->>'keyId' = $1", *k.key.KeyId)
		if len(made) != 1 {
			t.Errorf("key %s has %d CreateKey records", *k.key.KeyId, len(made))
		}
	}
}

// allKeys lists every key, each of which must work: a crash leaves either a
// working key or none.
func wantAllKeysWork(t *testing.T, c *kms.Client) (ids []string) {
	t.Helper()
	pages := kms.NewListKeysPaginator(c, &kms.ListKeysInput{})
	for pages.HasMorePages() {
		for _, key := range must(pages.NextPage(context.Background()))(t).Keys {
			ids = append(ids, *key.KeyId)
			if describe(t, c, *key.KeyId).KeyState == types.KeyStateEnabled {
				wantDecrypt(t, c, encrypt(t, c, *key.KeyId, marker, nil), marker, nil)
			}
		}
	}
	return ids
}

// Nothing of a key that was not acknowledged may stay half-made.
func (d *deployment) wantNoOrphans(t *testing.T) {
	t.Helper()
	for what, query := range map[string]string{
		"keys without a backing key": `SELECT count(*) FROM keys k WHERE NOT EXISTS (SELECT 1 FROM backing_keys b WHERE b.id = k.current_backing_key)`,
		"backing keys of no key":     `SELECT count(*) FROM backing_keys b WHERE NOT EXISTS (SELECT 1 FROM keys k WHERE k.id = b.key_id)`,
		"keys without a record": `SELECT count(*) FROM keys k WHERE NOT EXISTS (SELECT 1 FROM audit_records
			WHERE record->'responseElements'->'keyMetadata'->>'keyId' = k.id)`,
		"miscounted regions": `SELECT count(*) FROM account_regions a WHERE key_count <>
			(SELECT count(*) FROM keys k WHERE k.account = a.account AND k.region = a.region)`,
	} {
		rows, err := d.pool.Query(context.Background(), query)
		if err != nil {
			t.Fatal(err)
		}
		if n := must(pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64]))(t); n != 0 {
			t.Errorf("%d %s", n, what)
		}
	}
}

// points lists the failpoints that begin with one of the prefixes.
func points(prefixes ...string) []string {
	return slices.DeleteFunc(slices.Clone(failpoint.Points), func(p string) bool {
		return !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(p, prefix) })
	})
}

func TestCrashInCreateKey(t *testing.T) {
	d := newDeployment(t, "failpoint")
	var before []kept
	for _, point := range points("hbk.", "createkey.", "change.") {
		t.Run(point, func(t *testing.T) {
			s := d.serve(t)
			c := d.client(t)
			key := createKey(t, c)
			before = append(before, kept{key, encrypt(t, c, *key.KeyId, marker, nil)})
			there := wantAllKeysWork(t, c)
			must(0, s.stop())(t)
			err := d.kills(t, point, func(c *kms.Client) error {
				_, err := c.CreateKey(context.Background(), &kms.CreateKeyInput{})
				return err
			})
			if err == nil {
				t.Fatal("CreateKey was answered by a dead server")
			}
			s = d.serve(t)
			after := wantAllKeysWork(t, d.client(t))
			want := len(there)
			if point == "change.after_commit" { // committed, not acknowledged
				want++
			}
			if len(after) != want {
				t.Errorf("%d keys after the crash, want %d", len(after), want)
			}
			d.wantKept(t, before)
			d.wantNoOrphans(t)
			d.wantChains(t)
			must(0, s.stop())(t)
		})
	}
}

// stoppedWithKey is a deployment that has a key and is not served any more.
func stoppedWithKey(t *testing.T) (d *deployment, key *types.KeyMetadata, blob []byte) {
	t.Helper()
	d = newDeployment(t, "failpoint")
	s := d.serve(t)
	c := d.client(t)
	key = createKey(t, c)
	blob = encrypt(t, c, *key.KeyId, marker, nil)
	must(0, s.stop())(t)
	return d, key, blob
}

// A change that was killed before its commit never happened; after it, it
// holds. A call that changes nothing is answered only once it is recorded.
func TestCrashInOtherCalls(t *testing.T) {
	d, key, blob := stoppedWithKey(t)
	count := func(event string) int { return len(d.records(t, "record->>'eventName' = $1", event)) }
	for _, row := range []struct {
		point, event string
		recorded     int
		do           func(c *kms.Client) error
	}{
		{"budget.reserved", "Encrypt", 0, func(c *kms.Client) error {
			_, err := c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte(marker)})
			return err
		}},
		{"audit.before_commit", "Decrypt", 0, func(c *kms.Client) error {
			_, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: blob})
			return err
		}},
		{"audit.after_commit", "Decrypt", 1, func(c *kms.Client) error {
			_, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: blob})
			return err
		}},
		{"change.before_commit", "DisableKey", 0, func(c *kms.Client) error {
			_, err := c.DisableKey(context.Background(), &kms.DisableKeyInput{KeyId: key.KeyId})
			return err
		}},
		{"change.after_commit", "DisableKey", 1, func(c *kms.Client) error {
			_, err := c.DisableKey(context.Background(), &kms.DisableKeyInput{KeyId: key.KeyId})
			return err
		}},
	} {
		t.Run(row.point, func(t *testing.T) {
			was := count(row.event)
			if err := d.kills(t, row.point, row.do); err == nil {
				t.Fatal("a dead server answered")
			}
			if got := count(row.event) - was; got != row.recorded {
				t.Errorf("%d records of %s, want %d", got, row.event, row.recorded)
			}
			s := d.serve(t)
			state := describe(t, d.client(t), *key.KeyId).KeyState
			if want := row.event == "DisableKey" && row.recorded == 1; (state == types.KeyStateDisabled) != want {
				t.Errorf("the key is %s", state)
			}
			d.wantChains(t)
			must(0, s.stop())(t)
		})
	}
	// What a host had reserved when it was killed counts as spent.
	d.serve(t)
	c := d.client(t)
	must(c.EnableKey(context.Background(), &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
	encrypt(t, c, *key.KeyId, marker, nil)
	d.wantReserved(t, 3<<16)
}

func (d *deployment) wantReserved(t *testing.T, want int64) {
	t.Helper()
	var reserved int64
	err := d.pool.QueryRow(context.Background(), "SELECT reserved FROM encryption_budgets").Scan(&reserved)
	if err != nil || reserved != want {
		t.Errorf("%d encryptions are reserved, want %d: %v", reserved, want, err)
	}
}

// An interrupted init can be run again, and the deployment then works with
// the secret that was shown last.
func TestCrashInInit(t *testing.T) {
	for _, point := range points("init.") {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			d := prepare(t, testenv.Postgres(t))
			d.tags = "failpoint"
			d.endWith(t)
			out, err := d.tryInitialise(t, "TRENT_FAILPOINT="+point)
			if err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("init outlived %s: %v\n%s", point, err, out)
			}
			shown := d.admin
			active := point == "init.active" || point == "init.marked"
			if out, err = d.tryInitialise(t); err != nil && !active {
				t.Fatalf("second init: %v\n%s", err, out)
			}
			if active && d.admin != shown {
				t.Error("init made a second administrator of an active deployment")
			}
			d.serve(t)
			c := d.client(t)
			key := createKey(t, c)
			wantDecrypt(t, c, encrypt(t, c, *key.KeyId, marker, nil), marker, nil)
			if shown.ID != "" && shown != d.admin {
				_, err := newClient(d.url, shown, http.DefaultTransport).ListKeys(context.Background(), nil)
				wantCode(t, err, "UnrecognizedClientException", "")
			}
			d.wantChains(t)
			d.wantNoPlaintext(t, d.admin.Secret)
			d.wantNotSetUpAgain(t) // whoever has marked it on the token
		})
	}
}

// Calls in flight when the server is killed: every one that was answered is
// in the audit log.
func TestKilledUnderLoad(t *testing.T) {
	d := newDeployment(t, "failpoint")
	s := d.serve(t)
	key := createKey(t, d.client(t))
	must(0, s.stop())(t)
	for _, skip := range []string{"5", "40"} {
		s := d.serve(t, "TRENT_FAILPOINT=audit.after_commit", "TRENT_FAILPOINT_SKIP="+skip)
		r := &recorder{}
		done := make(chan struct{})
		for range 8 {
			go func() {
				defer func() { done <- struct{}{} }()
				c := newClient(s.url, d.admin, r)
				for {
					if _, err := c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte(marker)}); err != nil {
						return
					}
				}
			}()
		}
		for range 8 {
			<-done
		}
		<-s.exited
		if len(r.all()) == 0 {
			t.Fatal("no call was answered before the kill")
		}
		d.wantRecords(t, r.all())
		d.wantChains(t)
	}
}
