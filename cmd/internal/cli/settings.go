package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Env returns the environment variable of a setting: listen-port has
// WEFT_LISTEN_PORT.
func Env(name string) string {
	return "WEFT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// Settings fills the persistent flags of cmd that the command line does not set:
// from the environment (--listen-port is WEFT_LISTEN_PORT; lists are separated by
// commas), then from the YAML file that --config names (listen-port: 51820). A key
// that no command of the program has is an error that names file and line.
func Settings(cmd *cobra.Command, env func(string) (string, bool)) error {
	var err error
	each := func(f *pflag.Flag) {
		value, ok := env(Env(f.Name))
		// A variable that is set to nothing counts as not set, as everywhere.
		if err != nil || f.Changed || !ok || value == "" || !isSetting(cmd, f.Name) {
			return
		}
		if e := set(f, strings.Split(value, ",")); e != nil {
			err = badValue(Env(f.Name), value, f, e)
		}
	}
	cmd.Flags().VisitAll(each)
	if err != nil {
		return err
	}
	path := ""
	if f := cmd.Flag("config"); f != nil {
		path = f.Value.String()
	}
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Missing(fmt.Errorf("settings: %w", err), path)
	}
	return applyFile(cmd, path, text)
}

// isSetting reports whether a flag can also come from environment and file.
func isSetting(cmd *cobra.Command, name string) bool {
	return name != "help" && name != "version" && (cmd.PersistentFlags().Lookup(name) != nil || cmd.InheritedFlags().Lookup(name) != nil)
}

// set gives a flag its value as if it had been on the command line.
func set(f *pflag.Flag, values []string) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		f.Changed = true
		return list.Replace(values)
	}
	if err := f.Value.Set(strings.Join(values, ",")); err != nil {
		return err
	}
	f.Changed = true
	return nil
}

func applyFile(cmd *cobra.Command, path string, text []byte) error {
	entries, err := parseSettings(path, text)
	if err != nil {
		return err
	}
	known := settingNames(cmd.Root())
	for _, e := range entries {
		if !known[e.key] {
			err := Usagef("%s:%d: unknown key %q", path, e.line, e.key)
			var names []string
			for name := range known {
				names = append(names, name)
			}
			if near := Nearest(e.key, names); near != "" {
				return hintf(err, "did you mean %q?", near)
			}
			return hintf(err, "keys are the names of flags; \"%s --help\" lists them", cmd.CommandPath())
		}
		f := cmd.Flag(e.key)
		if f == nil || f.Changed || !isSetting(cmd, e.key) {
			continue
		}
		if _, list := f.Value.(pflag.SliceValue); e.list && !list {
			return Usagef("%s:%d: %s takes one value, not a list", path, e.line, e.key)
		}
		if err := set(f, e.values); err != nil {
			return badValue(fmt.Sprintf("%s:%d: %s", path, e.line, e.key), strings.Join(e.values, ","), f, err)
		}
	}
	return nil
}

// settingNames returns the keys that some command of the program knows.
func settingNames(cmd *cobra.Command) map[string]bool {
	names := map[string]bool{}
	cmd.PersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" && f.Name != "help" && f.Name != "version" {
			names[f.Name] = true
		}
	})
	for _, c := range cmd.Commands() {
		for name := range settingNames(c) {
			names[name] = true
		}
	}
	return names
}

// setting is one entry of a settings file.
type setting struct {
	key    string
	line   int
	values []string
	list   bool
}

// parseSettings reads a flat YAML mapping of scalars and lists of scalars.
func parseSettings(path string, text []byte) ([]setting, error) {
	file, err := parser.ParseBytes(text, 0)
	var syntax yaml.Error
	switch {
	case errors.As(err, &syntax) && syntax.GetToken() != nil:
		return nil, hintf(Usagef("%s:%d: %s", path, syntax.GetToken().Position.Line, syntax.GetMessage()),
			"put values with ':', '[' or '#' in them in quotes")
	case err != nil:
		return nil, Usagef("%s: %w", path, err)
	}
	var out []setting
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		var pairs []*ast.MappingValueNode
		switch body := doc.Body.(type) {
		case *ast.MappingNode:
			pairs = body.Values
		case *ast.MappingValueNode:
			pairs = []*ast.MappingValueNode{body}
		case *ast.NullNode, *ast.CommentGroupNode:
		default:
			return nil, Usagef("%s:%d: want lines of the form \"key: value\"", path, line(body))
		}
		for _, p := range pairs {
			e, err := parseSetting(path, p)
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
	}
	return out, nil
}

func parseSetting(path string, p *ast.MappingValueNode) (setting, error) {
	key, ok := scalar(p.Key)
	e := setting{key: key, line: line(p.Key)}
	if !ok {
		return e, Usagef("%s:%d: a key must be a plain word", path, e.line)
	}
	if list, ok := p.Value.(*ast.SequenceNode); ok {
		e.list = true
		for _, n := range list.Values {
			v, ok := scalar(n)
			if !ok {
				return e, Usagef("%s:%d: %s: want a list of plain values", path, line(n), key)
			}
			e.values = append(e.values, v)
		}
		return e, nil
	}
	v, ok := scalar(p.Value)
	if !ok {
		return e, Usagef("%s:%d: %s: want a plain value or a list", path, e.line, key)
	}
	e.values = []string{v}
	return e, nil
}

// scalar returns a node's text as it stands in the file.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.NullNode, *ast.MergeKeyNode:
		return "", false
	case ast.ScalarNode:
		if t := n.GetToken(); t != nil {
			return t.Value, true
		}
	}
	return "", false
}

func line(n ast.Node) int {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 1
	}
	return n.GetToken().Position.Line
}

// Nearest returns the candidate that word was most likely meant to be: the one
// with the fewest edits, if these are few for its length, else "".
func Nearest(word string, candidates []string) string {
	best, least := "", 1+max(1, len(word)/3)
	for _, c := range candidates {
		if d := edits(word, c); d < least || d == least && best != "" && c < best {
			best, least = c, d
		}
	}
	return best
}

// edits is the number of letters to add, drop, replace or swap with the next one
// (the optimal string alignment distance).
func edits(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			d[i][j] = min(replace, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
