package softhsmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/trent-kms/trent/internal/softhsm"
)

// another makes an empty token in a folder of its own and returns its
// SOFTHSM2_CONF.
func (d *deployment) another(t *testing.T, name string) string {
	t.Helper()
	folder := must(softhsm.Open(filepath.Join(d.dir, name)))(t)
	if err := folder.InitToken(t.Context(), d.label, []byte(officerPIN), []byte(userPIN)); err != nil {
		t.Fatal(err)
	}
	return folder.Conf
}

// members writes a configuration file with a table for each, which all
// processes that are started from now on use.
func (d *deployment) members(t *testing.T, confs map[string]string) {
	t.Helper()
	var text strings.Builder
	for _, name := range []string{"first", "second", "third"} {
		if conf, found := confs[name]; found {
			_, _ = fmt.Fprintf(&text, "[[hsm-member]]\nname = %q\nenvironment = [%q]\n\n", name, "SOFTHSM2_CONF="+conf)
		}
	}
	path := filepath.Join(d.dir, "members.toml")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(d.extra, "TRENT_CONFIG="+path) {
		d.extra = append(d.extra, "TRENT_CONFIG="+path)
	}
}

var fingerprint = regexp.MustCompile(`\b[0-9a-f]{4}(-[0-9a-f]{4}){15}\b`)

// compared is what an officer types after he has seen the fingerprints.
func (d *deployment) compared(t *testing.T, generation string, members ...string) (flags []string) {
	t.Helper()
	out, err := d.domain(t, "enrol")
	if err == nil || !strings.Contains(out, "not yet: read the fingerprints") {
		t.Fatalf("enrolled without a look at the fingerprints: %v\n%s", err, out)
	}
	shown := fingerprint.FindAllString(out, -1)
	if len(shown) != len(members) {
		t.Fatalf("%d fingerprints, want %d:\n%s", len(shown), len(members), out)
	}
	for i, member := range members {
		if read := fingerprint.FindString(d.mustDomain(t, "fingerprint", "--generation", generation, "--member", member)); read != shown[i] {
			t.Errorf("member %s shows %s, enrol shows %s", member, read, shown[i])
		}
		flags = append(flags, "--fingerprint", shown[i])
	}
	return flags
}

type memberStatus struct {
	Name, Serial, State, Fault string
	Holds                      []int
}

func (d *deployment) memberList(t *testing.T) map[string]memberStatus {
	t.Helper()
	cmd := d.command(t, "domain", "members", "--json")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("trent domain members: %v\n%s", err, out)
	}
	var all []memberStatus
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	found := map[string]memberStatus{}
	for _, m := range all {
		found[m.Name] = m
	}
	return found
}

