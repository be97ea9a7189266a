package softhsmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// doctor runs trent doctor and demands that it finds nothing that keeps Trent
// from serving.
func (d *deployment) doctor(t *testing.T, database bool, args ...string) string {
	t.Helper()
	cmd := d.command(t, append([]string{"doctor"}, args...)...)
	if !database {
		cmd.Env = slices.DeleteFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "TRENT_DATABASE_URL=") })
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("trent doctor: %v\n%s", err, out)
	}
	return string(out)
}

func wantSaid(t *testing.T, out string, all ...string) {
	t.Helper()
	for _, text := range all {
		if !strings.Contains(out, text) {
			t.Errorf("%q is not in\n%s", text, out)
		}
	}
}

// enrolled makes members of two empty tokens, or of one and what is there.
func (d *deployment) enrolled(t *testing.T, generation string, confs map[string]string) {
	t.Helper()
	var names []string
	for _, name := range []string{"first", "second", "third"} {
		if confs[name] != "" {
			names = append(names, name)
		}
	}
	d.members(t, confs)
	d.mustDomain(t, append([]string{"enrol"}, d.compared(t, generation, names...)...)...)
}

// TestFirstMemberLost: a domain that was enlarged in time outlives the token
// that it began on, administrators included, and can be enlarged again.
func TestFirstMemberLost(t *testing.T) {
	d := newDeployment(t, "failpoint")
	first, second := d.conf, d.another(t, "second")
	s := d.serve(t)
	c := d.client(t)
	oldBlob := encrypt(t, c, *createKey(t, c).KeyId, marker, nil)
	d.enrolled(t, "2", map[string]string{"first": first, "second": second})
	d.followed(t, 2, c)
	d.until(t, "sealing rows anew", func(all map[int64]generationStatus) bool { return all[1].SealedRows == 0 })
	serial := d.memberList(t)["first"].Serial

	// What depends on the first is said, and the copies on the second are believed.
	depends := []string{"only token " + serial + " can use what generation 1 wraps", "1 KMS keys", d.admin.ID + " of administrator admin", "trent domain renew-access-key"}
	wantSaid(t, d.mustDomain(t, "status"), depends...)
	for _, member := range []string{"first", "second"} {
		out := d.doctor(t, true, "--member", member)
		wantSaid(t, out, append(depends, "generation 2 are of the locked profile")...)
		if strings.Contains(out, "came from outside") {
			t.Errorf("doctor does not believe the copies of member %s:\n%s", member, out)
		}
		wantSaid(t, d.doctor(t, false, "--member", member), "warning", "came from outside", "`trent doctor` with the database's URL")
	}

	// The security officer of a token that is not of the domain gives nobody an
	// access key.
	pin := filepath.Join(d.dir, "so-pin")
	must(0, os.WriteFile(pin, []byte(officerPIN), 0o600))(t)
	d.members(t, map[string]string{"first": first, "second": second, "third": d.another(t, "stranger")})
	d.refusedDomain(t, "member third, whose security officer's PIN was given", "renew-access-key", "--access-key-id", d.admin.ID, "--member", "third",
		"--so-pin-file", pin, "--credentials", filepath.Join(d.dir, "stranger.env"))
	d.members(t, map[string]string{"first": first, "second": second})

	// Another access key for the administrator.
	d.renewed(t)
	status := d.mustDomain(t, "status")
	wantSaid(t, status, "1 KMS keys")
	if strings.Contains(status, "AKIA") {
		t.Errorf("an access key depends on the first member:\n%s", status)
	}
	must(0, s.stop())(t)

	// The first is lost.
	d.refusedDomain(t, "this member can be reached", "remove-member", "--lost", "--serial", serial)
	must(0, os.Rename(filepath.Join(d.dir, "tokens"), filepath.Join(d.dir, "gone")))(t)
	d.refusedDomain(t, "alone holds generation 1", "remove-member", "--serial", serial)
	d.members(t, map[string]string{"second": second})
	wantSaid(t, d.mustDomain(t, "remove-member", "--lost", "--serial", serial), "lost with the member", "1 keys")
	givenUp := "record->>'eventName' = 'RemoveDomainMember' AND record->'serviceEventDetails'->>'lostWith' LIKE $1"
	if n := len(d.records(t, givenUp, "%alone holds generation 1, which 1 keys%")); n != 1 {
		t.Errorf("%d records say what was lost with the member", n)
	}
	s = d.serve(t)
	c = d.client(t)
	blob := encrypt(t, c, *createKey(t, c).KeyId, marker, nil)
	wantDecrypt(t, c, blob, marker, nil)
	_, err := c.Decrypt(context.Background(), &kms.DecryptInput{CiphertextBlob: oldBlob})
	var unavailable *types.KeyUnavailableException
	if !errors.As(err, &unavailable) {
		t.Errorf("a key that only the lost member held: %v", err)
	}
	wantSaid(t, d.mustDomain(t, "status"), "no token can use any more")
	d.enrolled(t, "3", map[string]string{"second": second, "third": d.another(t, "third")})
	wantDecrypt(t, c, blob, marker, nil)
	must(0, s.stop())(t)

	// It turns up: what it alone has is not destroyed, as long as it is needed.
	must(0, os.Rename(filepath.Join(d.dir, "gone"), filepath.Join(d.dir, "tokens")))(t)
	found := map[string]string{"first": first, "second": second, "third": filepath.Join(d.dir, "third", filepath.Base(second))}
	d.members(t, found)
	d.refusedDomain(t, "alone holds generation 1", "remove-member", "--serial", serial)
	d.enrolled(t, "4", found)
	d.refusedDomain(t, "alone holds generation 1", "remove-member", "--serial", serial)
	d.serve(t)
	wantDecrypt(t, d.client(t), oldBlob, marker, nil)
	d.stopAll()
	wantEvents(t, d, map[string]int{"RemoveDomainMember": 1, "EnrolDomainMembers": 3, "CreateAccessKey": 2, "DeleteAccessKey": 2})
}

