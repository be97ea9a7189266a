package softhsmtest

import (
	"context"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/internal/pgcluster"
	"github.com/trent-kms/trent/internal/testenv"
)

// standby copies the database as it is now, which is what takeOver puts in its
// place.
func (d *deployment) standby(t *testing.T, cluster *pgcluster.Cluster) (takeOver func()) {
	t.Helper()
	var data string
	if err := d.pool.QueryRow(context.Background(), "SELECT current_setting('data_directory')").Scan(&data); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	standby, gone := filepath.Join(filepath.Dir(data), "standby"), filepath.Join(filepath.Dir(data), "gone")
	run(testenv.Program(t, "pg_basebackup"), "--pgdata", standby, "--checkpoint=fast", "--dbname", d.database)
	run("chown", "-R", "--reference", data, standby)
	return func() {
		run("mv", data, gone)
		run("mv", standby, data)
		if err := cluster.Restart(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFailoverWithLoss: a standby that lagged takes over. Hosts whose newest
// records it lacks say so at their next call and do no more, although they were
// idle meanwhile, instead of writing on behind the gap. Restarted, they go on
// from where the standby was.
func TestFailoverWithLoss(t *testing.T) {
	cluster := testenv.OwnPostgres(t)
	d := prepare(t, cluster.URL("postgres"))
	d.endWith(t)
	d.initialise(t)
	first, second := d.serve(t, "TRENT_HOST=host-a"), d.serve(t, "TRENT_HOST=host-b")
	ctx := context.Background()
	a, b := newClient(first.url, d.admin, http.DefaultTransport), newClient(second.url, d.admin, http.DefaultTransport)
	key := createKey(t, a)
	blob := encrypt(t, b, *key.KeyId, marker, nil)

	takeOver := d.standby(t, cluster)
	must(a.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t) // which will not have happened
	lost := createKey(t, a)
	_, err := b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	wantError[*types.DisabledException](t, err, "")
	time.Sleep(1500 * time.Millisecond) // the pools find out before the writers do
	takeOver()
	time.Sleep(time.Second)
	for c, s := range map[*kms.Client]*server{a: first, b: second} {
		eventually(t, "an answer", func() bool { // on a slow machine the pools have not found out yet
			_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
			return errorCode(err) != "DependencyTimeoutException"
		})
		if errorCode(err) != "KMSInternalException" {
			t.Errorf("a host that has lost records answers %v", err)
		}
		wantStatus(t, s.adminURL+"/readyz", 503)
		if log := readLog(t, s); !strings.Contains(log, "audit log broken") {
			t.Errorf("it does not say so:\n%s", log)
		}
	}
	must(0, first.stop())(t)
	must(0, second.stop())(t)
	d.serve(t)
	c := d.client(t)
	wantDecrypt(t, c, blob, marker, nil)
	_, err = c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: lost.KeyId})
	wantError[*types.NotFoundException](t, err, "")
	d.wantChains(t)
}
