package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// Exit codes of every command.
const (
	CodeOK          = 0
	CodeFailed      = 1
	CodeUsage       = 2 // unknown flag, command, argument or key; bad value
	CodeNotFound    = 3 // what the user named does not exist
	CodeNotAllowed  = 4 // credential, token, permission or the controller's identity refused
	CodeUnreachable = 5 // no controller, or no agent, answers
)

// OwnCode is the annotation of a command whose exit code is another program's: its
// own failures end with this code instead of 1 to 5.
const OwnCode = "exit-code-of-own-failures"

// codeOf is Code as cmd wants it.
func codeOf(cmd *cobra.Command, err error) int {
	code := Code(err)
	own, _ := strconv.Atoi(cmd.Annotations[OwnCode])
	if errors.Is(err, errSilent) || code == CodeOK || code > own {
		return code
	}
	return own
}

// WithCode makes err end the program with code. A nil err stays nil.
func WithCode(err error, code int) error {
	if err == nil {
		return nil
	}
	return &coded{err, code}
}

// Missing gives err CodeNotFound if its reason is that a file that the user named
// does not exist. An empty path is none.
func Missing(err error, path string) error {
	if !errors.Is(err, fs.ErrNotExist) || path == "" {
		return err
	}
	if _, statErr := os.Stat(path); errors.Is(statErr, fs.ErrNotExist) {
		return WithCode(err, CodeNotFound)
	}
	return err
}

// Usagef is an error that ends the program with CodeUsage.
func Usagef(format string, args ...any) error {
	return WithCode(fmt.Errorf(format, args...), CodeUsage)
}

// Exit ends the program with code and prints nothing.
func Exit(code int) error {
	if code == CodeOK {
		return nil
	}
	return &coded{errSilent, code}
}

var errSilent = errors.New("")

type coded struct {
	error
	code int
}

func (c *coded) Unwrap() error { return c.error }

// Code returns the exit code that err stands for.
func Code(err error) int {
	var c *coded
	var certificate x509.CertificateInvalidError
	switch {
	case err == nil:
		return CodeOK
	case errors.As(err, &c):
		return c.code
	case errors.Is(err, api.ErrNotFound):
		return CodeNotFound
	case errors.Is(err, api.ErrInvalid), errors.Is(err, enroll.ErrTokenText):
		return CodeUsage
	case errors.Is(err, api.ErrUnauthorized), errors.Is(err, api.ErrForbidden), errors.Is(err, api.ErrToken),
		errors.Is(err, fs.ErrPermission), errors.Is(err, enroll.ErrExposed),
		errors.Is(err, enroll.ErrPin), errors.As(err, &certificate):
		return CodeNotAllowed
	case errors.Is(err, api.ErrUnreachable), errors.Is(err, api.ErrUnavailable), errors.Is(err, local.ErrNotRunning):
		return CodeUnreachable
	}
	return CodeFailed
}

// Report prints err, and its hint on a line of its own, with the program's name.
func Report(w io.Writer, program string, err error) {
	if err == nil || errors.Is(err, errSilent) {
		return
	}
	text := err.Error()
	if errors.Is(err, context.Canceled) {
		text = "interrupted"
	}
	// Joined errors have a line each; a message is one line.
	fmt.Fprintf(w, "%s: %s\n", program, strings.ReplaceAll(strings.TrimSpace(text), "\n", "; "))
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(w, "%s: hint: %s\n", program, hint)
	}
}

// hintOf is the error's own hint, else what always helps with its kind.
func hintOf(err error) string {
	hint := mesh.HintOf(err)
	switch {
	case hint != "":
		return hint
	case errors.Is(err, api.ErrUnreachable):
		return "check that the controller runs, and that its address and port are right and not behind a firewall"
	case errors.Is(err, fs.ErrPermission) && Code(err) == CodeNotAllowed:
		return "run it as root, for example with sudo"
	}
	return ""
}

func hintf(err error, format string, args ...any) error {
	return mesh.WithHint(err, format, args...)
}

// flagError rewords what pflag says about the command line.
func flagError(cmd *cobra.Command, err error) error {
	// Flags are looked at before words: of "weft hots list --x" the word is wrong.
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	help := fmt.Sprintf("\"%s --help\" lists the flags", cmd.CommandPath())
	var unknown *pflag.NotExistError
	var value *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		err = Usagef("unknown flag %s of %q", dashes(name), cmd.CommandPath())
		if near := Nearest(name, flagNames(cmd)); near != "" && len(name) > 1 {
			help = "did you mean --" + near + "?"
		}
	case errors.As(err, &value):
		return badValue("--"+value.GetFlag().Name, value.GetValue(), value.GetFlag(), value.Unwrap())
	default:
		err = WithCode(err, CodeUsage)
	}
	return hintf(err, "%s", help)
}

func dashes(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// badValue names where a value came from, the value, and why it does not do.
func badValue(from, value string, f *pflag.Flag, why error) error {
	want := map[string]string{
		"int": "a whole number", "uint16": "a number from 0 to 65535", "bool": "true or false",
		"duration": "a duration, for example 90s or 24h", "stringToString": "KEY=VALUE",
	}[f.Value.Type()]
	if want == "" {
		return Usagef("%s %q: %w", from, value, why)
	}
	return Usagef("%s %q: want %s", from, value, want)
}

func flagNames(cmd *cobra.Command) (names []string) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return names
}
