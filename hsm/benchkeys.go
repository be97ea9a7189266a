package hsm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// RawBenchKey is RawBench for keys of other specs. algorithm, AWS's name, is
// one that signs or makes a MAC; without it, key pairs of the spec are made
// and destroyed.
func RawBenchKey(cfg Config, d time.Duration, sessions int, spec, algorithm string) (opsPerSec float64, err error) {
	cfg.Metrics = nil
	t, err := Open(context.Background(), cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	calls := make([]func() error, sessions)
	for i := range calls {
		s, err := t.openSession()
		if err != nil {
			return 0, err
		}
		defer s.close()
		if calls[i], err = s.benchCall(specs[spec], algorithm); err != nil {
			return 0, fmt.Errorf("preparing a benchmark of %s: %w", spec, err)
		}
	}
	counts, faults := make([]int, sessions), make([]error, sessions)
	var group sync.WaitGroup
	start := time.Now()
	for i, call := range calls {
		group.Go(func() {
			for end := start.Add(d); time.Now().Before(end) && faults[i] == nil; counts[i]++ {
				faults[i] = call()
			}
		})
	}
	group.Wait()
	took := time.Since(start)
	total := 0
	for _, n := range counts {
		total += n
	}
	return float64(total) / took.Seconds(), errors.Join(faults...)
}

// benchCall is one bare operation with a key of the session's own, which ends
// with it.
func (s *session) benchCall(sp spec, algorithm string) (func() error, error) {
	p11, native := s.t.module.p11, s.t.module.native
	if algorithm == "" {
		return func() error {
			public, private, err := s.generatePair(sp, UseSign, privateUseTemplate(sp.keyType, pkcs11.CKA_SIGN))
			if err == nil {
				s.destroy(public)
				s.destroy(private)
			}
			return err
		}, nil
	}
	var key pkcs11.ObjectHandle
	var err error
	a, signs := signing[algorithm]
	in := proofDigest
	if signs {
		in = append(append([]byte(nil), a.prefix...), make([]byte, a.hash.Size())...)
		_, key, err = s.generatePair(sp, UseSign, privateUseTemplate(sp.keyType, pkcs11.CKA_SIGN))
	} else {
		a = macs[algorithm]
		key, err = p11.GenerateKey(s.handle, mechanism(sp.generate), sessionKeyTemplate(sp.keyType, sp.size, false, pkcs11.CKA_SIGN))
		err = deviceError("generating the benchmark's key", err)
	}
	out := make([]byte, a.size)
	return func() error {
		_, code := native.use(false, a.mechanism, a.parameters, s.handle, key, in, out)
		return codeError("calling", code)
	}, err
}
