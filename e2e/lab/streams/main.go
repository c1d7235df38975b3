// Command streams is many who follow a store at once, for measurements: nodes with
// their view streams at a controller (streams view), or etcd's own watchers
// (streams watch). Each has a connection of its own. It prints a line of JSON when
// all follow, and one for each change that has reached all of them. It is no part
// of the product.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Marked is what the names of the changes begin with that are reported.
const marked = "change-"

func main() {
	// A thousand who follow share a heap that none of them has for itself. Its
	// collections would be measured with the
	// server, whichever it is.
	debug.SetGCPercent(1000)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "streams:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say what to follow: streams view, or streams watch")
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	count := f.Int("count", 1000, "how many")
	server := f.String("server", "", "URL of the controller, or of the etcd member")
	token := f.String("token", "", "view: lets all of them join as hosts")
	org := f.String("org", "acme", "view: of which each host has a machine")
	ca := f.String("ca", "", "watch: file with etcd's authority")
	cert := f.String("cert", "", "watch: file with the certificate to show")
	key := f.String("key", "", "watch: file with its key")
	prefix := f.String("prefix", "/bench/", "watch: of the keys")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	seen := &sightings{want: *count, counts: map[string]*sighting{}, out: json.NewEncoder(os.Stdout)}
	switch args[0] {
	case "view":
		return view(ctx, viewers{server: *server, token: *token, org: *org, count: *count}, seen)
	case "watch":
		return watch(ctx, watchers{server: *server, ca: *ca, cert: *cert, key: *key, prefix: *prefix, count: *count}, seen)
	}
	return fmt.Errorf("streams %s: want view or watch", args[0])
}

// Report is a line of the output.
type Report struct {
	Ready  int    `json:"ready,omitempty"`  // so many follow
	Change string `json:"change,omitempty"` // that all have seen
	First  int64  `json:"first,omitempty"`  // when the first one saw it, in nanoseconds since 1970
	Last   int64  `json:"last,omitempty"`   // and the last
	Bytes  int64  `json:"bytes"`            // received so far, by all together, TLS and all
	Broken int64  `json:"broken,omitempty"` // streams that ended and were opened again so far
}

// sightings counts who has seen which change.
type sightings struct {
	want   int
	bytes  atomic.Int64
	broken atomic.Int64

	mu     sync.Mutex // guards what follows
	counts map[string]*sighting
	out    *json.Encoder
}

type sighting struct {
	n     int
	first int64
}

// note counts one who sees a change now.
func (s *sightings) note(change string) {
	now := time.Now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.counts[change]
	if x == nil {
		x = &sighting{first: now}
		s.counts[change] = x
	}
	if x.n++; x.n == s.want {
		delete(s.counts, change)
		s.report(Report{Change: change, First: x.first, Last: now})
	}
}

func (s *sightings) ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report(Report{Ready: s.want})
}

func (s *sightings) report(r Report) {
	r.Bytes, r.Broken = s.bytes.Load(), s.broken.Load()
	if err := s.out.Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "streams:", err)
	}
}

// dial counts what its connections receive.
func (s *sightings) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &counted{c, &s.bytes}, nil
}

type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// inParallel calls do for 0 to n-1, so many at a time, and returns the first error.
func inParallel(ctx context.Context, n, atOnce int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	places := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	for i := range n {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			wait.Wait()
			return context.Cause(ctx)
		}
		wait.Go(func() {
			defer func() { <-places }()
			if err := do(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}

// changed returns the name of a change of an object: "+" or "-" and the object's, or
// "" if it is not one that is reported.
func changed(sign, name string) string {
	if !strings.HasPrefix(name, marked) {
		return ""
	}
	return sign + name
}
