package hsm

import "context"

// lookAtGenerations says what is to be feared of each generation of the domain
// keys. Of a retired one only the MAC key is there, as it should be.
func (r *Report) lookAtGenerations(ctx context.Context, d *Member) {
	all, err := d.Generations(ctx)
	if err != nil {
		r.add(SeverityError, "%v", err)
	}
	for _, g := range all {
		switch {
		case g.Whole && g.Profile == Locked:
			r.add(SeverityWarning, "domain keys of generation %d are of the locked profile: keys in use can never be taken out, but whoever holds the PIN can take out keys that he makes himself, and keys stay under the generation that they were made with", g.Number)
		case g.Whole && g.Public:
			r.add(SeverityWarning, "domain keys of generation %d are trusted, but public objects, which this token may keep unencrypted: for tests only", g.Number)
		case !g.Whole && g.Shared:
			r.add(SeverityError, "domain keys of generation %d: %s", g.Number, g.Why)
		case !g.Whole && !g.Retired:
			r.add(SeverityWarning, "domain keys of generation %d: %s", g.Number, g.Why)
		}
	}
}
