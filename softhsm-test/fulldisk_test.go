package softhsmtest

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/trent-kms/trent/internal/testenv"
)

// A full disk is named, with the next step, by whoever meets it. Nothing is
// half-made by it, and nothing that was answered is lost.
func TestFullDisk(t *testing.T) {
	cluster, disk := testenv.PostgresOnDisk(t)
	d := prepare(t, cluster.URL("postgres"))
	d.endWith(t)
	disk.Fill(t)
	out, err := d.tryInitialise(t)
	if err == nil || !strings.Contains(out, "disk") || !strings.Contains(out, "full") || strings.Contains(out, "is it running") {
		t.Errorf("init: %v\n%s", err, out)
	}
	disk.Free(t)
	d.initialise(t)

	s := d.serve(t)
	c := newClient(d.url, d.admin, http.DefaultTransport)
	key := createKey(t, c)
	var sealed [][]byte
	disk.Fill(t)
	for n := 0; err == nil || n == 0; n++ {
		if n > 2000 {
			t.Fatal("2000 calls were recorded on a full disk")
		}
		var answer *kms.EncryptOutput
		answer, err = c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: fmt.Appendf(nil, "%d", n)})
		if err == nil {
			sealed = append(sealed, answer.CiphertextBlob)
		}
	}
	wantCode(t, err, "DependencyTimeoutException", "The database is not available now.")
	if _, err := c.CreateKey(context.Background(), nil); err == nil {
		t.Error("a key was made, and could not be recorded")
	}
	wantStatus(t, s.adminURL+"/readyz", 503)
	if _, body := get(s.adminURL + "/readyz"); !strings.Contains(string(body), "audit log") {
		t.Errorf("/readyz does not say what is not ready: %s", body)
	}
	if log := readLog(t, s); !strings.Contains(log, "the disk of Postgres is full: free space there") {
		t.Error("the log does not say what to do")
	}

	disk.Free(t)
	wantStatus(t, s.adminURL+"/readyz", 200)
	for n, blob := range sealed {
		wantDecrypt(t, c, blob, fmt.Sprint(n), nil)
	}
	all, err := c.ListKeys(context.Background(), nil)
	if err != nil || len(all.Keys) != 1 {
		t.Errorf("keys: %v, %v", all, err)
	}
	d.wantChains(t)
}
