package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/peers/netns"
)

// sink receives numbered packets at UDP port 9 of a machine and notes which.
type sink struct {
	mu  sync.Mutex
	got map[uint32]bool
}

func newSink(w *workload) *sink {
	w.t.Helper()
	s := &sink{got: map[uint32]bool{}}
	conn := udpIn(w.t, w.ns, netip.AddrPortFrom(w.stay.Address, 9))
	go func() {
		b := make([]byte, 100)
		for {
			n, _, err := conn.ReadFromUDP(b)
			if err != nil {
				return
			}
			if n == 4 {
				s.mu.Lock()
				s.got[binary.BigEndian.Uint32(b)] = true
				s.mu.Unlock()
			}
		}
	}()
	return s
}

func (s *sink) count() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.got) }
func (s *sink) reset()     { s.mu.Lock(); defer s.mu.Unlock(); clear(s.got) }

func udpIn(t *testing.T, ns *netns.Handle, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	if err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// stream sends numbered packets to a machine, one a millisecond, until it is told to
// end; it returns how many.
func stream(w *workload, to netip.Addr) (end func() int) {
	w.t.Helper()
	conn := udpIn(w.t, w.ns, netip.AddrPortFrom(w.stay.Address, 0))
	var sent atomic.Uint32
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, sent.Load()), netip.AddrPortFrom(to, 9))
			sent.Add(1)
		}
	}()
	return sync.OnceValue(func() int { close(stop); <-done; return int(sent.Load()) })
}

func isGone(a *local.Attachment) func() bool {
	return func() bool {
		select {
		case <-a.Gone():
			return true
		default:
			return false
		}
	}
}

func hasArrived(a *local.Attachment) func() bool {
	return func() bool {
		select {
		case <-a.Arrived():
			return true
		default:
			return false
		}
	}
}

