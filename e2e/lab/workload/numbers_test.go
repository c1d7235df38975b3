package main

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// Every number that is sent is noted where it comes and when it is back.
func TestNumbers(t *testing.T) {
	t.Parallel()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var there, here bytes.Buffer
	done := make(chan struct{})
	taken := &record{w: &there}
	go func() { defer close(done); sink(c, taken) }()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := send(ctx, c.LocalAddr().String(), 5_000_000, 1000, &record{w: &here}, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	<-done
	lines := func(text, what string) (out []string) {
		for line := range strings.Lines(text) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), what+" "); ok {
				out = append(out, n)
			}
		}
		slices.Sort(out)
		return out
	}
	sent := lines(here.String(), "sent")
	if len(sent) < 100 {
		t.Errorf("%d packets in 300 ms at 1,000 a second", len(sent))
	}
	for what, got := range map[string][]string{"got": lines(there.String(), "got"), "back": lines(here.String(), "back")} {
		if !slices.Equal(got, sent) {
			t.Errorf("%s %d of %d", what, len(got), len(sent))
		}
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		b    []byte
		n    uint64
		want bool
	}{
		{appendNumber(nil, 7), 7, true}, {appendNumber(nil, 1<<40), 1 << 40, true}, {nil, 0, false},
		{append(appendNumber(nil, 7), 0), 0, false}, {make([]byte, numberSize), 0, false},
	} {
		if n, ok := number(tt.b); n != tt.n || ok != tt.want {
			t.Errorf("%x: %d, %v", tt.b, n, ok)
		}
	}
	if err := send(t.Context(), "127.0.0.1:1", 0, 0, nil, nil); err == nil {
		t.Error("no packets a second")
	}
}
