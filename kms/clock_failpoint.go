//go:build failpoint

package kms

import (
	"os"
	"strings"
	"time"
)

// clock is ahead of the real one by the duration in the file that
// TRENT_TEST_CLOCK names, so that tests see a 7-day deletion in seconds.
func clock() time.Time {
	ahead := time.Duration(0)
	if text, err := os.ReadFile(os.Getenv("TRENT_TEST_CLOCK")); err == nil {
		if d, err := time.ParseDuration(strings.TrimSpace(string(text))); err == nil {
			ahead = d
		}
	}
	return time.Now().Add(ahead)
}
