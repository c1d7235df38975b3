package dns

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// Equal questions at one time are one upstream.
func TestEqualQuestionsShareAnAnswer(t *testing.T) {
	release := make(chan struct{})
	u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
		<-release
		return says(t, "example. 1 IN A 192.0.2.1")(q, stream)
	})
	s := forwarding(t, ForwarderConfig{}, u.at)
	packet, _ := new(dns.Msg).SetQuestion("example.", dns.TypeA).Pack()
	var wg sync.WaitGroup
	var answered atomic.Int64
	var waits []func(context.Context) []byte
	for range 20 {
		_, wait := s.handle(packet, netip.MustParseAddr(w1), Role{}, false)
		waits = append(waits, wait)
	}
	for _, wait := range waits {
		wg.Go(func() {
			m := new(dns.Msg)
			if m.Unpack(wait(t.Context())) == nil && len(m.Answer) == 1 {
				answered.Add(1)
			}
		})
	}
	waitFor(t, "the first query upstream", func() bool { return u.queries.Load() > 0 })
	close(release)
	wg.Wait()
	if answered.Load() != 20 || u.queries.Load() > 3 { // late ones may have missed the shared flight
		t.Errorf("%d answered by %d queries", answered.Load(), u.queries.Load())
	}
}

// Who asked first and goes takes nothing from those who ask the same: their question
// goes on.
func TestWhoGoesTakesNoAnswerAlong(t *testing.T) {
	release := make(chan struct{})
	var asked atomic.Int64
	u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
		asked.Add(1)
		<-release
		return says(t, "example. 1 IN A 192.0.2.1")(q, stream)
	})
	goOn := sync.OnceFunc(func() { close(release) })
	t.Cleanup(goOn) // before the upstream ends, which waits for its answers
	s := forwarding(t, ForwarderConfig{Timeout: deadline}, u.at)
	packet, _ := new(dns.Msg).SetQuestion("example.", dns.TypeA).Pack()
	start := func(ctx context.Context, from string) <-chan *dns.Msg {
		_, wait := s.handle(packet, netip.MustParseAddr(from), Role{}, true)
		out := make(chan *dns.Msg, 1)
		go func() {
			m := new(dns.Msg)
			if err := m.Unpack(wait(ctx)); err != nil {
				t.Error(err)
			}
			out <- m
		}()
		return out
	}
	going, goes := context.WithCancel(t.Context())
	first := start(going, w1)
	waitFor(t, "the first one's query", func() bool { return asked.Load() == 1 })
	second := start(t.Context(), w2)
	waitFor(t, "the second one to ask", func() bool {
		s.cfg.Forward.asking.mu.Lock()
		defer s.cfg.Forward.asking.mu.Unlock()
		return s.cfg.Forward.asking.n == 2
	})
	goes()
	if m := <-first; m.Rcode != dns.RcodeServerFailure {
		t.Errorf("who has gone: %v", m)
	}
	waitFor(t, "the second one's query", func() bool { return asked.Load() == 2 })
	goOn()
	if m := <-second; m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("who has stayed: %v", m)
	}
	if s.cfg.Forward.rest.down.Load() {
		t.Error("the upstreams count as down, and nobody had to wait for them")
	}
}
