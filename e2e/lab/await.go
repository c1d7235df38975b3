package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Await calls check until it returns nil, soon at first and then ten times a
// second. It gives up with the last error when the deadline has passed, ctx has
// ended, or the error is Hopeless. what completes the sentence "waited for …".
func Await(ctx context.Context, what string, deadline time.Duration, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last error
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return gaveUp(what, began, last, ctx.Err())
		}
		err := check(ctx)
		if err == nil {
			return nil
		}
		// An error that is only our own deadline says less than the one before.
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if hopeless := new(hopelessError); errors.As(err, &hopeless) {
			return gaveUp(what, began, last, nil)
		}
		timer.Reset(pause)
	}
}

func gaveUp(what string, began time.Time, last, end error) error {
	if last == nil {
		last = end
	}
	return fmt.Errorf("waited %s for %s: %w", time.Since(began).Round(time.Millisecond), what, last)
}

// Hopeless marks an error after which Await need not go on: the process that was
// to answer has ended.
func Hopeless(err error) error {
	if err == nil {
		return nil
	}
	return &hopelessError{err}
}

type hopelessError struct{ error }

func (e *hopelessError) Unwrap() error { return e.error }
