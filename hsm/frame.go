package hsm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What passes between a serving process and its worker, both of one binary, on
// a socket pair that no one else holds. Integers are big-endian.
//
//	request  = size id op use number 7length ekt name second iv aad in extra
//	reply    = size id status number 4length ekt out public detail
//	size     = 4 OCTET   ; of what follows it, at most 64 MiB
//	id       = 4 OCTET   ; the request's; 0 in a notice
//	op       = OCTET     ; a callOp
//	use      = OCTET     ; a Use
//	status   = %x00      ; done
//	         / %x01      ; failed: detail is an error, see encodeError
//	         / %x02      ; a notice, which nobody asked for: number says which
//	number   = 4 OCTET
//	length   = 4 OCTET   ; of one of the fields that follow, in their order
//
// Many frames travel in one write. Whoever holds a buffer of them wipes it.
const (
	requestHeader = 4 + 4 + 1 + 1 + 4 + 7*4
	replyHeader   = 4 + 4 + 1 + 4 + 4*4
	largestFrame  = 64 << 20
)

const (
	statusDone = iota
	statusFailed
	statusNotice
)

var errFrame = errors.New("a frame that this binary does not make")

// appendRequest is the inverse of parseRequest.
func appendRequest(b []byte, id uint32, c *call) []byte {
	fields := [7]int{len(c.ekt), len(c.name), len(c.second), len(c.iv), len(c.aad), len(c.in), len(c.extra)}
	size := requestHeader - 4
	for _, n := range fields {
		size += n
	}
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = binary.BigEndian.AppendUint32(b, id)
	b = append(b, byte(c.op), byte(c.use))
	b = binary.BigEndian.AppendUint32(b, c.number)
	for _, n := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	}
	b = append(append(append(b, c.ekt...), c.name...), c.second...)
	return append(append(append(append(b, c.iv...), c.aad...), c.in...), c.extra...)
}

// size is how many bytes a request takes.
func (c *call) size() int {
	return requestHeader + len(c.ekt) + len(c.name) + len(c.second) + len(c.iv) + len(c.aad) + len(c.in) + len(c.extra)
}

// parseRequest reads a frame without its size. The call's slices are parts of it.
func parseRequest(b []byte, c *call) (id uint32, err error) {
	const header = requestHeader - 4
	if len(b) < header {
		return 0, errFrame
	}
	id = binary.BigEndian.Uint32(b)
	*c = call{op: callOp(b[4]), use: Use(b[5]), number: binary.BigEndian.Uint32(b[6:])}
	var name, second []byte
	fields := [7]*[]byte{(*[]byte)(&c.ekt), &name, &second, &c.iv, &c.aad, &c.in, &c.extra}
	if err := split(b[10:header], b[header:], fields[:]); err != nil {
		return 0, err
	}
	c.name, c.second = string(name), string(second)
	return id, nil
}

// split cuts payload into fields of the lengths. Empty ones stay nil.
func split(lengths, payload []byte, fields []*[]byte) error {
	for i, field := range fields {
		n := binary.BigEndian.Uint32(lengths[4*i:])
		if uint64(n) > uint64(len(payload)) {
			return errFrame
		}
		if n > 0 {
			*field, payload = payload[:n:n], payload[n:]
		}
	}
	if len(payload) > 0 {
		return errFrame
	}
	return nil
}

// appendReply is the inverse of parseReply.
func appendReply(b []byte, id uint32, status byte, r *reply) []byte {
	fields := [4]int{len(r.ekt), len(r.out), len(r.public), len(r.detail)}
	size := replyHeader - 4
	for _, n := range fields {
		size += n
	}
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = binary.BigEndian.AppendUint32(b, id)
	b = append(b, status)
	b = binary.BigEndian.AppendUint32(b, r.number)
	for _, n := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	}
	return append(append(append(append(b, r.ekt...), r.out...), r.public...), r.detail...)
}

// size is how many bytes a reply takes.
func (r *reply) size() int {
	return replyHeader + len(r.ekt) + len(r.out) + len(r.public) + len(r.detail)
}

// parseReply reads a frame without its size. The reply's slices are parts of it.
func parseReply(b []byte, r *reply) (id uint32, status byte, err error) {
	const header = replyHeader - 4
	if len(b) < header {
		return 0, 0, errFrame
	}
	id, status = binary.BigEndian.Uint32(b), b[4]
	*r = reply{number: binary.BigEndian.Uint32(b[5:])}
	fields := [4]*[]byte{(*[]byte)(&r.ekt), &r.out, &r.public, &r.detail}
	return id, status, split(b[9:header], b[header:], fields[:])
}

// nextFrame cuts the first frame off what has been read, without its size. It
// returns nil if more must be read, and how many bytes the frame takes then.
func nextFrame(b []byte) (frame, rest []byte, want int, err error) {
	if len(b) < 4 {
		return nil, b, 4, nil
	}
	size := binary.BigEndian.Uint32(b)
	if size > largestFrame {
		return nil, b, 0, fmt.Errorf("%w: %d bytes", errFrame, size)
	}
	if uint64(len(b)) < 4+uint64(size) {
		return nil, b, 4 + int(size), nil
	}
	return b[4 : 4+size], b[4+size:], 0, nil
}
