package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What a hint tells people to type exists: every --flag is one of our programs',
// and every "weft noun verb" is a command.
func TestHintsCanBeTyped(t *testing.T) {
	t.Parallel()
	flags := map[string]bool{
		"device":    true,                                             // of container programs
		"endpoints": true, "trusted-ca-file": true, "cert-file": true, // of etcdctl and etcd
	}
	tree(root(), func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
		c.PersistentFlags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
	})
	for _, command := range [][]string{
		{"weft-agent", "run"}, {"weft-agent", "clean"}, {"weft-controller", "run"}, {"weft-controller", "restore"}, {"weft-controller", "migrate"},
	} {
		help, err := exec.Command(filepath.Join(programs(t), command[0]), command[1], "--help").Output()
		if err != nil {
			t.Fatalf("%v: %v", command, err)
		}
		for _, f := range flagWord.FindAllStringSubmatch(string(help), -1) {
			flags[f[1]] = true
		}
	}
	seen := 0
	for place, text := range hints(t) {
		for _, f := range flagWord.FindAllStringSubmatch(text, -1) {
			if seen++; !flags[f[1]] {
				t.Errorf("%s: no program has --%s: %q", place, f[1], text)
			}
		}
		for _, c := range commandWord.FindAllStringSubmatch(text, -1) {
			seen++
			cmd, rest, err := root().Find(strings.Fields(c[1]))
			if err != nil || cmd.HasSubCommands() && len(rest) > 0 {
				t.Errorf("%s: there is no command %q: %q", place, c[0], text)
			}
		}
	}
	if seen < 30 {
		t.Errorf("only %d flags and commands found in hints: this test looks in the wrong place", seen)
	}
}

var (
	flagWord    = regexp.MustCompile(`(?:^|[\s"(])--([a-z][a-z-]*[a-z])`)
	commandWord = regexp.MustCompile(`(?:^|: |; |["(])weft ((?:[a-z]+)(?: [a-z]+)?)`)
)

func tree(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		tree(sub, visit)
	}
}

// hints returns the strings that are given to WithHint and its likes, by place.
func hints(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	set := token.NewFileSet()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == "build" {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !hinting(call) {
				return true
			}
			for _, arg := range call.Args {
				if lit, ok := arg.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					out[set.Position(lit.Pos()).String()], _ = strconv.Unquote(lit.Value)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func hinting(call *ast.CallExpr) bool {
	name := ""
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		name = f.Sel.Name
	}
	return name == "WithHint" || name == "hintf" || name == "refuse"
}
