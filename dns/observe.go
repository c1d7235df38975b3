package dns

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Asked is one query that was answered, for a log of queries.
type Asked struct {
	Source    netip.Addr
	Name      string // "" if the query could not be read
	Type      uint16
	Rcode     Rcode
	Stream    bool // over TCP
	Forwarded bool
	Took      time.Duration // from its arrival to its answer
}

// LatencyBounds are the upper bounds of a Latency's buckets; beyond the last one is
// one more.
var LatencyBounds = [...]time.Duration{
	10 * time.Microsecond, 30 * time.Microsecond, 100 * time.Microsecond, 300 * time.Microsecond, time.Millisecond, 3 * time.Millisecond,
	10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second,
}

// Latency counts answers by the time that they took.
type Latency struct {
	Buckets [len(LatencyBounds) + 1]uint64
	Sum     time.Duration
}

type latency struct {
	buckets [len(LatencyBounds) + 1]atomic.Uint64
	sum     atomic.Int64
}

// add counts n answers that took each as long.
func (l *latency) add(took time.Duration, n uint64) {
	i, _ := slices.BinarySearch(LatencyBounds[:], took)
	l.buckets[i].Add(n)
	l.sum.Add(int64(took) * int64(n))
}

func (l *latency) read() (out Latency) {
	for i := range l.buckets {
		out.Buckets[i] = l.buckets[i].Load()
	}
	out.Sum = time.Duration(l.sum.Load())
	return out
}

// NameCount is a name and about how often it was asked.
type NameCount struct {
	Name  string
	Count uint64
}

const (
	// topExact: so many queries of each second are looked at, by each loop; of those
	// beyond, one in topSample.
	topExact  = 100
	topSample = 64
	// topKept is how many names are kept; a name that is asked oftener than one
	// query in so many is among them.
	topKept = 512
)

// topNames finds the names that are asked most (space-saving: Metwally, Agrawal,
// El Abbadi, 2005): a name that is new takes the place, and the count, of the one
// that was asked least.
type topNames struct {
	mu     sync.Mutex // guards counts
	counts map[string]uint64
}

// add counts a query that stands for weight ones.
func (t *topNames) add(name string, weight uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = map[string]uint64{}
	}
	n, there := t.counts[name]
	if !there && len(t.counts) >= topKept {
		least, first := "", true
		for name, count := range t.counts {
			if first || count < n {
				least, n, first = name, count, false
			}
		}
		delete(t.counts, least)
	}
	t.counts[name] = n + weight
}

// count notes the name of a query that stands for weight ones. Options that come with
// it do not matter.
func (s *Server) count(packet []byte, weight uint64) {
	if name, ok := askedName(packet); ok {
		s.top.add(presentation(wireLabels(name)), weight)
	}
}

// TopNames returns the names that were asked most since the start, most first, with
// counts that are estimates: a name that took the place of others has theirs as well,
// and under load they are from a sample.
func (s *Server) TopNames(limit int) []NameCount {
	s.top.mu.Lock()
	defer s.top.mu.Unlock()
	var out []NameCount
	for name, n := range s.top.counts {
		out = append(out, NameCount{name, n})
	}
	slices.SortFunc(out, func(a, b NameCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name))
	})
	return out[:min(limit, len(out))]
}

// tell tells the log about one answer.
func (s *Server) tell(packet, answer []byte, a Asked) {
	if s.cfg.QueryLog == nil || len(answer) < headerSize {
		return
	}
	a.Rcode = Rcode(answer[3] & 15)
	if r, _, drop := parseRequest(packet, a.Stream); !drop && len(r.msg.Question) == 1 {
		a.Name, a.Type = lower(r.question().Name), r.question().Qtype
	}
	s.cfg.QueryLog(a)
}

// TypeText is the type's mnemonic, such as AAAA; "" if the query could not be read.
func (a Asked) TypeText() string {
	if a.Name == "" {
		return ""
	}
	return dns.Type(a.Type).String()
}

// String is the outcome's mnemonic, such as NXDOMAIN.
func (r Rcode) String() string {
	if int(r) < len(rcodeNames) && rcodeNames[r] != "" {
		return rcodeNames[r]
	}
	return fmt.Sprintf("RCODE%d", uint16(r))
}
