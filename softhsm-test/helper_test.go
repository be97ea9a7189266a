package softhsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/trent-kms/trent/hsm"
	"github.com/trent-kms/trent/store"
)

// Some tests need what no operation makes yet: a principal without rights, or
// an access key that is not active. A helper, which is this test binary run
// again, makes it with the deployment's own HSM domain. It is a process of
// its own because SoftHSM reads its configuration once per process.

// A helperJob goes to the helper's standard input.
type helperJob struct {
	Module, Label, Database string
	Name                    string // of the principal
	Status                  string // of its access key
}

// principal makes a user without rights and returns its access key.
func (d *deployment) principal(t testing.TB, name, status string) secretKey {
	t.Helper()
	job := must(json.Marshal(helperJob{d.module, d.label, d.database, name, status}))(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TRENT_TEST_HELPER=principal", "SOFTHSM2_CONF=" + d.conf}
	cmd.Stdin = bytes.NewReader(job)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helper: %v\n%s", err, &faults)
	}
	var key secretKey
	if err := json.Unmarshal(out, &key); err != nil {
		t.Fatal(err)
	}
	return key
}

// helper is the helper process's main.
func helper(string) int {
	var job helperJob
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	key, err := makePrincipal(ctx, job)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(key); err != nil {
		return 1
	}
	return 0
}

func makePrincipal(ctx context.Context, job helperJob) (secretKey, error) {
	db, err := store.Open(ctx, store.Config{URL: job.Database})
	if err != nil {
		return secretKey{}, err
	}
	defer db.Close()
	deployment, err := db.Deployment(ctx)
	if err != nil {
		return secretKey{}, err
	}
	token, err := hsm.Open(ctx, hsm.Config{Module: job.Module, TokenLabel: job.Label, PIN: hsm.NewPIN([]byte(userPIN))})
	if err != nil {
		return secretKey{}, err
	}
	defer token.Close()
	domain, err := token.OpenDomain(ctx, deployment.ID)
	if err != nil {
		return secretKey{}, err
	}
	db.SetSealer(deployment.ID, domain)
	raw := make([]byte, 30)
	_, _ = rand.Read(raw)
	key := secretKey{ID: "AKIA" + rand.Text()[:16], Secret: base64.StdEncoding.EncodeToString(raw)}
	ekt, err := domain.ImportSecret(ctx, []byte("AWS4"+key.Secret))
	if err != nil {
		return secretKey{}, err
	}
	now := time.Now().UTC()
	who := store.Principal{
		ID: "AIDA" + rand.Text()[:16], Account: account, Name: job.Name, Created: now,
		ARN: "arn:aws:iam::" + account + ":user/" + job.Name,
	}
	change := db.NewChange()
	if err := change.InsertPrincipal(ctx, who); err != nil {
		return secretKey{}, err
	}
	if err := change.InsertAccessKey(ctx, store.AccessKey{
		ID: key.ID, Account: account, PrincipalID: who.ID, Secret: ekt, Status: job.Status, Created: now,
	}); err != nil {
		return secretKey{}, err
	}
	_, err = db.Commit(ctx, change, nil)
	return key, err
}