// TestEnrolMember: a second token, in a folder of its own, becomes a member
// while the first one serves and the command is killed at every step; then it
// serves alone what was made since.
func TestEnrolMember(t *testing.T) {
	d := newDeployment(t, "failpoint")
	first, second := d.conf, d.another(t, "second")
	d.serve(t) // with the first token
	c := d.client(t)
	old := createKey(t, c)
	oldBlob := encrypt(t, c, *old.KeyId, marker, nil)
	stop := busy(t, c)

	d.members(t, map[string]string{"first": first, "second": second})
	d.failedWorker(t, "enrol.key", "enrol")
	confirmed := d.compared(t, "2", "first", "second")
	wrong := append(slices.Clone(confirmed[:3]), strings.Repeat("0000-", 15)+"0000")
	d.refusedDomain(t, "wrong fingerprint", append([]string{"enrol"}, wrong...)...)
	d.refusedDomain(t, "not yet: read the fingerprints of second", append([]string{"enrol"}, confirmed[:2]...)...)
	if all := d.generations(t); len(all) != 1 {
		t.Fatalf("made without the fingerprints: %+v", all)
	}
	enrol := append([]string{"enrol"}, confirmed...)
	d.killedDomain(t, "enrol.recorded", enrol...)
	d.refusedDomain(t, "trent domain enrol", "rotate", "--no-wait")
	d.refusedDomain(t, "does not hold generation 2", "confirm-backup", "--generation", "2") // there is nothing to back up yet
	ofFirst := "UPDATE audit_batches SET mac_generation = $1 WHERE (host, first_seq) = (SELECT host, first_seq FROM audit_batches ORDER BY 1, 2 LIMIT 1)"
	must(d.pool.Exec(t.Context(), ofFirst, 2))(t)
	d.refusedDomain(t, "the database was set back", enrol...)
	must(d.pool.Exec(t.Context(), ofFirst, 1))(t)
	for _, point := range points("enrol.took.") {
		d.failedWorker(t, point, enrol...)
	}
	for _, point := range []string{"enrol.made", "enrol.taken", "enrol.proved", "enrol.enrolled", "enrol.dropped", "generation.activated"} {
		d.killedDomain(t, point, enrol...) // goes on where the one before was killed
	}
	stop()
	d.followed(t, 2, c)
	if all := d.generations(t); len(all) != 2 || all[1].State != "superseded" || all[2].State != "active" || all[2].OnToken != "whole" {
		t.Fatalf("%+v", all)
	}
	list := d.memberList(t)
	if a, b := list["first"], list["second"]; a.State != "enrolled" || !slices.Equal(a.Holds, []int{1, 2}) || b.State != "enrolled" || !slices.Equal(b.Holds, []int{2}) {
		t.Fatalf("%+v", list)
	}
	d.refusedDomain(t, "trent domain enrol", "rotate", "--no-wait")
	d.until(t, "sealing rows anew", func(all map[int64]generationStatus) bool { return all[1].SealedRows == 0 })
	d.stopAll()

	s := d.serve(t)
	c = d.client(t)
	fresh := createKey(t, c)
	freshBlob := encrypt(t, c, *fresh.KeyId, marker, nil)
	for range 5 {
		wantDecrypt(t, c, oldBlob, marker, nil)
		wantDecrypt(t, c, freshBlob, marker, nil)
	}
	wantEvents(t, d, map[string]int{"BeginDomainKeyGeneration": 1, "EnrolDomainMembers": 1, "ActivateDomainKeyGeneration": 1})

	// The first member goes, for good.
	must(0, os.Rename(filepath.Join(d.dir, "tokens"), filepath.Join(d.dir, "gone")))(t)
	for _, pid := range s.workers(t) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	wantDecrypt(t, c, freshBlob, marker, nil)
	createKey(t, c)
	time.Sleep(3 * time.Second) // Patience
	_, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: oldBlob})
	var unavailable *types.KeyUnavailableException
	if !errors.As(err, &unavailable) {
		t.Errorf("a key that only the lost member holds: %v", err)
	}
	wantDecrypt(t, c, freshBlob, marker, nil)

	// And comes back.
	must(0, os.Rename(filepath.Join(d.dir, "gone"), filepath.Join(d.dir, "tokens")))(t)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: oldBlob})
		if err == nil && string(out.Plaintext) == marker {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the member came back, but not its keys: %v", err)
		}
	}
	d.wantChains(t)
}

// failedWorker runs a command whose worker dies at point, whenever it is
// replaced.
func (d *deployment) failedWorker(t *testing.T, point string, args ...string) {
	t.Helper()
	cmd := d.command(t, append([]string{"domain"}, args...)...)
	cmd.Env = append(cmd.Env, "TRENT_FAILPOINT="+point)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "unavailable: its worker process ended") {
		t.Fatalf("it got on without a worker: %v\n%s", err, out)
	}
}

func wantEvents(t *testing.T, d *deployment, want map[string]int) {
	t.Helper()
	for event, n := range want {
		if got := len(d.records(t, "record->>'eventName' = $1 AND record->>'eventType' = 'AwsServiceEvent'", event)); got != n {
			t.Errorf("%d records of %s, want %d", got, event, n)
		}
	}
}

