package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

func TestCode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"no error", nil, 0},
		{"any error", errors.New("x"), 1},
		{"interrupted", context.Canceled, 1},
		{"usage", Usagef("x"), 2},
		{"refused value", fmt.Errorf("create: %w", api.ErrInvalid), 2},
		{"named thing missing", fmt.Errorf("show: %w", api.ErrNotFound), 3},
		{"a file of ours missing is a failure", os.ErrNotExist, 1},
		{"named file missing", WithCode(os.ErrNotExist, CodeNotFound), 3},
		{"no credential", api.ErrUnauthorized, 4},
		{"not allowed", api.ErrForbidden, 4},
		{"token", api.ErrToken, 4},
		{"permission", &os.PathError{Op: "open", Path: "x", Err: os.ErrPermission}, 4},
		{"wrong pin", fmt.Errorf("%w: %w", api.ErrUnreachable, enroll.ErrPin), 4},
		{"clock years off", fmt.Errorf("%w: %w", api.ErrUnreachable, x509.CertificateInvalidError{Reason: x509.Expired}), 4},
		{"exists", api.ErrExists, 1},
		{"unreachable", fmt.Errorf("x: %w", api.ErrUnreachable), 5},
		{"store away", api.ErrUnavailable, 5},
		{"agent away", local.ErrNotRunning, 5},
		{"the command's own", Exit(137), 137},
		{"the command's own, none", Exit(0), 0},
		{"hint keeps the code", mesh.WithHint(Usagef("x"), "y"), 2},
	} {
		if got := Code(tt.err); got != tt.want {
			t.Errorf("%s: Code(%v) = %d, want %d", tt.name, tt.err, got, tt.want)
		}
	}
}

