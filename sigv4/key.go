package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"hash"
	"sync"
)

// Key is a signing key: it holds for one access key, day, region and service.
// It may be used concurrently.
type Key struct {
	macs sync.Pool // of hash.Hash: HMAC-SHA-256 with the key set up, which costs as much as a signature
}

// DeriveSigningKey continues the SigV4 key derivation from kDate, the 32 bytes
// of HMAC-SHA-256("AWS4"‖secret, YYYYMMDD), to the signing key of a region and
// service.
func DeriveSigningKey(kDate []byte, region, service string) *Key {
	key := kDate
	for _, step := range []string{region, service, terminator} {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(step))
		key = h.Sum(nil)
	}
	return newKey(key)
}

func newKey(key []byte) *Key {
	return &Key{macs: sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

// noKey stands in for the key of an unknown access key, so that such a request
// costs what a badly signed one costs. Nothing it matches is let in.
var noKey = newKey(make([]byte, sha256.Size))

// empty is true of what DeriveSigningKey has not made.
func (k *Key) empty() bool { return k == nil || k.macs.New == nil }

// appendMAC appends the HMAC of text, which may be what dst[:cap(dst)] holds.
func (k *Key) appendMAC(dst, text []byte) []byte {
	h := k.macs.Get().(hash.Hash)
	h.Reset()
	h.Write(text)
	dst = h.Sum(dst)
	k.macs.Put(h)
	return dst
}
