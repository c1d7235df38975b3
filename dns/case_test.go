package dns

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

func TestMixCase(t *testing.T) {
	const name = "an-example.name-with-some-letters.example."
	seen := map[string]bool{}
	for range 50 {
		mixed := mixCase(name)
		if lower(mixed) != name {
			t.Fatalf("%q became %q", name, mixed)
		}
		seen[mixed] = true
	}
	if len(seen) < 49 {
		t.Errorf("%d different ones of 50", len(seen))
	}
	for _, name := range []string{`\010\097b.`, `a\.b.`, ".", "1.2.3."} {
		mixed, ok1 := splitName(mixCase(name))
		want, ok2 := splitName(name)
		if diff := cmp.Diff(want, mixed); diff != "" || ok1 != ok2 {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// An answer whose question has another case than what was asked is not believed:
// the true one comes over TCP.
func TestForgedCase(t *testing.T) {
	u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
		if stream {
			return says(t, "forged-or-not.example. 60 IN A 192.0.2.1")(q, stream)
		}
		m := says(t, "forged-or-not.example. 60 IN A 192.0.2.66")(q, stream)
		m.Question[0].Name = "Forged-Or-Not.Example."
		return m
	})
	s := forwarding(t, ForwarderConfig{}, u.at)
	m := ask(t, s, "forged-or-not.example.", "A", w1, Role{}, false)
	if diff := cmp.Diff([]string{"forged-or-not.example. 60 IN A 192.0.2.1"}, records(t, m.Answer)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

// Servers that fold a question's case work, and after the first time without a
// second query.
func TestUpstreamThatFoldsCase(t *testing.T) {
	fold := func(q *dns.Msg, stream bool) *dns.Msg {
		q.Question[0].Name = lower(q.Question[0].Name)
		return says(t, q.Question[0].Name+" 60 IN A 192.0.2.1")(q, stream)
	}
	u := startUpstream(t, fold)
	s := forwarding(t, ForwarderConfig{}, u.at)
	for i, name := range []string{"the-first-name.example.", "the-second-name.example."} {
		if m := ask(t, s, name, "A", w1, Role{}, false); len(m.Answer) != 1 {
			t.Errorf("%s: %v", name, m)
		}
		if n := u.queries.Load(); n != int64(2+i) {
			t.Errorf("after %s: %d queries, want %d", name, n, 2+i)
		}
	}
}

// The same without TCP.
func TestUpstreamThatFoldsCaseWithoutTCP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		q.Question[0].Name = lower(q.Question[0].Name)
		w.WriteMsg(says(t, q.Question[0].Name+" 60 IN A 192.0.2.1")(q, false))
	})}
	started, ended := make(chan struct{}), make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { defer close(ended); srv.ActivateAndServe() }()
	<-started
	defer func() { srv.Shutdown(); <-ended }()
	m := ask(t, forwarding(t, ForwarderConfig{}, addrPortOf(conn.LocalAddr())), "some-long-name.example.", "A", w1, Role{}, false)
	if len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}
}
