package userspace

import (
	"sync"
	"time"
	"unsafe"
)

const (
	// An address that so many packets went to, of which none came out again for so
	// long, is silent.
	silentCount = 64
	silentAfter = 30 * time.Millisecond
	// To a silent one goes a packet each silentPace, and silentBurst at once.
	silentPace  = time.Millisecond
	silentBurst = 64 * time.Millisecond
	// addressesMax is how many addresses are kept in mind.
	addressesMax = 4096
)

// silence knows the addresses in the tunnel whose packets go into wireguard-go and do
// not come out: their peer does not answer, or there is none. wireguard-go keeps the
// last 128 batches for a peer without a session, each packet in 64 KiB. And packets
// that stay inside shut the gate for all others. So a silent address gets few packets,
// one by one. What is sent to it now and then goes on as ever: so it is noticed when
// the peer answers.
type silence struct {
	mu        sync.Mutex
	addresses map[tunnelAddress]*asked // guarded by mu, as is inside
	// By the buffer that a packet is in: wireguard-go sends it from there. One whose
	// packet was dropped is seen again with another.
	inside map[uintptr]*asked
}

type tunnelAddress [16]byte

// asked is an address that packets went to.
type asked struct {
	packets int       // since one came out
	since   time.Time // when the first of those went in
	due     time.Time // when the next one is, of a steady pace
}

func newSilence() *silence {
	return &silence{addresses: map[tunnelAddress]*asked{}, inside: map[uintptr]*asked{}}
}

// admission is how many packets of a frame may go in.
type admission int

const (
	admitAll   admission = iota
	admitOne             // and no other with it
	admitLater           // with the next read
	admitNone
)

// admit tells how many packets of f may go in now. first: none goes before them, with
// those of the same read.
func (s *silence) admit(f frame, first bool, now time.Time) admission {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.addresses[f.destination()]
	if a == nil || a.packets < silentCount || now.Sub(a.since) < silentAfter {
		return admitAll
	}
	if a.due.Sub(now) > silentBurst {
		return admitNone
	}
	if !first {
		return admitLater
	}
	if a.due.Before(now) {
		a.due = now
	}
	a.due = a.due.Add(silentPace)
	return admitOne
}

// enter says that packets of f went in, in these buffers.
func (s *silence) enter(f frame, bufs [][]byte, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.addresses) >= addressesMax || len(s.inside) >= addressesMax {
		clear(s.addresses)
		clear(s.inside)
	}
	to := f.destination()
	a := s.addresses[to]
	if a == nil {
		a = &asked{}
		s.addresses[to] = a
	}
	if a.packets == 0 {
		a.since = now
	}
	a.packets += len(bufs)
	for _, b := range bufs {
		s.inside[bufferOf(b)] = a
	}
}

// leave says that messages came out.
func (s *silence) leave(messages [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range messages {
		at := bufferOf(m)
		if a := s.inside[at]; a != nil {
			a.packets = 0
			delete(s.inside, at)
		}
	}
}

// bufferOf is a number, for the buffer not to be kept because of it.
func bufferOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func (f frame) destination() (to tunnelAddress) {
	p := f.packet()
	if p[0]>>4 == 4 {
		copy(to[:], p[16:ip4Header])
	} else {
		copy(to[:], p[24:ip6Header])
	}
	return to
}