// TestThreeMembers: a third member, whom the domain can do without.
func TestThreeMembers(t *testing.T) {
	d := newDeployment(t, "failpoint")
	confs := map[string]string{"first": d.conf, "second": d.another(t, "second"), "third": d.another(t, "third")}
	d.members(t, map[string]string{"first": confs["first"], "second": confs["second"]})
	d.mustDomain(t, append([]string{"enrol"}, d.compared(t, "2", "first", "second")...)...)
	// The officer makes no keys for a generation that nobody can make.
	d.extra = append(d.extra, "TRENT_SO_PIN="+officerPIN)
	d.refusedDomain(t, "trent domain enrol", "rotate", "--no-wait", "--profile", "trusted")
	if all := d.generations(t); len(all) != 2 {
		t.Errorf("keys of a refused rotation are on the token: %+v", all)
	}
	s := d.serve(t)
	c := d.client(t)
	key := createKey(t, c)
	blob := encrypt(t, c, *key.KeyId, marker, nil)
	for range 6 {
		wantDecrypt(t, c, blob, marker, nil)
	}
	// The domain keys are rotated for all of them, or not at all.
	d.members(t, map[string]string{"first": confs["first"], "third": confs["third"]})
	d.refusedDomain(t, "is enrolled, but is not in this configuration", "enrol")
	d.members(t, confs)
	d.mustDomain(t, append([]string{"enrol"}, d.compared(t, "3", "first", "second", "third")...)...)
	d.followed(t, 3, c)
	wantDecrypt(t, c, blob, marker, nil)

	list := d.memberList(t)
	d.refusedDomain(t, "alone holds generation 1", "remove-member", "--serial", list["first"].Serial)
	// The second one must stay while the first, which has generation 2 too, is
	// away: it may be lost.
	d.until(t, "sealing rows anew", func(all map[int64]generationStatus) bool { return all[1].SealedRows+all[2].SealedRows == 0 })
	d.members(t, map[string]string{"second": confs["second"], "third": confs["third"]})
	d.refusedDomain(t, "alone holds generation 2", "remove-member", "--serial", list["second"].Serial)
	d.members(t, confs)
	d.refusedDomain(t, "no member has serial number", "remove-member", "--serial", "ffff")
	for _, point := range []string{"enrol.removed", "enrol.destroyed"} {
		d.killedDomain(t, point, "remove-member", "--serial", list["third"].Serial)
	}
	d.mustDomain(t, "remove-member", "--serial", list["third"].Serial)
	if got := d.memberList(t)["third"]; got.State != "removed" || len(got.Holds) != 0 {
		t.Errorf("%+v", got)
	}
	wantDecrypt(t, c, blob, marker, nil)
	createKey(t, c)
	must(0, s.stop())(t)

	// Whoever writes to the database cannot bring it back.
	for _, sql := range []string{
		"UPDATE domain_members SET state = 'enrolled' WHERE state = 'removed'",
		"DELETE FROM domain_members WHERE state = 'removed'",
		"UPDATE domain_generations SET proof = '{}' WHERE number = 3",
	} {
		must(d.pool.Exec(t.Context(), "CREATE TABLE saved_members AS SELECT * FROM domain_members"))(t)
		must(d.pool.Exec(t.Context(), "CREATE TABLE saved_generations AS SELECT * FROM domain_generations"))(t)
		must(d.pool.Exec(t.Context(), sql))(t)
		if out, err := d.domain(t, "members"); err == nil {
			t.Errorf("after %s:\n%s", sql, out)
		}
		must(d.pool.Exec(t.Context(), `TRUNCATE domain_members, domain_generations;
			INSERT INTO domain_members SELECT * FROM saved_members; INSERT INTO domain_generations SELECT * FROM saved_generations;
			DROP TABLE saved_members; DROP TABLE saved_generations`))(t)
	}
	d.mustDomain(t, "members")
	wantEvents(t, d, map[string]int{"RemoveDomainMember": 1, "EnrolDomainMembers": 2})
	d.wantChains(t)
}
