// Command genmodel reduces the KMS service model to what package awsjson needs:
// the facts of each operation, and the constraints of every shape that a
// request can contain. Output shapes and error shapes are left out.
//
//	go run ./internal/genmodel kms-model.json > model.json
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
)

type operation struct {
	Input        string              `json:"input"`
	Output       *string             `json:"output,omitempty"`
	IDs          map[string][]string `json:"ids,omitempty"`
	CrossAccount bool                `json:"crossAccount,omitempty"`
	Permission   string              `json:"permission"`
	ReadOnly     bool                `json:"trailReadOnly,omitempty"`
	DryRun       bool                `json:"dryRun,omitempty"`
	GrantTokens  bool                `json:"grantTokens,omitempty"`
	Errors       []string            `json:"errors"`
}

type shape struct {
	Type      string            `json:"type"`
	Min       *int              `json:"min,omitempty"`
	Max       *int              `json:"max,omitempty"`
	Pattern   string            `json:"pattern,omitempty"`
	Enum      []string          `json:"enum,omitempty"`
	Sensitive bool              `json:"sensitive,omitempty"`
	Member    string            `json:"member,omitempty"`
	Key       string            `json:"key,omitempty"`
	Value     string            `json:"value,omitempty"`
	Members   map[string]string `json:"members,omitempty"`
	Required  []string          `json:"required,omitempty"`
}

type model struct {
	Operations map[string]operation `json:"operations"`
	Shapes     map[string]shape     `json:"shapes"`
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "genmodel:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: genmodel kms-model.json")
	}
	raw, err := os.ReadFile(args[0])
	if err != nil {
		return fmt.Errorf("reading the service model: %w", err)
	}
	var full model
	if err := json.Unmarshal(raw, &full); err != nil {
		return fmt.Errorf("parsing the service model: %w", err)
	}
	reduced := model{Operations: full.Operations, Shapes: map[string]shape{}}
	for name, op := range full.Operations {
		if err := keep(full.Shapes, reduced.Shapes, op.Input); err != nil {
			return fmt.Errorf("following operation %s: %w", name, err)
		}
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	return enc.Encode(reduced)
}

// keep copies a shape and everything it refers to.
func keep(from, to map[string]shape, name string) error {
	if name == "" {
		return nil
	}
	if _, done := to[name]; done {
		return nil
	}
	s, ok := from[name]
	if !ok {
		return fmt.Errorf("shape %s is not in the model", name)
	}
	for _, r := range s.Required {
		if _, ok := s.Members[r]; !ok {
			return fmt.Errorf("shape %s requires %s, which is no member", name, r)
		}
	}
	to[name] = s
	refs := []string{s.Member, s.Key, s.Value}
	for _, member := range s.Members {
		refs = append(refs, member)
	}
	slices.Sort(refs)
	for _, ref := range refs {
		if err := keep(from, to, ref); err != nil {
			return err
		}
	}
	return nil
}
