package resolvconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// runner runs a program with an input and returns what it prints.
type runner func(ctx context.Context, stdin, program string, args ...string) (stdout string, err error)

// run runs a program. The error has what it said.
func (cfg Config) run(ctx context.Context, stdin, program string, args ...string) (string, error) {
	if cfg.command != nil {
		return cfg.command(ctx, stdin, program, args...)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	var out, complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaint
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		said := strings.TrimSpace(complaint.String())
		if said == "" {
			said = strings.TrimSpace(out.String())
		}
		err = fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, said)
	}
	return out.String(), err
}
