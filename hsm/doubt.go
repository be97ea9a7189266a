package hsm

import "time"

// doubt has generations that cannot serve looked at again, not often: somebody
// may have finished or destroyed them since, or the device was ill. Whoever keeps
// the member open names the active generation every second, and does not wait for
// it. The caller holds mu.
func (d *Member) doubt() {
	if d.keys == nil || !d.keys.unusable() || time.Since(d.seen) < doubtAfter {
		return
	}
	d.seen = time.Now()
	go func() { _, _ = d.look(background) }() // if it fails all stays as it was
}

func (keys *domainKeys) unusable() bool {
	for _, g := range keys.generations {
		if !g.Whole && !g.Retired {
			return true
		}
	}
	return false
}
