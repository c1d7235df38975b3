package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

// clock is a time that tests move.
type clock struct{ seconds atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(1_000_000+c.seconds.Load(), 0) }

func TestCache(t *testing.T) {
	const soa = "example. 600 IN SOA ns.example. admin.example. 1 2 3 4 60"
	rows := []struct {
		name   string
		answer string // of the upstream, first
		ns     string
		rcode  int
		after  int64 // seconds until asked again
		asked  int64 // how often the upstream was asked in all
		want   string
	}{
		{"fresh", "x.example. 300 IN A 192.0.2.1", "", 0, 100, 1, "x.example. 200 IN A 192.0.2.1"},
		{"over", "x.example. 300 IN A 192.0.2.1", "", 0, 300, 2, "x.example. 300 IN A 192.0.2.1"},
		{"no time", "x.example. 0 IN A 192.0.2.1", "", 0, 0, 2, "x.example. 0 IN A 192.0.2.1"},
		{"the least of its times", "x.example. 300 IN CNAME y.example.\ny.example. 20 IN A 192.0.2.1", "", 0, 21, 2, "x.example. 300 IN CNAME y.example.\ny.example. 20 IN A 192.0.2.1"},
		{"no such name", "", soa, dns.RcodeNameError, 59, 1, ""},
		{"no such name, over", "", soa, dns.RcodeNameError, 61, 2, ""},
		{"no such record", "", soa, 0, 59, 1, ""},
		{"an alias to nothing", "x.example. 300 IN CNAME y.example.", soa, 0, 61, 2, "x.example. 300 IN CNAME y.example."},
		{"nothing, and not for how long", "", "", 0, 0, 2, ""},
		{"failure", "", "", dns.RcodeServerFailure, 0, 1, ""},
		{"failure, a second ago", "", "", dns.RcodeServerFailure, 1, 2, ""},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
				m := says(t, r.answer)(q, stream)
				m.Rcode = r.rcode
				if r.ns != "" {
					rr, _ := dns.NewRR(r.ns)
					m.Ns = append(m.Ns, rr)
				}
				return m
			})
			c := &clock{}
			s := forwarding(t, ForwarderConfig{now: c.now}, u.at)
			ask(t, s, "x.example.", "A", w1, Role{}, false)
			c.seconds.Store(r.after)
			m := ask(t, s, "X.EXAMPLE.", "A", w1, Role{}, false)
			if diff := cmp.Diff(zoneText(t, r.want), records(t, m.Answer)); diff != "" {
				t.Errorf("second answer (-want +got):\n%s", diff)
			}
			if m.Rcode != r.rcode || m.Question[0].Name != "X.EXAMPLE." {
				t.Errorf("second answer: %v", m)
			}
			if n := u.queries.Load(); n != r.asked {
				t.Errorf("the upstream was asked %d times, want %d", n, r.asked)
			}
		})
	}
}

// Whoever asks for DNSSEC's records, or for another type, asks another question.
func TestCacheKeepsQuestionsApart(t *testing.T) {
	u := startUpstream(t, says(t, "x.example. 300 IN A 192.0.2.1"))
	s := forwarding(t, ForwarderConfig{}, u.at)
	for i, change := range []func(*dns.Msg){
		func(*dns.Msg) {},
		func(m *dns.Msg) { m.SetEdns0(1232, true) },
		func(m *dns.Msg) { m.CheckingDisabled = true },
		func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX },
		func(m *dns.Msg) { m.Question[0].Name = "y.example." },
	} {
		q := new(dns.Msg).SetQuestion("x.example.", dns.TypeA)
		change(q)
		exchangeBytes(t, s, q, w1, Role{}, false)
		if n := u.queries.Load(); n != int64(i+1) {
			t.Errorf("question %d: the upstream was asked %d times in all, want %d", i, n, i+1)
		}
	}
}

