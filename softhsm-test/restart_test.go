package softhsmtest

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/trent-kms/trent/internal/testenv"
)

func TestRestartOfTheService(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	c := d.client(t)
	_, names := namedKey(t, c)
	blob := encrypt(t, c, names["alias name"], marker, map[string]string{"a": "b"})
	for _, end := range []func(){func() { must(0, s.stop())(t) }, func() { s.kill() }} {
		end()
		s = d.serve(t)
		c = d.client(t)
		wantDecrypt(t, c, blob, marker, map[string]string{"a": "b"})
		for _, name := range names {
			encrypt(t, c, name, marker, nil)
		}
	}
	d.wantChains(t)
	d.wantNoPlaintext(t, marker)
}

func TestRestartOfPostgres(t *testing.T) {
	cluster := testenv.OwnPostgres(t)
	d := prepare(t, cluster.URL("postgres"))
	d.endWith(t)
	d.initialise(t)
	s := d.serve(t)
	c := patientClient(d.url, d.admin)
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	if err := cluster.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantDecrypt(t, c, blob, marker, nil)
	encrypt(t, c, *key.KeyId, marker, nil)
	createKey(t, c)
	if err := cluster.Stop(); err != nil {
		t.Fatal(err)
	}
	_, err := newClient(d.url, d.admin, http.DefaultTransport).Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: blob})
	if err == nil {
		t.Error("a call was answered although it could not be recorded")
	}
	eventually(t, "/readyz saying that the database is not ready", func() bool {
		status, body := get(s.adminURL + "/readyz")
		return status == 503 && strings.HasPrefix(string(body), "not ready: the database")
	})
	wantStatus(t, s.adminURL+"/healthz", 200)
}

// wantStatus waits a few seconds for a status: readiness is cached briefly.
func wantStatus(t *testing.T, url string, want int) {
	t.Helper()
	var status int
	for range 100 {
		if status, _ = get(url); status == want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%s answers %d, want %d", url, status, want)
}

// A host that serves already cannot be impersonated: its audit chain has one
// writer.
func TestSecondServerOfOneName(t *testing.T) {
	d := newDeployment(t, "")
	d.serve(t)
	wantStartRefused(t, d.launch(t), "test-host")
}

// wantStartRefused demands that a server ends by itself, with an exit code
// and a message.
func wantStartRefused(t *testing.T, s *server, fragment string) string {
	t.Helper()
	select {
	case <-s.exited:
	case <-time.After(30 * time.Second):
		s.kill()
		t.Fatal("trent serve runs, and should have refused")
	}
	log := readLog(t, s)
	if s.cmd.ProcessState.ExitCode() <= 0 {
		t.Fatalf("trent serve ended with %s:\n%s", s.cmd.ProcessState, log)
	}
	if !strings.Contains(log, fragment) {
		t.Fatalf("the message lacks %q:\n%s", fragment, log)
	}
	return log
}