// renewed gives the administrator an access key in the place of his own, while
// the service runs.
func (d *deployment) renewed(t *testing.T) {
	t.Helper()
	old := d.admin
	renew := []string{"renew-access-key", "--access-key-id", old.ID}
	d.refusedDomain(t, "no security officer's PIN is given", renew...)
	pin, credentials := filepath.Join(d.dir, "so-pin"), filepath.Join(d.dir, "renewed.env")
	must(0, os.WriteFile(pin, []byte("wrong-officer"), 0o600))(t)
	renew = append(renew, "--so-pin-file", pin, "--credentials", credentials)
	d.refusedDomain(t, "of the security officer of token", renew...)
	must(0, os.WriteFile(pin, []byte(officerPIN), 0o600))(t)
	d.refusedDomain(t, "there is no access key", append(slices.Clone(renew), "--access-key-id", "AKIAXXXXXXXXXXXXXXXX")...)
	d.refusedDomain(t, "would have no active access key", "delete-access-key", "--access-key-id", old.ID)

	// By the new member, which cannot verify what the log's last record is sealed by.
	d.killedDomain(t, "enrol.accesskey", append(slices.Clone(renew), "--member", "second")...)
	var unseen string
	if err := d.pool.QueryRow(t.Context(), "SELECT id FROM access_keys WHERE id <> $1", old.ID).Scan(&unseen); err != nil {
		t.Fatal(err)
	}
	d.refusedDomain(t, unseen+" of ", renew...)
	d.mustDomain(t, "delete-access-key", "--access-key-id", unseen)

	d.mustDomain(t, renew...)
	out := must(os.ReadFile(credentials))(t)
	d.admin = secretKey{string(accessKeyID.Find(out)), string(accessKey.FindSubmatch(out)[1])}
	list := func(admin secretKey) error {
		_, err := newClient(d.url, admin, nil).ListKeys(context.Background(), &kms.ListKeysInput{})
		return err
	}
	for _, admin := range []secretKey{old, d.admin} {
		must(0, list(admin))(t)
	}
	d.mustDomain(t, "delete-access-key", "--access-key-id", old.ID)
	eventually(t, "the end of the old access key", func() bool { return list(old) != nil })
	wantCode(t, list(old), "UnrecognizedClientException", "")
	must(0, list(d.admin))(t)
}
