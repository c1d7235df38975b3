package dns

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

// A failure is kept for a second, then for two, four, eight and ten, as long as it
// goes on; after that it begins again.
func TestFailures(t *testing.T) {
	server, other := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53")
	c := &clock{}
	f, err := newFailures(10, c.now)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, pause := range []int64{1, 2, 4, 8, 10, 10} {
		c.seconds.Store(at)
		if f.known("q", server) {
			t.Errorf("at %d s: known before it failed again", at)
		}
		f.note("q", server, failureMost)
		f.note("q", server, failureMost) // of the same attempt: counts once
		for second, want := range map[int64]bool{0: true, pause - 1: true, pause: false} {
			c.seconds.Store(at + second)
			if got := f.known("q", server); got != want {
				t.Errorf("%d s after a failure at %d s: known %v, want %v", second, at, got, want)
			}
		}
		at += pause
	}
	if f.note("q", server, failureMost); f.known("q", other) || f.known("r", server) {
		t.Error("another server, or another question, failed as well")
	}
	c.seconds.Store(at - 100)
	if f.known("q", server) {
		t.Error("a clock that went back keeps failures for ever")
	}
	c.seconds.Store(at + 100)
	f.note("q", server, failureMost)
	c.seconds.Store(at + 101)
	if f.known("q", server) {
		t.Error("a failure long ago makes a new one last longer")
	}
	f.note("r", server, failureMost)
	if f.forget("r", server); f.known("r", server) {
		t.Error("a server that answered again is still avoided")
	}
}

// Whatever happens, a failure is kept for a second at least and for ten at most
// (RFC 9520 allows 1 s to 5 min).
func TestFailuresBounds(t *testing.T) {
	server := netip.MustParseAddrPort("192.0.2.1:53")
	rapid.Check(t, func(t *rapid.T) {
		c := &clock{}
		f, err := newFailures(10, c.now)
		if err != nil {
			t.Fatal(err)
		}
		most := rapid.SampledFrom([]time.Duration{failureFirst, failureMost}).Draw(t, "most")
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			c.seconds.Add(rapid.Int64Range(0, 30).Draw(t, "pause"))
			if f.known("q", server) {
				continue // it would not be asked
			}
			f.note("q", server, most)
			e, _ := f.entries.Get(failedQuestion{"q", server})
			if kept := e.until.Sub(e.noted); kept < time.Second || kept > most {
				t.Fatalf("kept for %s", kept)
			}
		}
	})
}

// A question that failed is not asked again for a while, whoever asks; other
// questions are, and each question at each upstream counts for itself.
func TestFailedQuestionsAreNotAskedAgain(t *testing.T) {
	for _, tt := range []struct {
		name   string
		handle func(*dns.Msg, bool) *dns.Msg
		asked  int64 // how often for one question; RFC 9520 allows three times over UDP
	}{
		{"SERVFAIL", code(dns.RcodeServerFailure), 1},
		{"REFUSED", code(dns.RcodeRefused), 1},
		{"silence", silence, rounds},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := startUpstream(t, tt.handle)
			c := &clock{}
			s := forwarding(t, ForwarderConfig{now: c.now, Timeout: hedge + hedge/2}, u.at)
			expect := func(step, name string, want int64) {
				t.Helper()
				if m := ask(t, s, name, "A", w1, Role{}, false); m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused {
					t.Errorf("%s: %v", step, m)
				}
				s.cfg.Forward.settle()
				if n := u.queries.Load(); n != want {
					t.Errorf("%s: %d queries upstream in all, want %d", step, n, want)
				}
			}
			expect("first", "x.example.", tt.asked)
			expect("again", "X.example.", tt.asked)
			expect("another question", "y.example.", 2*tt.asked)
			c.seconds.Store(1)
			expect("a second later", "x.example.", 3*tt.asked)
			c.seconds.Store(2)
			expect("it has failed twice", "x.example.", 3*tt.asked)
			c.seconds.Store(3)
			expect("two seconds later", "x.example.", 4*tt.asked)
			st := s.cfg.Forward.Stats()
			if st.Remembered != 2 || st.Errors != uint64(4*tt.asked) && tt.asked == 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Of two upstreams the one that failed is left alone, and the other one asked.
func TestOneOfTwoFailed(t *testing.T) {
	lame := startUpstream(t, code(dns.RcodeServerFailure))
	good := startUpstream(t, says(t, "x.example. 0 IN A 192.0.2.1"))
	s := forwarding(t, ForwarderConfig{now: new(clock).now}, lame.at, good.at)
	for i := range 3 {
		s.cfg.Forward.rest.good.Store(nil) // as if nobody had answered yet
		if m := ask(t, s, "x.example.", "A", w1, Role{}, false); len(m.Answer) != 1 {
			t.Fatalf("%v", m)
		}
		if n := lame.queries.Load(); n != 1 {
			t.Errorf("after %d questions the lame one was asked %d times", i+1, n)
		}
	}
}

// While one upstream is silent, another one that answered an error is not asked the
// same again.
func TestLameUpstreamIsAskedOnce(t *testing.T) {
	t.Parallel()
	lame, mute := startUpstream(t, code(dns.RcodeServerFailure)), startUpstream(t, silence)
	s := forwarding(t, ForwarderConfig{Timeout: 5 * hedge / 2}, lame.at, mute.at)
	if m := ask(t, s, "x.example.", "A", w1, Role{}, false); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", m)
	}
	if n, m := lame.queries.Load(), mute.queries.Load(); n != 1 || m != rounds {
		t.Errorf("the lame one was asked %d times, the silent one %d times; want 1 and %d", n, m, rounds)
	}
}

// With upstreams that cannot be reached an old answer comes at once: the first time,
// because that is known at once; and where they are silent, from the second question
// on, whichever that is.
func TestStaleAtOnce(t *testing.T) {
	t.Parallel()
	var cut, quiet atomic.Bool
	u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
		if quiet.Load() {
			return nil
		}
		return says(t, q.Question[0].Name+" 60 IN A 192.0.2.1")(q, stream)
	})
	c := &clock{}
	s := forwarding(t, ForwarderConfig{now: c.now, Timeout: 2 * hedge, Dial: func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
		if cut.Load() {
			return nil, syscall.ENETUNREACH
		}
		return direct(ctx, network, to)
	}}, u.at)
	names := []string{"a.example.", "b.example.", "c.example."}
	for _, name := range names {
		ask(t, s, name, "A", w1, Role{}, false)
	}
	stale := func(name string) time.Duration {
		t.Helper()
		start := time.Now()
		m := ask(t, s, name, "A", w1, Role{}, false)
		if len(m.Answer) != 1 || m.Answer[0].Header().Ttl != staleTTL {
			t.Errorf("%s: %v", name, m)
		}
		return time.Since(start)
	}
	c.seconds.Store(100)
	cut.Store(true)
	for _, name := range names {
		if took := stale(name); took >= stalePatience/2 {
			t.Errorf("unreachable: %s took %s", name, took)
		}
	}
	s.cfg.Forward.settle()
	cut.Store(false)
	c.seconds.Store(200)
	ask(t, s, "a.example.", "A", w1, Role{}, false)
	s.cfg.Forward.settle() // they are well again
	quiet.Store(true)
	c.seconds.Store(400)
	stale("a.example.")
	s.cfg.Forward.settle()
	for _, name := range names {
		if took := stale(name); took >= stalePatience/2 {
			t.Errorf("silent: %s took %s", name, took)
		}
	}
}
