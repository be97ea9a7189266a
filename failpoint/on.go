//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
)

var (
	armed = os.Getenv("TRENT_FAILPOINT")
	// skip is how often the armed point passes before it kills the process.
	skip atomic.Int64
)

func init() {
	if n, err := strconv.ParseInt(os.Getenv("TRENT_FAILPOINT_SKIP"), 10, 64); err == nil {
		skip.Store(n)
	}
}

// Hit kills the process with SIGKILL if the point is armed by TRENT_FAILPOINT.
// TRENT_FAILPOINT_SKIP is the number of passes to let through first.
func Hit(point string) {
	if !slices.Contains(Points, point) {
		panic(fmt.Sprintf("failpoint %q is not listed in failpoint.Points", point))
	}
	if point != armed || skip.Add(-1) >= 0 {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