// The exit code of `weft run` is its command's: failures of its own do not look
// like one.
func TestOwnCode(t *testing.T) {
	t.Parallel()
	run := &cobra.Command{Annotations: map[string]string{OwnCode: "125"}}
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0}, {Exit(2), 2}, {Exit(137), 137}, {Usagef("x"), 125}, {errors.New("x"), 125}, {WithCode(errors.New("x"), 127), 127},
	} {
		if got := codeOf(run, tt.err); got != tt.want {
			t.Errorf("codeOf(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
	if got := codeOf(&cobra.Command{}, Usagef("x")); got != CodeUsage {
		t.Errorf("codeOf of an ordinary command = %d, want %d", got, CodeUsage)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"no error", nil, ""},
		{"silent", Exit(3), ""},
		{"plain", errors.New("open x: no"), "weft: open x: no\n"},
		{"hint", fmt.Errorf("up: %w", mesh.WithHint(errors.New("no"), "try %s", "again")), "weft: up: no\nweft: hint: try again\n"},
		{"joined errors are one line", errors.Join(errors.New("a"), errors.New("b")), "weft: a; b\n"},
		{"interrupted", fmt.Errorf("x: %w", context.Canceled), "weft: interrupted\n"},
		{"permission", os.ErrPermission, "weft: permission denied\nweft: hint: run it as root, for example with sudo\n"},
		{"the controller's hint", &api.Error{Code: "forbidden", Message: "no", Advice: "ask"}, "weft: no\nweft: hint: ask\n"},
	} {
		var out bytes.Buffer
		Report(&out, "weft", tt.err)
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// tree is a program with one flag of each kind.
func tree() (*cobra.Command, *flags) {
	f := &flags{}
	root := &cobra.Command{Use: "weft"}
	noun := &cobra.Command{Use: "org", Short: "orgs"}
	verb := &cobra.Command{Use: "list", Short: "list", Aliases: []string{"ls"}, Args: Args("[NAME]"), RunE: func(*cobra.Command, []string) error { return nil }}
	p := verb.PersistentFlags()
	p.IntVar(&f.port, "listen-port", 51820, "")
	p.StringArrayVar(&f.servers, "controller", nil, "")
	p.StringVar(&f.name, "name", "", "")
	p.BoolVar(&f.nat, "nat", false, "")
	p.DurationVar(&f.ttl, "ttl", time.Hour, "")
	p.Var(NewChoice("text", "json"), "log-format", "")
	verb.Flags().String("only-here", "", "")
	noun.AddCommand(verb)
	other := &cobra.Command{Use: "up", Short: "up", RunE: func(*cobra.Command, []string) error { return nil }}
	other.PersistentFlags().String("state-dir", "", "")
	root.AddCommand(noun, other)
	return root, f
}

type flags struct {
	port    int
	servers []string
	name    string
	nat     bool
	ttl     time.Duration
}

// execute runs the tree without touching the test's own stdout.
func execute(root *cobra.Command, args ...string) error {
	Prepare(root)
	root.SetOut(new(bytes.Buffer))
	root.SetErr(new(bytes.Buffer))
	root.SetArgs(args)
	return root.Execute()
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ args, want string }{
		{"", "weft: say what to do\n"},
		{"org", "weft: org: say what to do\n"},
		{"rog", "weft: unknown command \"rog\" of \"weft\"\nweft: hint: did you mean \"weft org\"?\n"},
		{"rog --x", "weft: unknown command \"rog\" of \"weft\"\nweft: hint: did you mean \"weft org\"?\n"},
		{"org lits", "weft: unknown command \"lits\" of \"weft org\"\nweft: hint: did you mean \"weft org list\"?\n"},
		{"org frobnicate", "weft: unknown command \"frobnicate\" of \"weft org\"\nweft: hint: \"weft org --help\" lists what there is\n"},
		{"org list a b", "weft: org list: unexpected argument \"b\"\nweft: hint: usage: weft org list [flags]\n"},
		{"org list --nmae x", "weft: unknown flag --nmae of \"weft org list\"\nweft: hint: did you mean --name?\n"},
		{"org list -z", "weft: unknown flag -z of \"weft org list\"\nweft: hint: \"weft org list --help\" lists the flags\n"},
		{"org list --listen-port x", "weft: --listen-port \"x\": want a whole number\n"},
		{"org list --ttl 3", "weft: --ttl \"3\": want a duration, for example 90s or 24h\n"},
		{"org list --log-format yaml", "weft: --log-format \"yaml\": want text or json\n"},
		{"org list --name", "weft: flag needs an argument: --name\nweft: hint: \"weft org list --help\" lists the flags\n"},
	} {
		root, _ := tree()
		err := execute(root, strings.Fields(tt.args)...)
		var out bytes.Buffer
		Report(&out, "weft", err)
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("weft %s (-want +got):\n%s", tt.args, diff)
		}
		if Code(err) != CodeUsage {
			t.Errorf("weft %s: code %d, want %d", tt.args, Code(err), CodeUsage)
		}
	}
}

func TestSettingsPrecedence(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "weft.yaml")
	if err := os.WriteFile(file, []byte(`# a comment
listen-port: 1
name: from-file
nat: true
ttl: 90s
controller:
  - https://a:1
  - "https://[::1]:2"
state-dir: /of/another/command
`), 0o600); err != nil {
		t.Fatal(err)
	}
	root, f := tree()
	Prepare(root)
	cmd, args, err := root.Find([]string{"org", "list", "--listen-port", "3", "--config", file})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"WEFT_LISTEN_PORT": "2", "WEFT_NAME": "from-env", "WEFT_ONLY_HERE": "not a setting"}
	if err := Settings(cmd, func(k string) (string, bool) { v, ok := env[k]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	want := flags{port: 3, servers: []string{"https://a:1", "https://[::1]:2"}, name: "from-env", nat: true, ttl: 90 * time.Second}
	if diff := cmp.Diff(want, *f, cmp.AllowUnexported(flags{})); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if got, _ := cmd.Flags().GetString("only-here"); got != "" {
		t.Errorf("a flag that is not persistent was set from the environment: %q", got)
	}
}

func TestSettingsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, file, env, want string }{
		{"unknown key, near", "name: x\nlisten-prot: 1\n", "", "weft: FILE:2: unknown key \"listen-prot\"\nweft: hint: did you mean \"listen-port\"?\n"},
		{"unknown key, far", "\n\nfrobnicate: 1\n", "", "weft: FILE:3: unknown key \"frobnicate\"\nweft: hint: keys are the names of flags; \"weft org list --help\" lists them\n"},
		{"config in itself", "config: x\n", "", "weft: FILE:1: unknown key \"config\"\nweft: hint: keys are the names of flags; \"weft org list --help\" lists them\n"},
		{"bad value", "name: x\nlisten-port: many\n", "", "weft: FILE:2: listen-port \"many\": want a whole number\n"},
		{"bad word", "log-format: xml\n", "", "weft: FILE:1: log-format \"xml\": want text or json\n"},
		{"list where one value goes", "name: [a, b]\n", "", "weft: FILE:1: name takes one value, not a list\n"},
		{"nested", "controller:\n  a: 1\n", "", "weft: FILE:1: controller: want a plain value or a list\n"},
		{"nested list", "controller:\n  - [a]\n", "", "weft: FILE:2: controller: want a list of plain values\n"},
		{"no value", "name:\n", "", "weft: FILE:1: name: want a plain value or a list\n"},
		{"not a mapping", "- a\n- b\n", "", "weft: FILE:1: want lines of the form \"key: value\"\n"},
		{"twice", "name: a\nname: b\n", "", "weft: FILE:2: mapping key \"name\" already defined at [1:1]\nweft: hint: put values with ':', '[' or '#' in them in quotes\n"},
		{"environment", "", "WEFT_LISTEN_PORT=x", "weft: WEFT_LISTEN_PORT \"x\": want a whole number\n"},
	} {
		file := filepath.Join(t.TempDir(), "weft.yaml")
		if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
			t.Fatal(err)
		}
		root, _ := tree()
		Prepare(root)
		cmd, args, _ := root.Find([]string{"org", "list", "--config", file})
		if err := cmd.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		key, value, _ := strings.Cut(tt.env, "=")
		err := Settings(cmd, func(k string) (string, bool) { return value, k == key && key != "" })
		var out bytes.Buffer
		Report(&out, "weft", err)
		if diff := cmp.Diff(tt.want, strings.ReplaceAll(out.String(), file, "FILE")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if Code(err) != CodeUsage {
			t.Errorf("%s: code %d, want %d", tt.name, Code(err), CodeUsage)
		}
	}
}

