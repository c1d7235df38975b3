package store

import (
	"context"
	"errors"
	"testing"
)

// A change whose answer is lost says that it may have been made, whether it was; one
// that never got that far does not say so.
func TestALostAnswerIsUnsure(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	host(t, s, "h")
	machine(t, s, "acme", "web", "first", "h")
	create := func(c *Store) error {
		_, _, err := c.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", ID: "m", Host: "h"})
		return err
	}
	for _, tt := range []struct {
		name   string
		kv     faultyKV
		unsure bool
	}{
		{"nothing is read", faultyKV{before: func() error { return context.DeadlineExceeded }}, false},
		{"the answer is lost", faultyKV{after: func() error {
			if len(keysBelow(t, s, "machines/acme/m")) > 0 {
				return context.DeadlineExceeded
			}
			return nil
		}}, true},
	} {
		lost := again(t, s)
		kv := tt.kv
		kv.KV = s.client.KV
		lost.client = withKV(s.client, &kv)
		if err := create(lost); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnsure) != tt.unsure {
			t.Errorf("%s: %v, want ErrUnavailable, unsure %t", tt.name, err, tt.unsure)
		}
	}
}
