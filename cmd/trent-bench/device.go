package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/trent-kms/trent/hsm"
)

// callers is how many goroutines load the hsm layer.
const callers = 16

// deviceConfig names the token of the device's figures.
func (s *stack) deviceConfig() hsm.Config {
	return hsm.Config{Module: s.module, TokenLabel: "device", PIN: hsm.NewPIN([]byte(userPIN))}
}

// rounds is how often the module and the layer take turns, so that what else
// the machine does meets both. The best round counts.
const rounds = 3

// measureDevice fills in the figures of the module alone and of the hsm layer
// on it, each for encrypting and decrypting 32 B.
func (s *stack) measureDevice(ctx context.Context, d time.Duration, r *report) error {
	for _, decrypt := range []bool{false, true} {
		f := deviceFigure{Operation: "encrypt"}
		if decrypt {
			f.Operation = "decrypt"
		}
		for range rounds {
			for sessions := 1; sessions <= 2; sessions++ {
				rate, err := hsm.RawBench(s.deviceConfig(), d/rounds, sessions, decrypt)
				if err != nil {
					return fmt.Errorf("measuring the module: %w", err)
				}
				if rate > f.Raw {
					f.Raw, f.RawSessions = rate, sessions
				}
			}
			rate, err := s.layerRate(ctx, d/rounds, decrypt)
			if err != nil {
				return fmt.Errorf("measuring the hsm layer: %w", err)
			}
			f.Layer = max(f.Layer, rate)
		}
		f.Ratio = f.Layer / f.Raw
		r.Device = append(r.Device, f)
	}
	return nil
}

// layerRate is operations per second of the hsm package under 16 callers.
func (s *stack) layerRate(ctx context.Context, d time.Duration, decrypt bool) (rate float64, err error) {
	token, err := hsm.Open(ctx, s.deviceConfig())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, token.Close()) }()
	domain, key, err := benchKey(ctx, token)
	if err != nil {
		return 0, err
	}
	aad, text := make([]byte, 64), make([]byte, 32)
	iv, sealed, err := domain.Encrypt(ctx, key, aad, text)
	if err != nil {
		return 0, err
	}
	call := func() error {
		if decrypt {
			_, err := domain.Decrypt(ctx, key, iv, aad, sealed)
			return err
		}
		_, _, err := domain.Encrypt(ctx, key, aad, text)
		return err
	}
	return hammer(d, call)
}

// benchKey is a key under the token's domain, which is made if need be.
func benchKey(ctx context.Context, token *hsm.Token) (*hsm.Domain, hsm.EKT, error) {
	ids, err := token.Domains(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(ids) == 0 {
		ids = append(ids, hsm.DomainID(uuid.New()))
		if err := token.CreateDomain(ctx, ids[0]); err != nil {
			return nil, nil, err
		}
	}
	domain, err := token.OpenDomain(ctx, ids[0])
	if err != nil {
		return nil, nil, err
	}
	key, _, err := domain.GenerateAES(ctx)
	return hsm.DomainOf(domain), key, err
}

// hammer calls from 16 goroutines until d is over.
func hammer(d time.Duration, call func() error) (float64, error) {
	var (
		group sync.WaitGroup
		stop  atomic.Bool
		total atomic.Int64
	)
	faults := make(chan error, callers)
	start := time.Now()
	for range callers {
		group.Go(func() {
			n := int64(0)
			for !stop.Load() {
				if err := call(); err != nil {
					faults <- err
					return
				}
				n++
			}
			total.Add(n)
		})
	}
	time.Sleep(d)
	stop.Store(true)
	group.Wait()
	took := time.Since(start)
	select {
	case err := <-faults:
		return 0, err
	default:
		return float64(total.Load()) / took.Seconds(), nil
	}
}
