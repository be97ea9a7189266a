package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trent-kms/trent/hsm"
)

// leakCmd unwraps, uses and destroys keys, and tells how the memory of this
// process and its workers grows.
type leakCmd struct {
	Cycles    int64  `default:"1000000" help:"How many keys to unwrap, use and destroy."`
	Isolation string `enum:"worker,in-process" default:"worker" help:"Where the module runs."`
	Bound     int64  `default:"384" help:"MiB that process and workers together may grow by; more is an error."`
}

// Run measures and prints.
func (l leakCmd) Run(ctx context.Context) (err error) {
	b, err := newMemberBench(ctx, []int{1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	way := b.ways([]int{1})[1]
	if way.Isolation = hsm.Isolation(l.Isolation); way.Isolation == hsm.IsolationNone {
		way = b.ways(nil)[0]
	}
	domain, err := hsm.OpenDomain(ctx, way)
	if err != nil {
		return fmt.Errorf("opening the domain: %w", err)
	}
	defer domain.Close()
	key, _, err := domain.GenerateAES(ctx)
	if err != nil {
		return err
	}
	begin, err := familyMemory()
	if err != nil {
		return err
	}
	var (
		most   int64
		done   atomic.Int64
		group  sync.WaitGroup
		faults = make([]error, callers)
	)
	for i := range callers {
		group.Go(func() {
			for faults[i] == nil && done.Add(1) <= l.Cycles {
				_, faults[i] = domain.CheckValue(ctx, key) // unwraps, computes a MAC, destroys
			}
		})
	}
	ended := make(chan struct{})
	go func() { group.Wait(); close(ended) }()
	for going := true; going; {
		select {
		case <-ended:
			going = false
		case <-time.After(time.Second):
		}
		now, err := familyMemory()
		if err != nil {
			return err
		}
		grown := now - begin
		most = max(most, grown)
		fmt.Printf("%9d cycles: %+6.1f MiB\n", min(done.Load(), l.Cycles), float64(grown)/(1<<20))
	}
	fmt.Printf("most: %+.1f MiB\n", float64(most)/(1<<20))
	if most > l.Bound<<20 {
		faults = append(faults, fmt.Errorf("memory grew by %d MiB, more than %d", most>>20, l.Bound))
	}
	return errors.Join(faults...)
}