// Upstreams that fail do not take away what was known: it is given at once, for half
// a minute, and asked for again, not at once and ever less often, until they are back.
func TestStaleAnswers(t *testing.T) {
	t.Parallel()
	var mode atomic.Pointer[func(*dns.Msg, bool) *dns.Msg]
	set := func(f func(*dns.Msg, bool) *dns.Msg) { mode.Store(&f) }
	set(says(t, "x.example. 60 IN A 192.0.2.1"))
	u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg { return (*mode.Load())(q, stream) })
	c := &clock{}
	s := forwarding(t, ForwarderConfig{now: c.now, Timeout: 2 * time.Second}, u.at)
	f := s.cfg.Forward
	check := func(step, want string) time.Duration {
		t.Helper()
		start := time.Now()
		m := ask(t, s, "x.example.", "A", w1, Role{}, false)
		if diff := cmp.Diff(zoneText(t, want), records(t, m.Answer)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step, diff)
		}
		return time.Since(start)
	}
	check("fresh", "x.example. 60 IN A 192.0.2.1")
	c.seconds.Store(61)
	set(code(dns.RcodeServerFailure))
	check("refused", "x.example. 30 IN A 192.0.2.1")
	set(silence)
	c.seconds.Store(63) // the failure is forgotten
	if took := check("silent", "x.example. 30 IN A 192.0.2.1"); took >= 2*time.Second {
		t.Errorf("waited %s although there was an answer", took)
	}
	f.settle()
	before := u.queries.Load()
	if took := check("remembered", "x.example. 30 IN A 192.0.2.1"); took >= stalePatience {
		t.Errorf("remembered: waited %s", took)
	}
	if f.settle(); u.queries.Load() != before {
		t.Errorf("remembered: %d queries", u.queries.Load()-before)
	}
	c.seconds.Store(66)
	if took := check("known to be silent", "x.example. 30 IN A 192.0.2.1"); took >= stalePatience {
		t.Errorf("known to be silent: waited %s", took)
	}
	waitFor(t, "another question", func() bool { return u.queries.Load() > before })
	f.settle()
	set(says(t, "x.example. 60 IN A 192.0.2.2"))
	c.seconds.Store(71)
	ask(t, s, "x.example.", "A", w1, Role{}, false) // the old answer, or the new one if that is quicker
	f.settle()
	check("back", "x.example. 60 IN A 192.0.2.2")

	set(silence)
	c.seconds.Store(71 + 60 + int64(staleFor/time.Second) + 1)
	if m := ask(t, s, "x.example.", "A", w1, Role{}, false); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("a day later: %v", m)
	}
	st := f.Stats()
	if st.Stale < 4 || st.Hits != 1 || st.Stale+st.Misses != 6 || st.Failed != 1 || st.Remembered != 1 {
		t.Errorf("%+v", st)
	}
}

// Answers of the mesh's own servers follow the moment: they are not kept.
func TestRulesAreNotCached(t *testing.T) {
	u := startUpstream(t, says(t, "web.internal. 5 IN AAAA "+w1))
	s := forwarding(t, ForwarderConfig{Rules: map[string][]netip.AddrPort{"corp.": {u.at}}})
	for range 3 {
		ask(t, s, "x.corp.", "AAAA", w1, Role{}, false)
	}
	if n := u.queries.Load(); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}

func TestRebindOptOut(t *testing.T) {
	u := startUpstream(t, func(q *dns.Msg, stream bool) *dns.Msg {
		return says(t, q.Question[0].Name+" 60 IN AAAA "+w1)(q, stream)
	})
	s := forwarding(t, ForwarderConfig{Rebind: []string{"friend.example"}}, u.at)
	for _, tt := range []struct {
		name string
		want int
	}{{"x.friend.example.", 1}, {"friend.example.", 1}, {"X.FRIEND.EXAMPLE.", 1}, {"unfriend.example.", 0}, {"example.", 0}} {
		if m := ask(t, s, tt.name, "AAAA", w1, Role{}, false); len(m.Answer) != tt.want {
			t.Errorf("%s: %v, want %d addresses of the mesh", tt.name, m.Answer, tt.want)
		}
	}
	if _, err := NewForwarder(ForwarderConfig{Rebind: []string{"a..b"}}); err == nil {
		t.Error("a bad name was taken")
	}
}

// The cache is bounded, whatever is asked.
func TestCacheIsBounded(t *testing.T) {
	c, err := newCache(10, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 250)
	for i := range 100 {
		m := new(dns.Msg).SetQuestion(fmt.Sprintf("x%d.example.", i), dns.TypeTXT)
		rr, _ := dns.NewRR(m.Question[0].Name + " 60 IN TXT hello")
		m.Answer = []dns.RR{rr}
		c.put(fmt.Sprint(i), m)
		for range 20 {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: *rr.Header(), Txt: []string{long}})
		}
		c.put(fmt.Sprint("long", i), m)
	}
	if n := c.entries.Len(); n != 10 {
		t.Errorf("%d entries, want 10", n)
	}
	if m, _ := c.get("long99"); m != nil {
		t.Error("an answer of 5 kB was kept")
	}
}

// TTLs never grow with age, and what is fresh is never older than it says.
func TestCacheAges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		clk := &clock{}
		c, err := newCache(4, clk.now)
		if err != nil {
			t.Fatal(err)
		}
		ttl := rapid.Uint32Range(1, maxForwardTTL).Draw(t, "ttl")
		m := new(dns.Msg).SetQuestion("x.", dns.TypeA)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: []byte{192, 0, 2, 1}}}
		c.put("k", m)
		age := rapid.Int64Range(-10, 3*maxForwardTTL).Draw(t, "age")
		clk.seconds.Store(age)
		got, fresh := c.get("k")
		switch {
		case age < 0 || age > int64(ttl)+int64(staleFor/time.Second):
			if got != nil {
				t.Fatalf("at %d of %d: %v", age, ttl, got)
			}
		case got == nil || fresh != (age < int64(ttl)):
			t.Fatalf("at %d of %d: fresh %v, %v", age, ttl, fresh, got)
		case fresh && int64(got.Answer[0].Header().Ttl) != int64(ttl)-age, !fresh && got.Answer[0].Header().Ttl != staleTTL:
			t.Fatalf("at %d of %d: fresh %v, TTL %d", age, ttl, fresh, got.Answer[0].Header().Ttl)
		}
	})
}
