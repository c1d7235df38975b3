// Package cli is what the commands share: how they end (exit codes, errors with
// hints on stderr), where their settings come from (flags, then environment, then
// a YAML file), how results are printed, and how they log. It knows no command.
package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Version is set when a release is built, by -ldflags "-X …/cli.Version=v1.2.3".
// Read it through VersionText.
var Version string

// VersionText returns the version of this program: that of the release, else the
// commit it was built from, else "unknown".
func VersionText() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	return "unknown"
}

// Run executes a program's command tree and returns its exit code. The context
// of the commands ends with SIGINT or SIGTERM; a second one of these kills the
// program. Errors and hints are printed on stderr.
func Run(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	Prepare(root)
	cmd, err := root.ExecuteContextC(ctx)
	Report(os.Stderr, root.Name(), err)
	return codeOf(cmd, err)
}

// Prepare gives a command tree the common ways: --version, settings from
// environment and file (see Settings), and usage errors that say what to type.
func Prepare(root *cobra.Command) {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.Version = VersionText()
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.SetOut(os.Stdout)
	root.SetErr(os.Stderr)
	root.PersistentFlags().String("config", "", "read settings from this YAML `FILE`; its keys are the names of flags")
	before := root.PersistentPreRunE
	root.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		if err := Settings(cmd, os.LookupEnv); err != nil || before == nil {
			return err
		}
		return before(cmd, args)
	}
	prepareGroups(root)
}

// prepareGroups makes a command that only has others below it refuse to run
// without a verb, or with one that it does not know.
func prepareGroups(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		prepareGroups(c)
	}
	if cmd.Runnable() || !cmd.HasSubCommands() {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.SetOut(cmd.ErrOrStderr())
		cmd.Help()
		return Usagef("%ssay what to do", verb(cmd))
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	var known []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			known = append(append(known, c.Name()), c.Aliases...)
		}
	}
	err := Usagef("unknown command %q of %q", name, cmd.CommandPath())
	if near := Nearest(name, known); near != "" {
		return hintf(err, "did you mean \"%s %s\"?", cmd.CommandPath(), near)
	}
	return hintf(err, "\"%s --help\" lists what there is", cmd.CommandPath())
}

// Args checks a command's arguments by their names: "NAME" must be given,
// "[NAME]" may be, and a last "NAME..." takes all that follow.
func Args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for i, name := range names {
			rest := len(name) > 3 && name[len(name)-3:] == "..."
			if i >= len(args) && name[0] != '[' {
				return usageOf(cmd, "%s%s is missing", verb(cmd), name)
			}
			if rest {
				return nil
			}
		}
		if len(args) > len(names) {
			return usageOf(cmd, "%sunexpected argument %q", verb(cmd), args[len(names)])
		}
		return nil
	}
}

// verb is "org create: ", and nothing for the program itself: its name stands in
// front of every message anyway.
func verb(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return ""
	}
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ") + ": "
}

// usageOf is a usage error whose hint is the command's line of usage.
func usageOf(cmd *cobra.Command, format string, args ...any) error {
	return hintf(Usagef(format, args...), "usage: %s", cmd.UseLine())
}

// Required says that a flag that has no sensible default was not given.
func Required(cmd *cobra.Command, flags ...string) error {
	for _, name := range flags {
		f := cmd.Flag(name)
		if f == nil || f.Value.String() != "" && f.Value.String() != "[]" {
			continue
		}
		err := Usagef("%s--%s is missing", verb(cmd), name)
		if isSetting(cmd, name) {
			return hintf(err, "add --%s, or set %s", name, Env(name))
		}
		return hintf(err, "usage: %s; \"%s --help\" has examples", cmd.UseLine(), cmd.CommandPath())
	}
	return nil
}

// Notef tells the user something on stderr, with the program's name in front.
func Notef(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.ErrOrStderr(), cmd.Root().Name()+": "+format+"\n", args...)
}
