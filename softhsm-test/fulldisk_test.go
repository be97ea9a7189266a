package softhsmtest

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/trent-kms/trent/internal/softhsm"
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
	disk.Fill(t)
	sealed, err := encryptUntilRefused(t, c, key.KeyId)
	wantCode(t, err, "DependencyTimeoutException", "The database is not available now.")
	if _, err := c.CreateKey(context.Background(), nil); err == nil {
		t.Error("a key was made, and could not be recorded")
	}
	eventually(t, "/readyz saying that the audit log is not ready", func() bool {
		_, _ = c.DescribeKey(context.Background(), &kms.DescribeKeyInput{KeyId: key.KeyId}) // it is for a few seconds after each call
		status, body := get(s.adminURL + "/readyz")
		return status == 503 && strings.Contains(string(body), "audit log")
	})
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

// encryptUntilRefused encrypts numbers, and returns what succeeded and the error
// that ended it.
func encryptUntilRefused(t *testing.T, c *kms.Client, keyID *string) (sealed [][]byte, refused error) {
	t.Helper()
	for len(sealed) < 2000 {
		answer, err := c.Encrypt(context.Background(), &kms.EncryptInput{KeyId: keyID, Plaintext: fmt.Append(nil, len(sealed))})
		if err != nil {
			return sealed, err
		}
		sealed = append(sealed, answer.CiphertextBlob)
	}
	t.Fatal("2000 calls were recorded on a full disk")
	return nil, nil
}

// The same for the token of a SoftHSM: init is run again once there is room.
func TestFullDiskOfTheToken(t *testing.T) {
	disk := testenv.SmallDisk(t)
	d := prepare(t, testenv.Postgres(t))
	d.endWith(t)
	folder := must(softhsm.Open(filepath.Join(disk.Dir, "token")))(t)
	if err := folder.InitToken(context.Background(), d.label, []byte(officerPIN), []byte(userPIN)); err != nil {
		t.Fatal(err)
	}
	d.conf = folder.Conf
	disk.Fill(t)
	out, err := d.tryInitialise(t)
	if err == nil || !strings.Contains(out, "is its disk full?") || !strings.Contains(out, "run trent init again") {
		t.Errorf("init: %v\n%s", err, out)
	}
	disk.Free(t)
	d.initialise(t)
	d.serve(t)
	c := d.client(t)
	encrypt(t, c, *createKey(t, c).KeyId, marker, nil)
}
