package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Wherever the secret is read from, the variable is gone afterwards, and a
// file that others can open is warned of.
func TestSecret(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("from-"+name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private, group, others := file("private", 0o600), file("group", 0o640), file("others", 0o604)
	file("pin", 0o440)
	const env = "TRENT_PIN"
	for name, test := range map[string]struct {
		file, env, credentials string
		want                   string // "" = none
		warns                  bool
	}{
		"file":                         {private, "", "", "from-private", false},
		"file before variable":         {private, "from-env", dir, "from-private", false},
		"file for the group":           {group, "from-env", "", "from-group", true},
		"file for others":              {others, "", "", "from-others", true},
		"credential":                   {"", "", dir + "/", "from-pin", false},
		"credential as a file":         {dir + "/pin", "", dir, "from-pin", false},
		"that file, not a credential":  {dir + "/pin", "", "/elsewhere", "from-pin", true},
		"variable":                     {"", "from-env", "", "from-env", false},
		"variable before a credential": {"", "from-env", dir, "from-env", false},
		"a missing file":               {dir + "/none", "from-env", "", "", false},
		"nothing":                      {"", "", "", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			for variable, value := range map[string]string{env: test.env, "CREDENTIALS_DIRECTORY": test.credentials} {
				t.Setenv(variable, value) // restored when the test ends
				if value == "" {
					_ = os.Unsetenv(variable)
				}
			}
			var log bytes.Buffer
			got, err := pinSecret(test.file).read(slog.New(slog.NewTextHandler(&log, nil)))
			if string(got) != test.want || (err == nil) != (test.want != "") {
				t.Errorf("%q, %v", got, err)
			}
			if value, set := os.LookupEnv(env); set {
				t.Errorf("the environment still has %q", value)
			}
			if warned := strings.Contains(log.String(), "level=WARN"); warned != test.warns || strings.Contains(log.String(), "from-") {
				t.Errorf("log: %s", &log)
			}
		})
	}
}
