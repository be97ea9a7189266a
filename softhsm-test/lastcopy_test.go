package softhsmtest

import (
	"path/filepath"
	"testing"
)

// TestLastCopies: what a member is the last but one, or the last, to hold is not
// given up unasked; in whatever order the members are configured, and while no
// service runs that seals rows anew.
func TestLastCopies(t *testing.T) {
	d := newDeployment(t, "")
	first, second := d.conf, d.another(t, "second")
	d.enrolled(t, "2", map[string]string{"first": first, "second": second})
	list := d.memberList(t)

	// The new member leads, and has not what the rows are sealed by.
	swapped := map[string]string{"first": second, "second": first}
	d.members(t, swapped)
	d.extra = append(d.extra, "TRENT_SO_PIN="+officerPIN)
	renew := []string{"renew-access-key", "--access-key-id", d.admin.ID, "--credentials", filepath.Join(d.dir, "renewed.env")}
	d.refusedDomain(t, "came later than the row was sealed", renew...)
	d.refusedDomain(t, "would have no active access key", "delete-access-key", "--access-key-id", d.admin.ID)
	d.mustDomain(t, append([]string{"enrol"}, d.compared(t, "3", "first", "second")...)...)
	d.members(t, map[string]string{"first": first, "second": second})

	remove := []string{"remove-member", "--serial", list["second"].Serial}
	d.refusedDomain(t, "only token "+list["first"].Serial+" holds generation 3", remove...)
	d.holds(t, map[string][]int{"first": {1, 2, 3}, "second": {2, 3}})
	d.mustDomain(t, "confirm-backup", "--generation", "3")
	d.serve(t)
	d.until(t, "sealing rows anew", func(all map[int64]generationStatus) bool { return all[1].SealedRows+all[2].SealedRows == 0 })
	d.stopAll()
	d.members(t, swapped)
	d.mustDomain(t, renew...)
	d.mustDomain(t, "delete-access-key", "--access-key-id", d.admin.ID)
	d.refusedDomain(t, "what the audit log of its time is verified with", "remove-member", "--serial", list["first"].Serial)
	d.mustDomain(t, remove...)
	d.members(t, map[string]string{"first": first})
	if got := d.memberList(t)["first"]; got.State != "enrolled" {
		t.Errorf("%+v", got)
	}
}
