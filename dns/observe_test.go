package dns

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
)

func TestQueryLog(t *testing.T) {
	u := startUpstream(t, says(t, "example. 60 IN A 192.0.2.1"))
	s := forwarding(t, ForwarderConfig{}, u.at)
	var mu sync.Mutex // guards log
	var log []Asked
	s.cfg.QueryLog = func(a Asked) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, a)
	}
	at, _ := serve(t, s, w1)
	for _, net := range []string{"udp", "tcp"} {
		for _, name := range []string{"Web.internal.", "nosuch.internal.", "example."} {
			c := &dns.Client{Net: net, Timeout: deadline}
			if _, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, TypeAAAA), at.String()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if diff := cmp.Diff([]NameCount{{"example.", 2}, {"nosuch.internal.", 2}, {"web.internal.", 2}}, s.TopNames(9)); diff != "" {
		t.Errorf("names asked over UDP and TCP, one by one (-want +got):\n%s", diff)
	}
	waitFor(t, "six entries", func() bool { mu.Lock(); defer mu.Unlock(); return len(log) == 6 })
	var want []Asked
	for _, stream := range []bool{false, true} {
		want = append(want,
			Asked{Name: "web.internal.", Type: TypeAAAA, Stream: stream},
			Asked{Name: "nosuch.internal.", Type: TypeAAAA, Rcode: NameError, Stream: stream},
			Asked{Name: "example.", Type: TypeAAAA, Stream: stream, Forwarded: true})
	}
	// An entry is written after its answer: those of several loops come in any order.
	byName := func(a, b Asked) int {
		return strings.Compare(fmt.Sprint(a.Stream, a.Name), fmt.Sprint(b.Stream, b.Name))
	}
	slices.SortFunc(want, byName)
	slices.SortFunc(log, byName)
	if diff := cmp.Diff(want, log, cmpopts.IgnoreFields(Asked{}, "Source", "Took")); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if slices.ContainsFunc(log, func(a Asked) bool { return !a.Source.IsValid() || a.Took <= 0 }) {
		t.Errorf("an entry without a source, or that took no time: %v", log)
	}
	st := s.Stats()
	count := func(l Latency) (n uint64) {
		for _, b := range l.Buckets {
			n += b
		}
		return n
	}
	waitFor(t, "the last latency", func() bool { st = s.Stats(); return count(st.Own) == 2 && count(st.Passed) == 2 })
	if count(st.Own) != 2 || count(st.Passed) != 2 || st.Own.Sum <= 0 {
		t.Errorf("latencies: %+v, %+v", st.Own, st.Passed)
	}
}

func TestTopNames(t *testing.T) {
	var s Server
	for i := range 100_000 {
		if i%10 == 0 {
			s.top.add("often.internal.", topSample)
		} else if i%10 == 1 {
			s.top.add(fmt.Sprintf("sometimes%d.internal.", i%3), topSample)
		} else {
			s.top.add(fmt.Sprintf("once%d.internal.", i), topSample)
		}
	}
	top := s.TopNames(4)
	if len(top) != 4 || top[0].Name != "often.internal." || top[0].Count < 10_000*topSample {
		t.Errorf("top %v", top)
	}
	for _, n := range top[1:] {
		if len(n.Name) < 9 || n.Name[:9] != "sometimes" {
			t.Errorf("top %v", top)
		}
	}
	if len(s.top.counts) > topKept {
		t.Errorf("%d names are kept", len(s.top.counts))
	}
}

// Every query counts, whatever it has besides its question, and over either transport.
func TestTopNamesCountsAllQueries(t *testing.T) {
	s := testServer(fixture(), fixtureFacts())
	at, _ := serve(t, s, w1)
	for i, change := range []func(*dns.Msg){
		func(*dns.Msg) {},
		func(m *dns.Msg) { m.SetEdns0(1232, false) },
		func(m *dns.Msg) { // as dig asks
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		},
		func(m *dns.Msg) { m.Question[0].Name = "DB.internal." },
	} {
		for j, network := range []string{"udp", "tcp"} {
			q := new(dns.Msg).SetQuestion("db.internal.", TypeAAAA)
			change(q)
			if _, _, err := (&dns.Client{Net: network, Timeout: deadline}).Exchange(q, at.String()); err != nil {
				t.Fatal(err)
			}
			want := []NameCount{{"db.internal.", uint64(2*i + j + 1)}}
			if diff := cmp.Diff(want, s.TopNames(5)); diff != "" {
				t.Errorf("after query %d over %s (-want +got):\n%s", i, network, diff)
			}
		}
	}
	for _, none := range [][]byte{nil, make([]byte, headerSize), make([]byte, headerSize+4), append(make([]byte, headerSize), 0xc0, 12, 0, 1, 0, 1)} {
		s.count(none, 1)
	}
	if n := len(s.TopNames(5)); n != 1 {
		t.Errorf("%d names of one", n)
	}
}

func TestLatency(t *testing.T) {
	var l latency
	for _, d := range []time.Duration{0, 10 * time.Microsecond, 11 * time.Microsecond, 3 * time.Second, time.Minute} {
		l.add(d, 2)
	}
	got := l.read()
	if got.Buckets[0] != 4 || got.Buckets[1] != 2 || got.Buckets[len(LatencyBounds)-1] != 2 || got.Buckets[len(LatencyBounds)] != 2 {
		t.Errorf("%v", got)
	}
}

func TestAskedText(t *testing.T) {
	for _, tt := range []struct {
		asked       Asked
		kind, rcode string
	}{
		{Asked{Name: "x.", Type: TypeAAAA}, "AAAA", "NOERROR"},
		{Asked{Name: "x.", Type: 65280, Rcode: NameError}, "TYPE65280", "NXDOMAIN"},
		{Asked{Rcode: FormatError}, "", "FORMERR"},
		{Asked{Name: "x.", Type: TypeTXT, Rcode: 12}, "TXT", "RCODE12"},
	} {
		if kind, rcode := tt.asked.TypeText(), tt.asked.Rcode.String(); kind != tt.kind || rcode != tt.rcode {
			t.Errorf("%+v: %s %s, want %s %s", tt.asked, kind, rcode, tt.kind, tt.rcode)
		}
	}
}
