package hsm

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"time"
)

// memoryInterval is how often a worker looks at its memory.
const memoryInterval = time.Second

// mostGrowth is after how many bytes of it a worker is to be replaced.
const mostGrowth = 256 << 20

// watchMemory asks for a successor when libraries that leak (SoftHSM: 243
// bytes for each unwrapped key, until it is finalised) have taken too much.
func (w *worker) watchMemory() {
	base := residentMemory()
	// Every live object is memory too, on tokens that are software.
	allowance := int64(w.token.cfg.HandleCache) * 2 * 16 << 10
	for range time.Tick(memoryInterval) {
		leaked := w.token.stats.unwraps.Load() >= w.settings.Unwraps
		grown := residentMemory()-base > mostGrowth+allowance
		if leaked || grown {
			_ = w.out.reply(0, statusNotice, &reply{number: noticeRetire})
		}
	}
}

// deviceInterval is how exactly a call that hangs is noticed.
const deviceInterval = 50 * time.Millisecond

// watchDevice ends this process when a call to the device hangs: the thread
// that is in it cannot be stopped by anything else. Of a recovery each step may
// take as long as a call: until it is through no call comes to the device, so
// that nothing else would show that it hangs.
func (w *worker) watchDevice() {
	limits := w.settings.Limits
	for now := range time.Tick(deviceInterval) {
		if w.token.module.stuck(now) > limits.Call {
			w.hung("a recovery of the HSM hangs: ending the worker", limits.Call)
		}
		for _, l := range w.token.lanes() {
			limit := limits.Call
			if l == w.token.maker {
				limit = limits.Make
			}
			if l.longest(now) > limit {
				w.hung("a call to the HSM hangs: ending the worker", limit)
			}
		}
	}
}

func (w *worker) hung(what string, limit time.Duration) {
	w.log.Error(what, "limit", limit)
	_ = w.out.reply(0, statusNotice, &reply{number: noticeHung})
	time.Sleep(deviceInterval) // for the notice; the other end kills at once
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// residentMemory is this process's, in bytes: the second field of
// proc_pid_statm(5). 0 where the system does not say.
func residentMemory() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(text)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
