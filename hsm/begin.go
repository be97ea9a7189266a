package hsm

import "context"

// begin has a call join its lane's queue and returns at once; then is told, by
// the lane, of the first try's result. It answers false, and does nothing, if
// the call must wait for anything but its turn, such as for its key to be
// unwrapped, or is wrong: do is for those.
func (d *Member) begin(ctx context.Context, c *call, then func(out []byte, err error)) bool {
	class := classAES
	switch c.op {
	case callEncrypt:
	case callDecrypt:
		if checkIV(c.iv) != nil || len(c.in) < tagSize {
			return false
		}
	case callHMAC:
		class = classGeneric
	default:
		return false
	}
	if c.ekt.class() != class {
		return false
	}
	h := d.cache.ready(c.ekt)
	if h == nil {
		return false
	}
	r := d.build(c, h.epoch)
	r.key, r.handle, r.then, r.ctx = h.object, h, then, ctx
	if d.t.lane.send(r) != nil {
		r.end()
		return false
	}
	return true
}

func (d *Member) build(c *call, epoch uint64) *request {
	switch c.op {
	case callDecrypt:
		return openRequest(epoch, c.iv, c.aad, c.in)
	case callHMAC:
		return hmacRequest(epoch, c.in)
	}
	return sealRequest(epoch, d.t.ivs(), c.aad, c.in)
}
