package main

import (
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompare: what could be made to order is agreed to only as a whole.
func TestCompare(t *testing.T) {
	const value = "1f3a-90c2-77b1"
	for _, c := range []struct {
		typed  string
		last   int
		agreed bool
	}{
		{"2-77b1", ends, true},
		{"2-77B1", ends, true},
		{"2-77b2", ends, false},
		{value, len(value), true},
		{"2-77b1", len(value), false},
	} {
		answers := strings.NewReader(strings.Repeat(c.typed+"\n", 3))
		record, err := openTranscript(t.Context(), filepath.Join(t.TempDir(), "transcript"), answers, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		err = record.close(record.compare("the fingerprint", value, "elsewhere", c.last))
		if c.agreed && err != nil || !c.agreed && !errors.Is(err, errAbandoned) {
			t.Errorf("%q for the last %d of %q: %v", c.typed, c.last, value, err)
		}
	}
}
