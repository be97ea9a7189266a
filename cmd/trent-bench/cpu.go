package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of /proc/*/stat: USER_HZ, 100 on every Linux that Go
// runs on.
const tick = 10 * time.Millisecond

// stat holds what is read of proc_pid_stat(5).
type stat struct {
	parent         int
	own, reapedOwn time.Duration // user and system; of the process, of children that have ended
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, fmt.Errorf("reading CPU time: %w", err)
	}
	// The name, in parentheses, may hold anything; what follows are numbers.
	end := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[end+1:]))
	if end < 0 || len(fields) < 15 {
		return stat{}, fmt.Errorf("reading CPU time: /proc/%d/stat is %q", pid, text)
	}
	n := make([]int, 15)
	for i := 1; i < 15; i++ {
		n[i], _ = strconv.Atoi(fields[i])
	}
	return stat{parent: n[1], own: time.Duration(n[11]+n[12]) * tick, reapedOwn: time.Duration(n[13]+n[14]) * tick}, nil
}

// family is a process and its children.
func family(pid int) (map[int]stat, error) {
	s, err := readStat(pid)
	if err != nil {
		return nil, err
	}
	found := map[int]stat{pid: s}
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	for _, entry := range entries {
		child, err := strconv.Atoi(filepath.Base(entry))
		if err != nil {
			continue
		}
		if c, err := readStat(child); err == nil && c.parent == pid { // others may end while we look
			found[child] = c
		}
	}
	return found, nil
}

// familyCPU is the CPU time that a process and its children, living and ended,
// have used so far.
func familyCPU(pid int) (time.Duration, error) {
	members, err := family(pid)
	total := members[pid].reapedOwn
	for _, s := range members {
		total += s.own
	}
	return total, err
}

// ownCPU is that of this process: the load generator.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// familyMemory is the resident memory of this process and its children, in
// bytes.
func familyMemory() (int64, error) {
	members, err := family(os.Getpid())
	total := int64(0)
	for pid := range members {
		total += residentMemory(pid)
	}
	return total, err
}

// residentMemory is the second field of proc_pid_statm(5), in bytes.
func residentMemory(pid int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}
