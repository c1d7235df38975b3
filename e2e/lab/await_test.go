package lab

import (
	"context"
	"errors"
	"regexp"
	"testing"
	"time"
)

func TestAwait(t *testing.T) {
	t.Parallel()
	failing := func(context.Context) error { return errors.New("not yet") }
	for _, tt := range []struct {
		name  string
		check func(ctx context.Context) error
		want  string // regular expression, "" for success
	}{
		{"at once", func(context.Context) error { return nil }, ""},
		{"after some tries", nthTime(5), ""},
		{"never", failing, `^waited \d+ms for it: not yet$`},
		{"blocks", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, `^waited \d+ms for it: context deadline exceeded$`},
		{"blocks after an error", blocksAfterError(), `^waited \d+ms for it: not yet$`},
		{"hopeless", func(context.Context) error { return Hopeless(errors.New("it ended")) }, `^waited \d+m?s for it: it ended$`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			deadline := 60 * time.Millisecond
			if tt.want == "" || tt.name == "hopeless" {
				deadline = time.Minute
			}
			err := Await(t.Context(), "it", deadline, tt.check)
			if tt.want == "" && err == nil {
				return
			}
			if err == nil || tt.want == "" || !regexp.MustCompile(tt.want).MatchString(err.Error()) {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Await(ctx, "it", time.Minute, failing); err == nil {
		t.Error("no error although ctx has ended")
	}
}

func nthTime(n int) func(context.Context) error {
	return func(context.Context) error {
		if n--; n > 0 {
			return errors.New("not yet")
		}
		return nil
	}
}

func blocksAfterError() func(context.Context) error {
	first := true
	return func(ctx context.Context) error {
		if first {
			first = false
			return errors.New("not yet")
		}
		<-ctx.Done()
		return ctx.Err()
	}
}
