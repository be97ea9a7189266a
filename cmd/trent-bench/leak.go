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

// leakCmd unwraps, uses and destroys keys, encrypts with a cached one, and
// tells how the memory of this process and its workers grows.
type leakCmd struct {
	Cycles    int64  `default:"1000000" help:"How many keys to unwrap, use and destroy."`
	Messages  int64  `default:"8640000" help:"How many messages to encrypt then with one key: a day's at 100 a second."`
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
	m := memory{begin: begin}
	err = m.watch("cycles", l.Cycles, func() error {
		_, err := domain.CheckValue(ctx, key) // unwraps, computes a MAC, destroys
		return err
	})
	if err == nil {
		text := make([]byte, 32)
		err = m.watch("messages", l.Messages, func() error {
			_, _, err := domain.Encrypt(ctx, key, nil, text)
			return err
		})
	}
	fmt.Printf("most: %+.1f MiB\n", float64(m.most)/(1<<20))
	if m.most > l.Bound<<20 {
		err = errors.Join(err, fmt.Errorf("memory grew by %d MiB, more than %d", m.most>>20, l.Bound))
	}
	return err
}

// memory is how far this process and its workers have grown, in bytes.
type memory struct{ begin, most int64 }

// watch has many callers do something n times in all, and prints the growth
// meanwhile.
func (m *memory) watch(what string, n int64, do func() error) error {
	var (
		done   atomic.Int64
		group  sync.WaitGroup
		faults = make([]error, callers+1)
	)
	for i := range callers {
		group.Go(func() {
			for faults[i] == nil && done.Add(1) <= n {
				faults[i] = do()
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
			faults[callers] = err
			continue
		}
		m.most = max(m.most, now-m.begin)
		fmt.Printf("%9d %s: %+6.1f MiB\n", min(done.Load(), n), what, float64(now-m.begin)/(1<<20))
	}
	return errors.Join(faults...)
}