// A machine moves to another host and home again while others send to it: none of
// their packets is lost, and what the hosts do is what is told to whom.
func TestMoves(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	c := newControl(t)
	a, b, d := newNode(t, c, "a"), newNode(t, c, "b"), newNode(t, c, "d")
	for _, n := range []*node{a, b, d} {
		n.cfg.Timing.MoveGrace = 500 * time.Millisecond
		n.start()
		eventually(t, 10*time.Second, "it works", func() bool { return n.status().Address.IsValid() && n.status().Connected })
	}
	request := local.AttachRequest{Org: "acme", App: "web", ID: "w"}
	ctx := context.Background()
	// At its home nothing else holds the org: with the machine it goes from the view.
	old := newWorkload(t).attach(a, request)
	address := old.stay.Address
	oldSink := newSink(old)
	observer := newWorkload(t).attach(d, local.AttachRequest{Org: "acme", App: "obs", ID: "o"})
	eventually(t, 10*time.Second, "a and d have a tunnel", func() bool { return d.peer("a").State == local.PeerOK })

	if err := newWorkload(t).tryAttach(b, request); err == nil {
		t.Fatal("attached on b beside a")
	}
	request.Move = true
	for _, to := range []*node{b, a} {
		oldSink.reset()
		total := stream(observer, address)
		next := newWorkload(t).attach(to, request)
		if next.stay.From == "" || next.stay.Address != address {
			t.Fatalf("to %s: from %q at %s, want %s", to.cfg.Name, next.stay.From, next.stay.Address, address)
		}
		sink := newSink(next)
		eventually(t, 5*time.Second, "the old one gets packets", func() bool { return oldSink.count() > 100 })
		if hasArrived(next.stay)() || sink.count() > 0 {
			t.Fatal("the move was complete before its process was ready")
		}
		if err := to.client().Ready(ctx, local.Ready{Org: "acme", ID: "w"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the move is complete", hasArrived(next.stay))
		eventually(t, 5*time.Second, "the new one gets packets", func() bool { return sink.count() > 100 })
		eventually(t, 5*time.Second, "the old one is told", isGone(old.stay))
		if over := old.stay.Over(); over == nil || over.Code != local.OverMoved {
			t.Errorf("the old one is told %+v", over)
		}
		sent := total()
		eventually(t, 2*time.Second, "all packets have come", func() bool { return oldSink.count()+sink.count() >= sent })
		t.Logf("to %s: sent %d, %d to the old one, %d to the new one", to.cfg.Name, sent, oldSink.count(), sink.count())
		if got := d.digs("acme", "web.internal"); len(got) != 1 || got[0] != address.String() {
			t.Errorf("the name is %v", got)
		}
		old, oldSink = next, sink
	}
	if w, _ := c.now().Machines.Get("acme/w"); w.Host != "a" || w.Generation != 2 {
		t.Errorf("in the end the record is %+v", w)
	}

	t.Run("the old one ends with its process", func(t *testing.T) {
		next := newWorkload(t).attach(b, request)
		old.end()
		eventually(t, 5*time.Second, "the record is gone", func() bool { return !c.now().Machines.Has("acme/w") })
		if err := b.client().Ready(ctx, local.Ready{Org: "acme", ID: "w"}); err != nil {
			t.Fatal(err)
		}
		// This controller keeps no address for it: then it cannot be moved.
		eventually(t, 5*time.Second, "it is given up", isGone(next.stay))
		if over := next.stay.Over(); over == nil || over.Code != local.OverFailed {
			t.Errorf("it is told %+v", over)
		}
		next.end()
	})
}

// While nobody can tell the controllers that a move is complete, the machine stays
// where it is; when its process goes, the move is called off.
func TestMoveWithoutControllers(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	c := newControl(t)
	a, b := newNode(t, c, "a"), newNode(t, c, "b")
	for _, n := range []*node{a, b} {
		n.start()
		eventually(t, 10*time.Second, "it works", func() bool { return n.status().Address.IsValid() && n.status().Connected })
	}
	request := local.AttachRequest{Org: "acme", App: "web", ID: "w"}
	old := newWorkload(t).attach(a, request)
	old.serve()
	client := newWorkload(t).attach(a, local.AttachRequest{Org: "acme", App: "client", ID: "c"})
	neighbour := newWorkload(t).attach(b, local.AttachRequest{Org: "acme", App: "client", ID: "n"})
	eventually(t, 10*time.Second, "b reaches it", func() bool { got, _ := neighbour.get(old.stay.Address); return got == "w" })
	request.Move = true
	next := newWorkload(t).attach(b, request)
	if got, err := neighbour.get(old.stay.Address); err != nil || got != "w" {
		t.Errorf("on the host that it is to move to, before it is ready: %q, %v", got, err)
	}
	c.stop()
	if err := b.client().Ready(t.Context(), local.Ready{Org: "acme", ID: "w"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "b says that it is not complete", func() bool {
		for _, p := range b.status().Problems {
			if strings.Contains(p, "the move of machine acme/w is not complete") {
				return true
			}
		}
		return false
	})
	if got, err := client.get(old.stay.Address); err != nil || got != "w" || isGone(old.stay)() {
		t.Errorf("the old one: %q, %v", got, err)
	}
	c.start(c.address)
	eventually(t, 10*time.Second, "it is complete when they are back", hasArrived(next.stay))
	eventually(t, 10*time.Second, "the old one is told", isGone(old.stay))

	back := newWorkload(t).attach(a, request)
	eventually(t, 5*time.Second, "a is prepared", func() bool { w, _ := c.now().Machines.Get("acme/w"); return w.Next == "a" })
	back.end()
	eventually(t, 5*time.Second, "the move is called off", func() bool { w, _ := c.now().Machines.Get("acme/w"); return w.Next == "" && w.Host == "b" })
	if isGone(next.stay)() {
		t.Error("the machine went with a move that was called off")
	}
}

// After a restore the hosts register again what runs on them, under its old
// address; what another one has by now is fenced.
func TestRestore(t *testing.T) {
	t.Parallel()
	if !inNamespace(t) {
		return
	}
	c := newControl(t)
	a, b := newNode(t, c, "a"), newNode(t, c, "b")
	for _, n := range []*node{a, b} {
		n.start()
		eventually(t, 10*time.Second, "it works", func() bool { return n.status().Address.IsValid() && n.status().Connected })
	}
	kept := newWorkload(t).attach(a, local.AttachRequest{Org: "acme", App: "web", ID: "kept"})
	kept.serve()
	lost := newWorkload(t).attach(a, local.AttachRequest{Org: "acme", App: "web", ID: "lost"})
	client := newWorkload(t).attach(b, local.AttachRequest{Org: "acme", App: "client", ID: "c"})
	eventually(t, 10*time.Second, "they reach each other", func() bool { got, _ := client.get(kept.stay.Address); return got == "kept" })
	before := kept.stay.Holds()
	record, _ := c.now().Machines.Get("acme/lost")
	record.ID, record.Host = "other", "b"
	c.restore(
		mesh.Change{Key: "machines/acme/kept"}, mesh.Change{Key: "machines/acme/lost"}, mesh.Change{Key: "machines/acme/c"},
		mesh.Change{Key: "machines/acme/other", Object: record},
	)
	eventually(t, 10*time.Second, "what runs is registered again", func() bool {
		return c.now().Machines.Has("acme/kept") && c.now().Machines.Has("acme/c")
	})
	if w, _ := c.now().Machines.Get("acme/kept"); w.Endpoint != before.Endpoint {
		t.Errorf("kept is at %s now, it held %s", w.Endpoint, before.Endpoint)
	}
	eventually(t, 5*time.Second, "what another one has is fenced", isGone(lost.stay))
	if over := lost.stay.Over(); over == nil || over.Code != local.OverFenced {
		t.Errorf("it is told %+v", over)
	}
	if p := strings.Join(a.status().Problems, "\n"); !strings.Contains(p, "machine acme/lost lost its address") {
		t.Errorf("problems: %s", p)
	}
	eventually(t, 5*time.Second, "its process knows the new epoch", func() bool { return kept.stay.Holds().Revision.Epoch > before.Revision.Epoch })
	if got, err := client.get(kept.stay.Address); err != nil || got != "kept" || isGone(kept.stay)() {
		t.Errorf("kept: %q, %v", got, err)
	}

	// Removed by an operator while the agent is down: it does not come back.
	held := kept.stay.Holds()
	a.stop()
	eventually(t, 5*time.Second, "its process notices", isGone(kept.stay))
	c.change(mesh.Change{Key: "machines/acme/kept"})
	a.start()
	eventually(t, 10*time.Second, "a is connected", func() bool { return a.status().Connected && !a.status().FromCache })
	err := kept.tryAttach(a, local.AttachRequest{Org: "acme", App: "web", ID: "kept", Held: &held})
	if e := (&api.Error{}); !errors.As(err, &e) || e.Code != local.OverRemoved {
		t.Errorf("it comes back: %v", err)
	}
	if c.now().Machines.Has("acme/kept") {
		t.Error("it was registered against the operator")
	}
}
