package controller

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/weftmesh/weft/mesh"
)

// event is a server-sent event as it goes over the wire. Streams share it.
type event struct {
	rev  mesh.Revision
	text []byte
}

// newEvent encodes v, whose JSON has no line breaks, as an event of a kind. Its id
// is what a node names to go on from there.
func newEvent(rev mesh.Revision, kind string, v any) (*event, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	return &event{rev, fmt.Appendf(make([]byte, 0, len(data)+64), "id: %s\nevent: %s\ndata: %s\n\n", rev, kind, data)}, nil
}

// How much a stream may have waiting. Beyond, what waits is given up, and the
// stream catches up by its position: what it misses then comes as one delta.
const (
	inboxEvents = 64
	inboxBytes  = 1 << 20
)

// inbox is what a stream is still to send: events in order, and after them, if it
// is behind, all steps from a position on.
type inbox struct {
	wake    chan struct{} // there is something to do
	pingDue atomic.Bool   // somebody waits for one
	tick    atomic.Bool   // it may be time for one

	mu       sync.Mutex
	events   []*event
	size     int // bytes in events
	behind   bool
	position uint64
}

// push adds the event that leads on from a position. full says that there was no
// room for it, and the stream fell behind.
func (b *inbox) push(e *event, position uint64) (full bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.behind:
		return false
	case len(b.events) >= inboxEvents || b.size+len(e.text) > inboxBytes && len(b.events) > 0:
		full, b.behind, b.position = true, true, position
	default:
		b.events = append(b.events, e)
		b.size += len(e.text)
	}
	b.wakeUp()
	return full
}

// fallBehind says that the steps from position on are to be looked at by the stream
// itself.
func (b *inbox) fallBehind(position uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.behind {
		b.behind, b.position = true, position
		b.wakeUp()
	}
}

// askPing has the stream send a ping.
func (b *inbox) askPing() {
	b.pingDue.Store(true)
	b.wakeUp()
}

// quiet has the stream send a ping, unless it has just sent something.
func (b *inbox) quiet() {
	b.tick.Store(true)
	b.wakeUp()
}

func (b *inbox) wakeUp() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns the events that wait as one text, with the revision of the last, and
// how many they are.
func (b *inbox) take() (text []byte, rev mesh.Revision, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = len(b.events)
	switch n {
	case 0:
		return nil, mesh.Revision{}, 0
	case 1:
		text = b.events[0].text
	default:
		all := make([][]byte, n)
		for i, e := range b.events {
			all[i] = e.text
		}
		text = bytes.Join(all, nil)
	}
	rev = b.events[n-1].rev
	b.events, b.size = b.events[:0], 0
	if n > 1 {
		b.events = nil // it grew in a burst
	} else {
		clear(b.events[:1])
	}
	return text, rev, n
}

// caughtUp takes the position from which the stream is behind; ok is false if it is
// not.
func (b *inbox) caughtUp() (position uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ok, b.behind = b.behind, false
	return b.position, ok
}