func TestSettingsFileMissing(t *testing.T) {
	t.Parallel()
	root, _ := tree()
	if got := Code(execute(root, "org", "list", "--config", "/nowhere/weft.yaml")); got != CodeNotFound {
		t.Errorf("code %d, want %d", got, CodeNotFound)
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"listen-port", "listen", "name", "nat", "region"}
	for _, tt := range []struct{ word, want string }{
		{"listen-prot", "listen-port"}, {"liste", "listen"}, {"Name", "name"}, {"regoin", "region"},
		{"frobnicate", ""}, {"", ""}, {"x", ""},
	} {
		if got := Nearest(tt.word, names); got != tt.want {
			t.Errorf("Nearest(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	table := Table{Header: []string{"NAME", "REGION"}, Rows: [][]string{{"fra-1", "fra"}, {"x", ""}}}
	if err := table.Write(&out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("NAME   REGION\nfra-1  fra\nx      -\n", out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	cmd := &cobra.Command{}
	l := AddLog(cmd.Flags())
	if err := cmd.ParseFlags([]string{"--log-format", "json", "--log-level", "warn"}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	log := l.Logger(&out)
	log.Info("quiet")
	log.Warn("loud", "host", "fra-1")
	if got := out.String(); strings.Contains(got, "quiet") || !strings.Contains(got, `"msg":"loud","host":"fra-1"`) {
		t.Errorf("log: %s", got)
	}
}

// FuzzSettings: whatever a settings file holds, it is refused with a usage error
// or all its keys are plain words with values.
func FuzzSettings(f *testing.F) {
	for _, s := range []string{"a: 1\n", "a: [1, 2]\nb:\n  - x\n", "# c\n", "a: &x 1\nb: *x\n", "<<: {a: 1}\n", "a: |\n  x\n", "? a\n: b\n", "--- a\n", "listen: [::]:7443\n", "{a: 1}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, err := parseSettings("f", text)
		if err != nil && Code(err) != CodeUsage {
			t.Fatalf("code %d of %v", Code(err), err)
		}
		for _, e := range entries {
			if err == nil && (e.line < 1 || !e.list && len(e.values) != 1) {
				t.Fatalf("entry %+v", e)
			}
		}
	})
}
