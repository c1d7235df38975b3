package resolvconf

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// Guard is what a helper process runs: it waits until parent ends, which is when
// the process that set the resolver is gone, however it went, and then does what
// Recover does. If that process has restored the resolver itself, nothing is left
// to do. The signals that a terminal or a shutdown sends are ignored: the end of
// the parent is the one that counts.
func Guard(ctx context.Context, parent io.Reader, cfg Config) (note string, err error) {
	signal.Ignore(os.Interrupt, syscall.SIGHUP, syscall.SIGTERM)
	defer signal.Reset(os.Interrupt, syscall.SIGHUP, syscall.SIGTERM)
	if _, err := io.Copy(io.Discard, parent); err != nil {
		return "", fmt.Errorf("wait for the end of the parent: %w", err)
	}
	return Recover(ctx, cfg)
}

// StartGuard starts cmd, a helper process that calls Guard on its standard input,
// in a session of its own. release lets it end, after the resolver has been
// restored, and waits for it.
func StartGuard(cmd *exec.Cmd) (release func() error, err error) {
	// The write end closes on exec, so no other child can keep it open.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the resolver's guard: %w", err)
	}
	defer r.Close()
	cmd.Stdin = r
	detach(cmd)
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start the resolver's guard: %w", err)
	}
	return func() error {
		if err := w.Close(); err != nil {
			return nil // released before
		}
		return cmd.Wait()
	}, nil
}
