package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/trent-kms/trent/hsm"
)

// serveWorker is the process that a vendor's library runs in. It has no
// settings: what it must know comes over a socket from the process that
// started it.
func serveWorker() int {
	harden(slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err := hsm.ServeWorker(); err != nil {
		fmt.Fprintf(os.Stderr, "trent hsm-worker: %v\n", err)
		return exitFault
	}
	return 0
}
