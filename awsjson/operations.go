package awsjson

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
)

//go:generate sh -c "go run ./internal/genmodel $KMS_MODEL > model.json"

// modelJSON is the KMS service model, reduced to operations and the shapes of
// their requests. To renew it: KMS_MODEL=<file> go generate ./awsjson
//
//go:embed model.json
var modelJSON []byte

// OperationModel holds the facts of one KMS operation. Its maps and slices are
// shared: treat them as read-only.
type OperationModel struct {
	Name         string              // e.g. "Encrypt"; on the wire "TrentService.Encrypt"
	HasOutput    bool                // false: success has an empty body
	ReadOnly     bool                // the readOnly flag of its audit record
	DryRun       bool                // has a DryRun parameter
	CrossAccount bool                // may name a key of another account
	GrantTokens  bool                // has a GrantTokens parameter
	Permission   string              // "keypolicy", "iam", "alias:iam+key:keypolicy" or "grant"
	IDs          map[string][]string // member → accepted forms: keyId, keyArn, aliasName, aliasArn
	Errors       []string            // modelled exceptions, sorted
	input        string              // shape of the request
}

type shapeModel struct {
	Type      string            `json:"type"`
	Min       *int              `json:"min"`
	Max       *int              `json:"max"`
	Pattern   string            `json:"pattern"`
	Enum      []string          `json:"enum"`
	Sensitive bool              `json:"sensitive"`
	Member    string            `json:"member"`
	Key       string            `json:"key"`
	Value     string            `json:"value"`
	Members   map[string]string `json:"members"`
	Required  []string          `json:"required"`
}

type model struct {
	operations map[string]OperationModel
	shapes     map[string]shapeModel
	sensitive  map[string]bool // names of members whose shape is sensitive
}

// theModel parses the embedded file once. It is part of the program, so a file
// that does not parse is a programming error and every test meets it.
var theModel = sync.OnceValue(func() *model {
	m, err := parseModel(modelJSON)
	if err != nil {
		panic(err)
	}
	return m
})

func parseModel(raw []byte) (*model, error) {
	var file struct {
		Operations map[string]struct {
			Input        string              `json:"input"`
			Output       *string             `json:"output"`
			IDs          map[string][]string `json:"ids"`
			CrossAccount bool                `json:"crossAccount"`
			Permission   string              `json:"permission"`
			ReadOnly     bool                `json:"trailReadOnly"`
			DryRun       bool                `json:"dryRun"`
			GrantTokens  bool                `json:"grantTokens"`
			Errors       []string            `json:"errors"`
		} `json:"operations"`
		Shapes map[string]shapeModel `json:"shapes"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("parsing the embedded service model: %w", err)
	}
	m := &model{operations: map[string]OperationModel{}, shapes: file.Shapes, sensitive: map[string]bool{}}
	for name, op := range file.Operations {
		m.operations[name] = OperationModel{
			Name: name, HasOutput: op.Output != nil, ReadOnly: op.ReadOnly, DryRun: op.DryRun,
			CrossAccount: op.CrossAccount, GrantTokens: op.GrantTokens, Permission: op.Permission,
			IDs: op.IDs, Errors: op.Errors, input: op.Input,
		}
	}
	for _, s := range file.Shapes {
		for member, target := range s.Members {
			if file.Shapes[target].Sensitive {
				m.sensitive[member] = true
			}
		}
	}
	return m, nil
}

// Operation returns the facts of the named operation, and whether KMS has it.
func Operation(name string) (OperationModel, bool) {
	op, ok := theModel().operations[name]
	return op, ok
}

// Operations returns all operations of KMS, sorted by name.
func Operations() []OperationModel {
	ops := theModel().operations
	all := make([]OperationModel, 0, len(ops))
	for _, name := range slices.Sorted(maps.Keys(ops)) {
		all = append(all, ops[name])
	}
	return all
}
