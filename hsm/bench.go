package hsm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// benchPlain is how many bytes RawBench seals or opens per operation.
const benchPlain = 32

// RawBench measures the device: sessions callers, each with a session of its
// own, run the fused AES-GCM call on 32 bytes in a loop for d, without queue,
// cache or copies. It is what the rest of this package is measured against.
func RawBench(cfg Config, d time.Duration, sessions int, decrypt bool) (opsPerSec float64, err error) {
	cfg.Metrics = nil
	t, err := Open(context.Background(), cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	return t.rate(d, sessions, decrypt)
}

func (t *Token) rate(d time.Duration, sessions int, decrypt bool) (perSecond float64, err error) {
	callers := make([]*session, sessions)
	for i := range callers {
		if callers[i], err = t.openSession(); err != nil {
			return 0, err
		}
		defer callers[i].close()
	}
	key, err := callers[0].probeKey()
	if err != nil {
		return 0, err
	}
	counts, codes := make([]int, sessions), make([]uint, sessions)
	var group sync.WaitGroup
	start := time.Now()
	for i, s := range callers {
		group.Go(func() { counts[i], codes[i] = s.spin(key, d, decrypt) })
	}
	group.Wait()
	took := time.Since(start)
	total := 0
	for i, n := range counts {
		if err := codeError("calling", codes[i]); err != nil {
			return 0, err
		}
		total += n
	}
	return float64(total) / took.Seconds(), nil
}

// spin repeats one call until d is over.
func (s *session) spin(key pkcs11.ObjectHandle, d time.Duration, decrypt bool) (n int, code uint) {
	native := s.t.module.native
	aad, in := make([]byte, 64), make([]byte, benchPlain)
	r := sealRequest(0, s.t.ivs(), aad, in)
	defer r.end()
	if r.key = key; decrypt {
		if code := s.seal(r); code != pkcs11.CKR_OK {
			return 0, code
		}
		r.iv, in = splitSealed(r.out[:r.length], benchPlain)
	}
	iv, out := r.iv, make([]byte, benchPlain+tagSize+maxIV)
	for end := time.Now().Add(d); time.Now().Before(end); {
		for range 64 { // so that the clock is not what is measured
			if _, code = native.gcm(decrypt, s.handle, key, iv, aad, in, out); code != pkcs11.CKR_OK {
				return n, code
			}
			n++
		}
	}
	return n, code
}
