package lab

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Switch carries frames between the hosts of a lab. What lies between two hosts
// is a Path in each direction, at first without delay and loss. Names are those of
// hosts; a host behind a router stands for its router. Methods are for any
// goroutine; what is already on its way is not changed by them.
//
// Address resolution (ARP, IPv6 neighbour discovery) always passes, at once: in the
// wide-area network that the switch stands for there is none, so a cut is silence
// and the first packet takes no longer than the second.
type Switch struct {
	seed  uint64
	epoch time.Time // what the queues' times count from
	pool  pool

	mu      sync.Mutex
	names   map[string]*port
	ports   atomic.Pointer[[]*port]       // replaced under mu
	byMAC   atomic.Pointer[map[mac]*port] // replaced under mu
	readers sync.WaitGroup
	closed  bool
}

// Path is what happens to packets from one host to another. The zero value is a
// wire: no delay, no loss, as fast as it goes.
type Path struct {
	Delay  time.Duration // one way
	Jitter time.Duration // up to this is added to each packet's Delay; reorders
	Loss   float64       // share of packets that get lost, 0 to 1
	Rate   int64         // bits per second; 0: no cap. Its queue holds 100 ms, at least 32 kB
	Cut    bool          // nothing passes
	MTU    int           // larger IP packets get lost, and nobody is told; 0: all pass

	Reorder   float64 // share of packets that come 10 ms later, so that others overtake them, 0 to 1
	Duplicate float64 // share of packets that come twice, 0 to 1
}

// Counters count the packets from one host to another.
type Counters struct {
	Packets, Bytes   uint64 // delivered, or on their way; Ethernet headers included
	Frames           uint64 // that went in: one may hold many packets of a flow
	Lost, Cut, Full  uint64 // packets dropped by Path.Loss, by a cut, by a full queue
	Big              uint64 // packets dropped by Path.MTU
	Resolved, Failed uint64 // address resolution frames; frames that the receiver's kernel refused

	Reordered, Duplicated uint64 // packets held back by Path.Reorder; packets, of those above, delivered a second time
}

func newSwitch(seed uint64) *Switch {
	s := &Switch{seed: seed, epoch: time.Now(), names: map[string]*port{}}
	s.ports.Store(&[]*port{})
	s.byMAC.Store(&map[mac]*port{})
	return s
}

func (s *Switch) now() time.Duration { return time.Since(s.epoch) }

// port is one host's place on the switch. It outlives the host's TAP, which a
// reboot replaces.
type port struct {
	s     *Switch
	index int
	name  string
	mac   mac
	cut   atomic.Bool
	tap   atomic.Pointer[os.File]
	out   *outbox
	links atomic.Pointer[[]*link] // from here, by index of the receiver
}

// add makes the port of a new host.
func (s *Switch) add(name string) (*port, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] != nil {
		return nil, fmt.Errorf("add %s to the switch: the name is taken", name)
	}
	old := *s.ports.Load()
	p := &port{s: s, index: len(old), name: name, mac: mac{0x02, 0, 0, 0, 0, 0}}
	binary.BigEndian.PutUint16(p.mac[4:], uint16(p.index+1))
	out, err := newOutbox(p)
	if err != nil {
		return nil, err
	}
	p.out = out
	ports := append(old[:len(old):len(old)], p)
	for _, from := range ports {
		var links []*link
		if have := from.links.Load(); have != nil {
			links = append(links, *have...)
		}
		for _, to := range ports[len(links):] {
			links = append(links, newLink(from, to))
		}
		from.links.Store(&links)
	}
	table := make(map[mac]*port, len(ports))
	for _, p := range ports {
		table[p.mac] = p
	}
	s.names[name] = p
	s.ports.Store(&ports)
	s.byMAC.Store(&table)
	return p, nil
}

// alias makes name another name of a port.
func (s *Switch) alias(name string, p *port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] != nil {
		return fmt.Errorf("add %s to the switch: the name is taken", name)
	}
	s.names[name] = p
	return nil
}

// attach starts to carry frames to and from a TAP, instead of the one before.
func (p *port) attach(tap *os.File) {
	if old := p.tap.Swap(tap); old != nil {
		old.Close()
	}
	p.s.readers.Go(func() { p.read(tap) })
}

func (p *port) detach() {
	if old := p.tap.Swap(nil); old != nil {
		old.Close()
	}
}

// read takes frames from the host until its TAP is closed.
func (p *port) read(tap *os.File) {
	frame, scratch := make([]byte, maxFrame), make([]byte, maxFrame)
	for {
		n, err := tap.Read(frame)
		if err != nil {
			return
		}
		if n < netOff {
			continue
		}
		p.forward(frame[:n], scratch)
	}
}

// forward sends a frame to its receiver or, if it is for a group, to all others.
// A frame for nobody is dropped.
func (p *port) forward(frame, scratch []byte) {
	dst := destination(frame)
	// The receiver first, then the links: a host that is being added is in the links
	// before it is in the table.
	to := (*p.s.byMAC.Load())[dst]
	links := *p.links.Load()
	if !dst.group() {
		if to != nil && to != p {
			links[to.index].send(frame, scratch)
		}
		return
	}
	for _, l := range links {
		if l.to != p {
			l.send(frame, scratch)
		}
	}
}

