package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// release is set by the linker for a release build.
var release = ""

type versionCmd struct{}

// Help implements kong.HelpProvider.
func (*versionCmd) Help() string {
	return "Example:\n\n    trent version"
}

// Run prints the version, the revision and the Go release.
func (*versionCmd) Run() error {
	_, err := fmt.Printf("trent %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// version is the release, or what the build knows of its revision.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, dirty := "", ""
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			revision = "-" + setting.Value[:min(12, len(setting.Value))]
		case setting.Key == "vcs.modified" && setting.Value == "true":
			dirty = "-modified"
		}
	}
	return "devel" + revision + dirty
}
