package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"
)

const defaultConfigFile = "/etc/trent/trent.toml"

// BeforeResolve reads the configuration file, so that kong asks it for what
// neither the command line nor the environment has set.
func (c *cli) BeforeResolve(ctx *kong.Context) error {
	path := defaultConfigFile
	for _, flag := range ctx.Model.Flags {
		if flag.Name == "config" {
			if given, ok := ctx.FlagValue(flag).(string); ok && given != "" {
				path = given
			}
		}
	}
	// What is set up on a machine for production is not for dev.
	if path == defaultConfigFile && strings.HasPrefix(ctx.Command(), "dev") {
		return nil
	}
	file, err := readConfigFile(path)
	if errors.Is(err, os.ErrNotExist) && path == defaultConfigFile {
		return nil
	}
	if err != nil {
		return err
	}
	ctx.AddResolver(file)
	// Before kong looks at the settings: a misspelt name explains a missing one.
	return file.Validate(ctx.Model)
}

// configFile is a kong.Resolver.
type configFile struct {
	path     string
	settings map[string]any
}

func readConfigFile(path string) (*configFile, error) {
	f := &configFile{path: path}
	_, err := toml.DecodeFile(path, &f.settings)
	var syntax toml.ParseError
	if errors.As(err, &syntax) {
		return nil, fmt.Errorf("reading configuration file %s: %s", path, syntax.Error())
	}
	if err != nil {
		return nil, fmt.Errorf("reading configuration file: %w", err)
	}
	return f, nil
}

// Validate refuses a setting that no command has: a misspelt one would
// otherwise silently keep its default.
func (f *configFile) Validate(app *kong.Application) error {
	known := map[string]bool{}
	nodes := []*kong.Node{app.Node}
	for len(nodes) > 0 {
		for _, flag := range nodes[0].Flags {
			known[flag.Name] = true
		}
		nodes = append(nodes[1:], nodes[0].Children...)
	}
	var unknown []string
	for name := range f.settings {
		if !known[name] || name == "config" || name == "help" {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return fmt.Errorf("configuration file %s: no such setting: %s (settings have the names of the flags in trent serve --help; secrets stand in files of their own)",
			f.path, strings.Join(unknown, ", "))
	}
	return nil
}

// Resolve implements kong.Resolver. The environment goes before the file; an
// empty variable counts as not set.
func (f *configFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, name := range flag.Envs {
		if os.Getenv(name) != "" {
			return nil, nil
		}
	}
	switch value := f.settings[flag.Name].(type) {
	case nil:
		return nil, nil
	case []map[string]any:
		tables, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("configuration file %s: %s: %w", f.path, flag.Name, err)
		}
		return string(tables), nil
	case []any:
		var items []string
		for _, item := range value {
			items = append(items, fmt.Sprint(item))
		}
		return strings.Join(items, ","), nil
	case map[string]any:
		return nil, fmt.Errorf("configuration file %s: %s is a table, not a setting", f.path, flag.Name)
	default:
		return fmt.Sprint(value), nil
	}
}
