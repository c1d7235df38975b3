package kernel

import (
	"context"
	"fmt"
	"time"
)

// patience is how long one question to the kernel may take. With thousands of peers
// and a busy machine it is a second or two; more means that something hangs.
const patience = 15 * time.Second

// caller talks to the kernel, which may not answer, one call at a time.
type caller struct {
	turn chan struct{} // holds a token while the kernel is asked
	wait time.Duration // how long
}

func newCaller() caller { return caller{turn: make(chan struct{}, 1), wait: patience} }

// call calls fn, which talks to the kernel, and waits for it until ctx ends or
// patience does. A call in the kernel cannot be broken off: one that was given up goes
// on, and until it ends the next ones wait for it in vain.
func (c caller) call(ctx context.Context, fn func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.wait, fmt.Errorf("the kernel has not answered for %s: %w", c.wait, context.DeadlineExceeded))
	defer cancel()
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("an earlier call still hangs: %w", context.Cause(ctx))
	}
	done := make(chan error, 1)
	go func() {
		err := fn()
		<-c.turn
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
