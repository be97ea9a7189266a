package softhsmtest

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A shape is one of the service model's, as the tests read it: of its file, not
// through the code that is tested.
type shape struct {
	Type      string
	Min, Max  *int
	Pattern   string
	Enum      []string
	Sensitive bool
	Member    string
	Key       string
	Value     string
	Members   map[string]string
	Required  []string
}

type serviceModel struct {
	Operations map[string]struct {
		Input string
		IDs   map[string][]string // member → keyId, keyArn, aliasName, aliasArn
	}
	Shapes map[string]shape
}

var readModel = sync.OnceValues(func() (m serviceModel, err error) {
	raw, err := os.ReadFile("../awsjson/model.json")
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	return m, err
})

func modelOf(t testing.TB) serviceModel {
	t.Helper()
	return must(readModel())(t)
}

// operationTable says which of AWS's operations work. It is the README's table,
// which a test of package api holds true.
func operationTable(t testing.TB) (built, unbuilt []string) {
	t.Helper()
	for line := range strings.Lines(string(must(os.ReadFile("../README.md"))(t))) {
		cells := strings.Split(line, "|")
		for i := 1; i < len(cells); i++ {
			name := strings.TrimSpace(cells[i-1])
			switch strings.TrimSpace(cells[i]) {
			case "works":
				built = append(built, name)
			case "not yet":
				unbuilt = append(unbuilt, name)
			}
		}
	}
	if all := len(built) + len(unbuilt); all != 56 {
		t.Fatalf("the README's table has %d operations, want 56", all)
	}
	slices.Sort(built)
	return built, unbuilt
}

// lowered is a member's name in the paths of AWS's messages.
func lowered(name string) string { return strings.ToLower(name[:1]) + name[1:] }