// write hands a frame to the host's kernel.
func (p *port) write(frame []byte) bool {
	tap := p.tap.Load()
	if tap == nil {
		return false
	}
	_, err := tap.Write(frame)
	return err == nil
}

// close ends all goroutines of the switch. Frames on their way are dropped.
func (s *Switch) close() {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		return
	}
	for _, p := range *s.ports.Load() {
		p.detach()
		p.out.close()
	}
	s.readers.Wait()
}

func (s *Switch) link(from, to string) (*link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, b := s.names[from], s.names[to]
	switch {
	case a == nil:
		return nil, fmt.Errorf("path %s to %s: no host %s on the switch", from, to, from)
	case b == nil:
		return nil, fmt.Errorf("path %s to %s: no host %s on the switch", from, to, to)
	case a == b:
		return nil, fmt.Errorf("path %s to %s: they have one place on the switch", from, to)
	}
	return (*a.links.Load())[b.index], nil
}

// change changes the path from one host to the other, and the one back if both.
func (s *Switch) change(a, b string, both bool, edit func(*Path)) error {
	pairs := [][2]string{{a, b}, {b, a}}
	if !both {
		pairs = pairs[:1]
	}
	for _, pair := range pairs {
		l, err := s.link(pair[0], pair[1])
		if err != nil {
			return err
		}
		if err := l.change(edit); err != nil {
			return err
		}
	}
	return nil
}

// Path returns what lies between from and to, in that direction.
func (s *Switch) Path(from, to string) (Path, error) {
	l, err := s.link(from, to)
	if err != nil {
		return Path{}, err
	}
	return *l.path.Load(), nil
}

// SetPath sets all that lies between from and to, in that direction.
func (s *Switch) SetPath(from, to string, p Path) error {
	return s.change(from, to, false, func(old *Path) { *old = p })
}

// SetRTT sets the round-trip time between two hosts, half of it each way.
func (s *Switch) SetRTT(a, b string, rtt time.Duration) error {
	return s.SetDelay(a, b, rtt/2)
}

// SetDelay sets the one-way delay of both directions.
func (s *Switch) SetDelay(a, b string, oneWay time.Duration) error {
	return s.change(a, b, true, func(p *Path) { p.Delay = oneWay })
}

// SetJitter sets the largest addition to the delay, in both directions.
func (s *Switch) SetJitter(a, b string, most time.Duration) error {
	return s.change(a, b, true, func(p *Path) { p.Jitter = most })
}

// SetLoss sets the share of packets that get lost, in each direction.
func (s *Switch) SetLoss(a, b string, share float64) error {
	return s.change(a, b, true, func(p *Path) { p.Loss = share })
}

// SetReorder sets the share of packets that others overtake, in each direction.
func (s *Switch) SetReorder(a, b string, share float64) error {
	return s.change(a, b, true, func(p *Path) { p.Reorder = share })
}

// SetDuplicate sets the share of packets that come twice, in each direction.
func (s *Switch) SetDuplicate(a, b string, share float64) error {
	return s.change(a, b, true, func(p *Path) { p.Duplicate = share })
}

// SetRate caps each direction at bits per second, 0 for no cap.
func (s *Switch) SetRate(a, b string, bitsPerSecond int64) error {
	return s.change(a, b, true, func(p *Path) { p.Rate = bitsPerSecond })
}

// SetMTU loses packets larger than so many bytes, IP header included, in each
// direction, without a word to their senders; 0 for none.
func (s *Switch) SetMTU(a, b string, mtu int) error {
	return s.change(a, b, true, func(p *Path) { p.MTU = mtu })
}

// Cut lets nothing pass between two hosts, in either direction, until Restore.
func (s *Switch) Cut(a, b string) error {
	return s.change(a, b, true, func(p *Path) { p.Cut = true })
}

// CutOneWay lets nothing pass from one host to the other. Restore ends it.
func (s *Switch) CutOneWay(from, to string) error {
	return s.change(from, to, false, func(p *Path) { p.Cut = true })
}

// Restore ends Cut and CutOneWay.
func (s *Switch) Restore(a, b string) error {
	return s.change(a, b, true, func(p *Path) { p.Cut = false })
}

// CutHost cuts a host off from all others, until RestoreHost.
func (s *Switch) CutHost(name string) error { return s.setHostCut(name, true) }

// RestoreHost ends CutHost. Pairs that Cut has cut stay cut.
func (s *Switch) RestoreHost(name string) error { return s.setHostCut(name, false) }

func (s *Switch) setHostCut(name string, cut bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.names[name]
	if p == nil {
		return fmt.Errorf("cut or restore %s: no such host on the switch", name)
	}
	p.cut.Store(cut)
	return nil
}

// Counters counts what went from one host to the other since the lab began.
func (s *Switch) Counters(from, to string) (Counters, error) {
	l, err := s.link(from, to)
	if err != nil {
		return Counters{}, err
	}
	return l.counters(), nil
}
