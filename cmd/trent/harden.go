package main

import (
	"bytes"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// harden keeps the process's memory to itself, as far as the system allows,
// and logs what was possible: plaintext data keys pass through it.
func harden(log *slog.Logger) {
	dumps := "off"
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		dumps = err.Error()
	}
	// Also denies ptrace and /proc/PID/mem to other processes of this user.
	ptrace := "denied"
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		ptrace = err.Error()
	}
	log.Info("process hardened", "core_dumps", dumps, "ptrace", ptrace, "swap", lockMemory())
}

// lockMemory keeps pages out of swap. Under a finite limit it is not tried:
// the Go runtime could not grow its heap any more and would crash.
func lockMemory() string {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return "possible: " + err.Error()
	}
	if limit.Cur != unix.RLIM_INFINITY && !mayLock() {
		return "possible: the memory lock limit is too low (set LimitMEMLOCK=infinity, or encrypt swap)"
	}
	// On fault: without it every page that Go has reserved would be loaded.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return "possible: " + err.Error()
	}
	return "denied"
}

// mayLock reports whether the process has CAP_IPC_LOCK, which lifts the limit.
func mayLock() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(status) {
		hex, found := strings.CutPrefix(string(line), "CapEff:")
		if !found {
			continue
		}
		caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		return err == nil && caps&(1<<unix.CAP_IPC_LOCK) != 0
	}
	return false
}
