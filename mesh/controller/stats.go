package controller

import (
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft/mesh/metrics"
)

// requests counts answers.
type requests struct {
	mu     sync.Mutex
	counts map[requestKind]uint64 // guarded by mu
	active atomic.Int64           // being answered now
}

type requestKind struct {
	route  string
	status int
}

func (r *requests) count(route string, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[requestKind{route, status}]++
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// stats is what the controller knows about itself.
func (s *server) stats() []metrics.Stat {
	st := s.store.State()
	out := []metrics.Stat{
		{Name: "weft_controller_streams", Help: "View streams that are open.", Value: float64(s.streams.len())},
		{Name: "weft_controller_fenced_total", Help: "Streams refused because a live one uses the same key.", Counter: true, Value: float64(s.streams.fenced.Load())},
		{Name: "weft_controller_deltas_total", Help: "Deltas sent on view streams.", Counter: true, Value: float64(s.hub.counters.deltas.Load())},
		{Name: "weft_controller_deltas_encoded_total", Help: "Deltas made into JSON: one serves many streams.", Counter: true, Value: float64(s.hub.counters.encoded.Load())},
		{Name: "weft_controller_snapshots_total", Help: "View streams, or gaps in one, that took a snapshot.", Counter: true, Value: float64(s.hub.counters.snapshots.Load())},
		{Name: "weft_controller_resumed_total", Help: "View streams that went on from the node's revision.", Counter: true, Value: float64(s.hub.counters.resumed.Load())},
		{Name: "weft_controller_stream_overflows_total", Help: "Times that more waited for a stream than it may, so that it had to catch up.", Counter: true, Value: float64(s.hub.counters.overflows.Load())},
		{Name: "weft_controller_slow_streams_total", Help: "View streams cut because the node did not read.", Counter: true, Value: float64(s.hub.counters.slow.Load())},
		{Name: "weft_store_revision", Help: "Revision of the state in memory.", Value: float64(st.Revision.Revision)},
		{Name: "weft_store_age_seconds", Help: "Time since the state in memory was last known to be current.", Value: s.store.Age().Seconds()},
		{Name: "weft_controller_elected", Help: "1 if this controller does the periodic jobs, 0 if another one does.", Value: oneIf(s.store.Elected())},
	}
	for _, n := range []struct {
		kind string
		n    int
	}{
		{"org", st.Orgs.Len()}, {"region", st.Regions.Len()}, {"host", st.Hosts.Len()}, {"app", st.Apps.Len()},
		{"machine", st.Machines.Len()}, {"client", st.Clients.Len()}, {"token", st.Tokens.Len()}, {"present_host", st.Presence.Len()},
	} {
		out = append(out, metrics.Stat{
			Name: "weft_store_objects", Help: "Objects in the state.",
			Labels: []metrics.Label{{Key: "kind", Value: n.kind}}, Value: float64(n.n),
		})
	}
	out = append(out, etcdStats(s.condition())...)
	s.requests.mu.Lock()
	defer s.requests.mu.Unlock()
	for k, n := range s.requests.counts {
		out = append(out, metrics.Stat{
			Name: "weft_controller_requests_total", Help: "Answered requests, by route and status.", Counter: true,
			Labels: []metrics.Label{{Key: "route", Value: k.route}, {Key: "code", Value: strconv.Itoa(k.status)}}, Value: float64(n),
		})
	}
	return out
}
