// Package softhsmtest runs AWS's own clients against the real trent binary, a
// real SoftHSM token and a real Postgres. Nothing of Trent runs inside the
// test process, except in the helper process of helper_test.go.
package softhsmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// workspace is the folder of the test process: binaries, tokens, logs.
var workspace string

func TestMain(m *testing.M) {
	if job := os.Getenv("TRENT_TEST_HELPER"); job != "" {
		os.Exit(helper(job))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	workspace, err = os.MkdirTemp("", "trent-softhsm-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making workspace:", err)
		return 1
	}
	defer os.RemoveAll(workspace)
	defer closeShared()
	return m.Run()
}

// program builds cmd/trent once per set of build tags.
func program(t testing.TB, tags string) string {
	t.Helper()
	build := normalBuild
	if tags == "failpoint" {
		build = failpointBuild
	}
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	normalBuild    = sync.OnceValues(func() (string, error) { return goBuild("trent", "") })
	failpointBuild = sync.OnceValues(func() (string, error) { return goBuild("trent-failpoint", "failpoint") })
)

func goBuild(name, tags string) (string, error) {
	path := filepath.Join(workspace, name)
	out, err := exec.Command("go", "build", "-tags", tags, "-o", path, "../cmd/trent").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", name, err, out)
	}
	return path, nil
}
