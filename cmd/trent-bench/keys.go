package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/trent-kms/trent/hsm"
)

// keyJob is an operation with a key that is not symmetric. Without algorithm
// it makes a data key pair, and seals its private half under an AES key.
type keyJob struct {
	name, spec, algorithm string
	use                   hsm.Use
}

var keyJobs = []keyJob{
	{"Sign RSA_2048 PSS", "RSA_2048", "RSASSA_PSS_SHA_256", hsm.UseSign},
	{"Sign ECC_NIST_P256", "ECC_NIST_P256", "ECDSA_SHA_256", hsm.UseSign},
	{"GenerateMac HMAC_256", "HMAC_256", "HMAC_SHA_256", hsm.UseMAC},
	{"GenerateDataKeyPair ECC_NIST_P256", "ECC_NIST_P256", "", 0},
}

// A cache with a copy for each core is of little use for four times as many
// keys in turn: nearly every call unwraps its key.
var (
	fewCopies = runtime.NumCPU()
	manyKeys  = 4 * fewCopies
)

// measureKeys fills in the figures of the module alone and of the hsm layer
// with keys that it holds ready, and with keys that it must unwrap first.
func (s *stack) measureKeys(ctx context.Context, d time.Duration, r *report) error {
	for _, job := range keyJobs {
		f := deviceFigure{Operation: job.name}
		for _, sessions := range []int{1, runtime.NumCPU()} {
			rate, err := hsm.RawBenchKey(s.deviceConfig(), d/2, sessions, job.spec, job.algorithm)
			if err != nil {
				return fmt.Errorf("measuring the module: %w", err)
			}
			if rate > f.Raw {
				f.Raw, f.RawSessions = rate, sessions
			}
		}
		var err error
		if f.Layer, err = s.keyRate(ctx, d, job, 0, 1); err != nil {
			return fmt.Errorf("measuring the hsm layer: %w", err)
		}
		if f.Uncached, err = s.keyRate(ctx, d, job, fewCopies, manyKeys); err != nil {
			return fmt.Errorf("measuring the hsm layer without its cache: %w", err)
		}
		f.Ratio = f.Layer / f.Raw
		r.Keys = append(r.Keys, f)
	}
	return nil
}

// keyRate is operations per second of the hsm package under 16 callers, who
// use a number of keys in turn.
func (s *stack) keyRate(ctx context.Context, d time.Duration, job keyJob, cache, keys int) (rate float64, err error) {
	cfg := s.deviceConfig()
	cfg.HandleCache = cache
	token, err := hsm.Open(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	domain, _, err := benchKey(ctx, token)
	if err != nil {
		return 0, err
	}
	ekts := make([]hsm.EKT, keys)
	for i := range ekts {
		if job.algorithm == "" {
			ekts[i], _, err = domain.GenerateAES(ctx)
		} else {
			var made hsm.Material
			made, err = domain.Generate(ctx, job.spec, job.use)
			ekts[i] = made.EKT
		}
		if err != nil {
			return 0, err
		}
	}
	var turn atomic.Uint64
	return hammer(d, func() error {
		ekt := ekts[turn.Add(1)%uint64(len(ekts))]
		return job.call(ctx, domain, ekt)
	})
}

func (j keyJob) call(ctx context.Context, domain *hsm.Domain, ekt hsm.EKT) error {
	var message [32]byte
	switch {
	case j.use == hsm.UseMAC:
		_, err := domain.MAC(ctx, ekt, j.algorithm, message[:])
		return err
	case j.algorithm != "":
		_, err := domain.Sign(ctx, ekt, j.algorithm, message[:])
		return err
	}
	private, _, err := domain.GenerateDataKeyPair(ctx, j.spec)
	if err != nil {
		return err
	}
	defer clear(private)
	_, _, err = domain.Encrypt(ctx, ekt, nil, private)
	return err
}
