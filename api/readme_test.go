package api

import (
	"os"
	"strings"
	"testing"
)

// TestReadmeTable keeps the README's table of operations true.
func TestReadmeTable(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range operations {
		says := "not yet"
		if op.built {
			says = "works"
		}
		if line := "| " + op.name + " | " + says + " |"; !strings.Contains(string(text), line) {
			t.Errorf("README.md has no %q", line)
		}
	}
}
