package softhsmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// holds demands what the members hold, by a copy of the deployment that looks.
func (d *deployment) holds(t *testing.T, want map[string][]int) {
	t.Helper()
	list := d.memberList(t)
	for name, generations := range want {
		if got := list[name]; !slices.Equal(got.Holds, generations) {
			t.Errorf("member %s: %+v, want %v", name, got, generations)
		}
	}
}

// TestEnrolmentSetBack: a database from the middle of an enrolment that was
// finished does not cost the members what they hold, until an officer says so;
// then all of them lose all of it.
func TestEnrolmentSetBack(t *testing.T) {
	d := newDeployment(t, "failpoint")
	first, second := d.conf, d.another(t, "second")
	d.members(t, map[string]string{"first": first, "second": second})
	confirmed := d.compared(t, "2", "first", "second")
	d.killedDomain(t, "enrol.recorded", append([]string{"enrol"}, confirmed...)...)
	back := d.restore(t)
	back.tags, back.extra = d.tags, nil
	d.mustDomain(t, append([]string{"enrol"}, confirmed...)...)

	token := filepath.Join(back.dir, "tokens")
	for _, args := range [][]string{{"rm", "-r", token}, {"cp", "-a", filepath.Join(d.dir, "tokens"), token}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	both := map[string]string{"first": back.conf, "second": second}
	back.members(t, both)
	why := "the database is from before that"
	back.refusedDomain(t, why, "fingerprint", "--generation", "2", "--member", "second")
	back.refusedDomain(t, why, "enrol")
	back.refusedDomain(t, why, append([]string{"enrol"}, confirmed...)...)
	d.holds(t, map[string][]int{"first": {1, 2}, "second": {2}})

	// One of the members is out of reach.
	back.members(t, map[string]string{"first": back.conf, "second": "/nonexistent"})
	back.refusedDomain(t, "may still be on member second", "retire", "--generation", "2")
	if got := back.generations(t)[2]; got.State != "retiring" {
		t.Errorf("while a member may hold something: %+v", got)
	}
	d.holds(t, map[string][]int{"second": {2}})
	back.members(t, both)
	back.mustDomain(t, "retire", "--generation", "2")
	if got := back.generations(t)[2]; got.State != "destroyed" {
		t.Errorf("%+v", got)
	}
	back.holds(t, map[string][]int{"first": {1}, "second": nil})
	back.mustDomain(t, append([]string{"enrol"}, back.compared(t, "3", "first", "second")...)...)
	back.holds(t, map[string][]int{"first": {1, 3}, "second": {3}})

	// A member that is out of the configuration may hold something too.
	back.killedDomain(t, "enrol.taken", append([]string{"enrol"}, back.compared(t, "4", "first", "second")...)...)
	away := back.memberList(t)["second"].Serial
	back.members(t, map[string]string{"first": back.conf})
	back.refusedDomain(t, "may still be on token "+away, "retire", "--generation", "4")
	back.members(t, both)
	back.mustDomain(t, "retire", "--generation", "4")
	if got := back.generations(t)[4]; got.State != "destroyed" {
		t.Errorf("%+v", got)
	}

	// The new member's token alone knows that there is a deployment, although no
	// host has had the member yet.
	back.members(t, map[string]string{"second": second})
	back.wantNotSetUpAgain(t)
}

// TestRetireWithoutToken: a token that is no more, or has another serial number
// since it was restored, does not keep a generation for ever.
func TestRetireWithoutToken(t *testing.T) {
	d := newDeployment(t, "failpoint")
	first, second := d.conf, d.another(t, "second")
	d.members(t, map[string]string{"first": first, "second": second})
	confirmed := d.compared(t, "2", "first", "second")
	d.killedDomain(t, "enrol.enrolled", append([]string{"enrol"}, confirmed...)...)
	list := d.memberList(t)
	// Only the enrolment destroys the pairs that the keys came with.
	d.refusedDomain(t, "trent domain enrol", "activate", "--generation", "2")

	must(0, os.RemoveAll(filepath.Join(d.dir, "second")))(t)
	d.members(t, map[string]string{"first": first})
	for range 2 {
		d.refusedDomain(t, "may still be on "+list["second"].Serial, "retire", "--generation", "2")
	}
	gone := []string{"retire", "--generation", "2", "--gone", list["second"].Serial}
	d.refusedDomain(t, "add --confirm-gone", gone...)
	d.refusedDomain(t, "is on record for generation 2", "retire", "--generation", "2", "--gone", "ffff", "--confirm-gone")
	if got := d.generations(t)[2]; got.State != "retiring" {
		t.Errorf("%+v", got)
	}
	d.mustDomain(t, append(gone, "--confirm-gone", "--operator", "A. Officer")...)
	if got := d.generations(t)[2]; got.State != "destroyed" {
		t.Errorf("%+v", got)
	}
	recorded := `record->>'eventName' = 'DestroyDomainKeyGeneration' AND record->'serviceEventDetails'->'gone' ? $1 AND record->'serviceEventDetails'->>'operator' = 'A. Officer'`
	if n := len(d.records(t, recorded, list["second"].Serial)); n != 1 {
		t.Errorf("%d records say who took the token for gone", n)
	}
}
