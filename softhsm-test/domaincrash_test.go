package softhsmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trent-kms/trent/internal/softhsm"
	"github.com/trent-kms/trent/internal/testenv"
)

// killedDomain runs a `trent domain` command that dies at point.
func (d *deployment) killedDomain(t *testing.T, point string, args ...string) {
	t.Helper()
	cmd := d.command(t, append([]string{"domain"}, args...)...)
	cmd.Env = append(cmd.Env, "TRENT_FAILPOINT="+point)
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.String() != "signal: killed" {
		t.Fatalf("trent domain %s outlived %s: %v\n%s", strings.Join(args, " "), point, err, out)
	}
}

// TestCrashInDomainRotation: a rotation of the domain keys that was killed at any
// durable step can be run again, and leaves nothing double or half-made.
func TestCrashInDomainRotation(t *testing.T) {
	d := newDeployment(t, "failpoint")
	d.serve(t)
	c := d.client(t)
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	for _, point := range []string{
		"generation.domainkey.aes", "generation.domainkey.generic", "generation.domainkey.private",
		"generation.mackey", "generation.made", "generation.recorded",
	} {
		d.killedDomain(t, point, "rotate", "--no-wait") // goes on where the one before was killed
	}
	d.mustDomain(t, "rotate", "--no-wait")
	all := d.generations(t)
	if len(all) != 2 || all[1].State != "active" || all[2].State != "created" || all[2].OnToken != "whole" {
		t.Fatalf("%+v", all)
	}
	// One that was never active can be discarded; its number is not used again.
	d.killedDomain(t, "generation.retiring", "retire", "--generation", "2")
	for _, point := range points("generation.destroyed.") {
		d.failedWorker(t, point, "retire", "--generation", "2")
	}
	d.killedDomain(t, "generation.emptied", "retire", "--generation", "2")
	d.mustDomain(t, "retire", "--generation", "2")
	d.mustDomain(t, "rotate", "--no-wait")
	d.mustDomain(t, "confirm-backup", "--generation", "3")
	d.stopAll()
	d.killedDomain(t, "generation.activated", "activate", "--generation", "3")
	d.mustDomain(t, "activate", "--generation", "3")
	s := d.launch(t, "TRENT_FAILPOINT=reseal.row")
	select {
	case <-s.exited:
	case <-time.After(time.Minute): // whose turn the job is may take a while to be known
		t.Fatal("the server outlived reseal.row")
	}
	d.serve(t)
	c = d.client(t)
	all = d.generations(t)
	if len(all) != 3 || all[1].State != "superseded" || all[2].State != "destroyed" || all[2].OnToken != "" || all[3].State != "active" {
		t.Fatalf("%+v", all)
	}
	d.followed(t, 3, c)
	wantDecrypt(t, c, blob, marker, nil)
	d.until(t, "sealing rows anew", func(all map[int64]generationStatus) bool { return all[1].SealedRows == 0 })
	d.wantChains(t)
}

// TestRestoreDrill: from a dump of the database and a backup of the HSM alone
// (for SoftHSM, a copy of the token's folder), on another machine's token
// folder and another Postgres database, everything that was encrypted before
// decrypts, under every generation.
func TestRestoreDrill(t *testing.T) {
	d := newDeployment(t, "")
	d.extra = append(d.extra, "TRENT_SO_PIN="+officerPIN)
	d.serve(t)
	c := d.client(t)
	var blobs [][]byte
	keep := func() {
		key := createKey(t, c)
		blobs = append(blobs, encrypt(t, c, *key.KeyId, marker, nil))
	}
	keep()
	d.rotated(t, "2")
	d.followed(t, 2, c)
	keep()
	d.rotated(t, "3", "--profile", "trusted")
	d.followed(t, 3, c)
	keep()

	restored := d.restore(t)
	restored.serve(t)
	for i, blob := range blobs {
		wantDecrypt(t, restored.client(t), blob, marker, nil)
		if i == 0 {
			createKey(t, restored.client(t))
		}
	}
	if all := restored.generations(t); all[1].OnToken != "whole" || all[2].OnToken != "whole" || all[3].State != "active" {
		t.Errorf("%+v", all)
	}
	restored.wantChains(t)

	// The token of before the last rotation is not enough, and says so.
	old := d.restore(t)
	before := filepath.Join(old.dir, "tokens")
	if err := os.RemoveAll(before); err != nil {
		t.Fatal(err)
	}
	folder, err := softhsm.Open(old.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := folder.InitToken(t.Context(), old.label, []byte(officerPIN), []byte(userPIN)); err != nil {
		t.Fatal(err)
	}
	old.refusedDomain(t, "restore the token from its backup", "status")
}

// restore brings a dump of the database and a copy of the token's folder to
// another place.
func (d *deployment) restore(t *testing.T) *deployment {
	t.Helper()
	r := prepare(t, testenv.Postgres(t))
	r.endWith(t)
	r.admin, r.extra = d.admin, d.extra
	dump := filepath.Join(r.dir, "dump.sql")
	for _, args := range [][]string{
		{testenv.Program(t, "pg_dump"), "--no-owner", "--file", dump, d.database},
		{testenv.Program(t, "psql"), "--quiet", "--set", "ON_ERROR_STOP=1", "--file", dump, r.database},
		{"rm", "-r", filepath.Join(r.dir, "tokens")},
		{"cp", "-a", filepath.Join(d.dir, "tokens"), filepath.Join(r.dir, "tokens")},
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args[:1], " "), err, out)
		}
	}
	return r
}

// TestTrustedKeysOfTheNext: the security officer makes the keys of what is the
// next generation when he has the lock, though it was another one before.
func TestTrustedKeysOfTheNext(t *testing.T) {
	d := newDeployment(t, "")
	d.extra = append(d.extra, "TRENT_SO_PIN="+officerPIN)
	tables := []string{"deployment", "domain_generations"}
	keep := func(as string) {
		for _, table := range tables {
			must(d.pool.Exec(t.Context(), fmt.Sprintf("CREATE TABLE %s_%s AS TABLE %s", as, table, table)))(t)
		}
	}
	back := func(to string) {
		for _, table := range tables {
			must(d.pool.Exec(t.Context(), fmt.Sprintf("DELETE FROM %s; INSERT INTO %s TABLE %s_%s", table, table, to, table)))(t)
		}
	}
	rotate := []string{"domain", "rotate", "--no-wait", "--profile", "trusted"}
	d.mustDomain(t, rotate[1:]...)
	keep("pending")
	d.mustDomain(t, "retire", "--generation", "2")
	keep("discarded")

	back("pending")
	lock := must(d.pool.Acquire(t.Context()))(t)
	defer lock.Release()
	must(lock.Exec(t.Context(), "SELECT pg_advisory_lock($1, hashtext('domain'))", 0x74726964))(t)
	var out bytes.Buffer
	cmd := d.command(t, rotate...)
	cmd.Stdout, cmd.Stderr = &out, &out
	must(0, cmd.Start())(t)
	for waits, end := false, time.Now().Add(30*time.Second); !waits; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the command does not ask for the lock")
		}
		must(0, d.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND query LIKE 'SELECT pg_try_advisory_lock%')`).Scan(&waits))(t)
	}
	back("discarded")
	must(lock.Exec(t.Context(), "SELECT pg_advisory_unlock_all()"))(t)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if all := d.generations(t); all[2].State != "destroyed" || all[2].OnToken != "" || all[3].State != "created" || !strings.HasPrefix(all[3].OnToken, "whole") {
		t.Errorf("%+v", all)
	}
}
