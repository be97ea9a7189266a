package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// target is a server under load.
type target struct {
	address     string
	pid         int
	postgres    int // process id of its postmaster, 0 = none
	credentials credentials
	jobs        []job
}

// job is one kind of request. request returns its bytes as they go on the
// wire, freshly signed, for one connection; every answer must be a 200 whose
// body holds wanted.
type job struct {
	name    string
	request func(t *target, connection int) ([]byte, error)
	wanted  []byte
	aimed   bool // the project states an aim for it
	only    int  // the one number of connections that it is measured at; 0 = all
}

// measure loads the target through a number of connections, each of which
// has one request under way at a time.
func (t *target) measure(ctx context.Context, j job, connections int, d time.Duration) (figure, error) {
	requests := make([][]byte, connections)
	for i := range requests {
		var err error
		if requests[i], err = j.request(t, i); err != nil {
			return figure{}, err
		}
	}
	// What is not yet cached is not what is measured.
	if _, err := t.load(ctx, requests, j.wanted, min(d, 300*time.Millisecond)); err != nil {
		return figure{}, err
	}
	before, err := t.usage()
	if err != nil {
		return figure{}, err
	}
	start := time.Now()
	latencies, err := t.load(ctx, requests, j.wanted, d)
	if err != nil {
		return figure{}, err
	}
	took := time.Since(start)
	after, err := t.usage()
	if err != nil {
		return figure{}, err
	}
	f := newFigure(j.name, connections, latencies, took, after.since(before))
	f.aimed = j.aimed
	return f, nil
}

// usage is the CPU time used so far.
type usage struct{ server, postgres, client time.Duration }

func (u usage) since(v usage) usage {
	return usage{u.server - v.server, u.postgres - v.postgres, u.client - v.client}
}

func (t *target) usage() (u usage, err error) {
	u.client = ownCPU()
	// Of a server that runs the HSM's module in worker processes, they are part.
	if u.server, err = familyCPU(t.pid); err == nil && t.postgres != 0 {
		u.postgres, err = familyCPU(t.postgres)
	}
	return u, err
}

// load sends each request over a connection of its own again and again, and
// returns all latencies.
func (t *target) load(ctx context.Context, requests [][]byte, wanted []byte, d time.Duration) ([]time.Duration, error) {
	var group sync.WaitGroup
	latencies, faults := make([][]time.Duration, len(requests)), make([]error, len(requests))
	end := time.Now().Add(d)
	for i, request := range requests {
		group.Go(func() { latencies[i], faults[i] = t.loadOne(ctx, request, wanted, end) })
	}
	group.Wait()
	return slices.Concat(latencies...), errors.Join(faults...)
}

func (t *target) loadOne(ctx context.Context, request, wanted []byte, end time.Time) (latencies []time.Duration, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is under way on it
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	latencies = make([]time.Duration, 0, 1<<14)
	reader := bufio.NewReaderSize(conn, 8<<10)
	body := make([]byte, 8<<10)
	for now := time.Now(); now.Before(end); {
		if _, err := conn.Write(request); err != nil {
			return nil, fmt.Errorf("sending: %w", err)
		}
		status, n, err := readAnswer(reader, body)
		if err != nil {
			return nil, fmt.Errorf("reading an answer: %w", err)
		}
		if status != 200 || !bytes.Contains(body[:n], wanted) {
			return nil, fmt.Errorf("answered %d: %.300s", status, body[:n])
		}
		done := time.Now()
		latencies = append(latencies, done.Sub(now))
		now = done
	}
	return latencies, nil
}

var contentLength = []byte("content-length:")

// readAnswer reads one HTTP/1.1 response with a Content-Length into body.
func readAnswer(r *bufio.Reader, body []byte) (status, n int, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, 0, err
	}
	if len(line) < 12 {
		return 0, 0, fmt.Errorf("status line %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, fmt.Errorf("status line %q", line)
	}
	n = -1
	for {
		if line, err = r.ReadSlice('\n'); err != nil {
			return 0, 0, err
		}
		if len(line) <= 2 {
			break
		}
		if len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength) {
			if n, err = strconv.Atoi(string(bytes.TrimSpace(line[len(contentLength):]))); err != nil {
				return 0, 0, fmt.Errorf("header %q", line)
			}
		}
	}
	if n < 0 || n > len(body) {
		return 0, 0, fmt.Errorf("an answer of %d bytes", n)
	}
	_, err = io.ReadFull(r, body[:n])
	return status, n, err
}
