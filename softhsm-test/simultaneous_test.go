package softhsmtest

import (
	"slices"
	"strings"
	"sync"
	"testing"
)

// atOnce runs the same `trent domain` command several times at once and returns
// what each said, without those that succeeded.
func (d *deployment) atOnce(t *testing.T, times int, args ...string) (refused []string) {
	t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	for range times {
		cmd := d.command(t, append([]string{"domain"}, args...)...)
		all.Go(func() {
			out, err := cmd.CombinedOutput()
			if mu.Lock(); err != nil {
				refused = append(refused, string(out))
			}
			mu.Unlock()
		})
	}
	all.Wait()
	return refused
}

// TestOfficersAtOnce: commands that make or destroy keys on tokens, given
// several times at once, leave what one of them leaves.
func TestOfficersAtOnce(t *testing.T) {
	d := newDeployment(t, "")
	d.atOnce(t, 4, "rotate", "--no-wait")
	d.mustDomain(t, "rotate", "--no-wait") // SoftHSM may have refused all four: see below
	if all := d.generations(t); len(all) != 2 || all[2].State != "created" || all[2].OnToken != "whole" {
		t.Fatalf("%+v", all)
	}
	d.mustDomain(t, "retire", "--generation", "2")

	first, second := d.conf, d.another(t, "second")
	d.members(t, map[string]string{"first": first, "second": second})
	d.atOnce(t, 3, "enrol") // makes the enrolment pairs
	confirmed := d.compared(t, "3", "first", "second")
	refused := d.atOnce(t, 3, append([]string{"enrol"}, confirmed...)...)
	if d.generations(t)[3].State != "active" { // as above
		d.mustDomain(t, append([]string{"enrol"}, confirmed...)...)
	}
	if all := d.generations(t); all[3].State != "active" || all[3].OnToken != "whole" {
		t.Fatalf("%+v\n%s", all, strings.Join(refused, "\n"))
	}
	d.holds(t, map[string][]int{"first": {1, 3}, "second": {3}})
	// The last two are SoftHSM's, which writes a token's file in place at each login:
	// two at the same instant may find it in pieces.
	reasons := []string{"another `trent domain`", "is no member's", "logging in to token", "the library shows no initialised token"}
	for _, out := range refused {
		if !slices.ContainsFunc(reasons, func(why string) bool { return strings.Contains(out, why) }) {
			t.Errorf("%s", out)
		}
	}
	d.serve(t)
	c := d.client(t)
	wantDecrypt(t, c, encrypt(t, c, *createKey(t, c).KeyId, marker, nil), marker, nil)
}
