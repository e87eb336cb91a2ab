// Reads a Dockerfile as BuildKit does, and prints its stages as JSON. What BuildKit refuses, or warns of,
// ends it.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

type copied struct {
	From    string   `json:"from"`
	Sources []string `json:"sources"`
	To      string   `json:"to"`
}

type stage struct {
	Name       string            `json:"name"`
	Base       string            `json:"base"`
	Env        map[string]string `json:"env"`
	Labels     map[string]string `json:"labels"`
	Folder     string            `json:"folder"`
	User       string            `json:"user"`
	Entrypoint []string          `json:"entrypoint"`
	Copies     []copied          `json:"copies"`
	Runs       []string          `json:"runs"`
}

func main() {
	path := os.Args[1]
	stages, err := read(path)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(stages); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(path string) ([]stage, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	tree, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	var warnings []string
	for _, warning := range tree.Warnings {
		warnings = append(warnings, warning.Short)
	}
	judge := linter.New(&linter.Config{
		Warn: func(rule, about, _, said string, _ []parser.Range) {
			warnings = append(warnings, fmt.Sprintf("%s: %s: %s", rule, about, said))
		},
	})
	read, _, err := instructions.Parse(tree.AST, judge)
	if err != nil {
		return nil, err
	}
	if len(warnings) > 0 {
		return nil, fmt.Errorf("%s", strings.Join(warnings, "; "))
	}
	var stages []stage
	for _, one := range read {
		said := stage{Name: one.Name, Base: one.BaseName, Env: map[string]string{}, Labels: map[string]string{}}
		for _, command := range one.Commands {
			switch it := command.(type) {
			case *instructions.EnvCommand:
				for _, pair := range it.Env {
					said.Env[pair.Key] = pair.Value
				}
			case *instructions.LabelCommand:
				for _, pair := range it.Labels {
					said.Labels[pair.Key] = pair.Value
				}
			case *instructions.WorkdirCommand:
				said.Folder = it.Path
			case *instructions.UserCommand:
				said.User = it.User
			case *instructions.EntrypointCommand:
				if it.PrependShell {
					return nil, fmt.Errorf("%s: its entrypoint needs a shell", one.Name)
				}
				said.Entrypoint = it.CmdLine
			case *instructions.CopyCommand:
				said.Copies = append(said.Copies, copied{it.From, it.SourcePaths, it.DestPath})
			case *instructions.RunCommand:
				said.Runs = append(said.Runs, strings.Join(it.CmdLine, " "))
			default:
				return nil, fmt.Errorf("%s: %s is not expected", one.Name, command.Name())
			}
		}
		stages = append(stages, said)
	}
	return stages, nil
}
