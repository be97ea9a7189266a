//go:build !failpoint

package kms

import "time"

// clock is the default of Config.Now.
func clock() time.Time { return time.Now() }
