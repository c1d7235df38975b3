package probe

import "time"

// MinMTU is IPv6's least MTU: no link may have a smaller one.
const MinMTU = 1280

const (
	// mtuStep: WireGuard fills packets up to a multiple of 16 bytes, so sizes between
	// two of them are as large on the way.
	mtuStep = 16
	// mtuAttempts is how many packets of a size must be lost until it is said not to
	// arrive. All but the first one leave close after each other.
	mtuAttempts = 8
	mtuGap      = 20 * time.Millisecond
	// heldMost is how long an answer to a small packet is waited for, in steps, before
	// those lost are not counted.
	heldMost = time.Second
	heldStep = 50 * time.Millisecond
	// raiseSoonest and raiseLatest bound the time between two looks whether a path that
	// got narrower is wide again; it doubles with each look in vain.
	raiseSoonest = 8 * time.Second
	raiseLatest  = time.Minute
)

// Path finds the largest packet that arrives at one host: packets as they go into the
// tunnel, IPv6 header included. Like Tracker it does no I/O and reads no clock.
//
//	         a packet of the MTU arrives
//	         .---.
//	         |   v      eight in a row do not       sizes between, by halves
//	at rest (MTU) ------------------------> search -------------------------> at rest (lower MTU)
//	   ^                                                                         |
//	   '---------- now and then a packet of the top size is tried, and arrives --'
//
// What is lost counts only if smaller packets were answered meanwhile: else the way is
// broken, and no size would tell.
type Path struct {
	top     int // the size that is wanted
	mtu     int // found; 0: not yet
	tiny    bool
	seeking bool
	low     int  // of a search: arrives, if sure
	sure    bool // low was tried
	high    int  // of a search: does not arrive

	size  int    // being tried; 0: at rest
	sent  []sent // of size
	last  time.Time
	held  time.Duration // waited for small packets to be answered
	rest  time.Time     // until then nothing is to be done
	raise time.Time     // not before then the top is tried again
	wait  time.Duration
}

// NewPath returns the path to a host, of which nothing is known; top is the largest
// size of interest, at least MinMTU.
func NewPath(top int) *Path { return &Path{top: max(top, MinMTU), wait: raiseSoonest} }

// SetTop changes the largest size of interest. What was found stays if it says
// anything of the new one.
func (p *Path) SetTop(top int) {
	if top = max(top, MinMTU); top == p.top {
		return
	}
	lowered := p.mtu != 0 && p.mtu < p.top && p.mtu < top
	mtu, tiny, wait := p.mtu, p.tiny, p.wait
	*p = Path{top: top, wait: wait}
	if lowered {
		p.mtu, p.tiny = mtu, tiny
	}
}

// MTU is the largest size that arrives, up to the top; 0: not known yet. tiny says
// that not even MinMTU, which it then is, arrives.
func (p *Path) MTU() (mtu int, tiny bool) { return p.mtu, p.tiny }

// Next returns the size of which a packet is to be sent now; 0: none. rtt is the
// host's, answered when it last answered a small probe, and every the time between two
// looks at a path at rest.
func (p *Path) Next(now time.Time, rtt time.Duration, answered time.Time, every time.Duration) int {
	for {
		if p.size == 0 {
			if now.Before(p.rest) {
				return 0
			}
			p.begin(now, every)
		}
		patience := rtt + max(rtt/4, 50*time.Millisecond)
		switch n := len(p.sent); {
		case n == 0:
			return p.size
		case now.Before(p.due(patience)):
			return 0
		case n < mtuAttempts:
			return p.size
		}
		switch {
		case answered.After(p.sent[0].at):
			p.fails(now)
		case now.Sub(p.last) < patience+heldMost:
			p.held += heldStep // a small one is about to be answered, or not
			return 0
		default:
			p.held, p.sent = 0, p.sent[:0] // the way is broken: that says nothing of the size
		}
	}
}

// due is when the next step is to be done, while a size is tried.
func (p *Path) due(patience time.Duration) time.Time {
	if n := len(p.sent); n == 1 || n == mtuAttempts {
		return p.last.Add(patience + p.held)
	}
	return p.last.Add(mtuGap)
}

// Due is when Next is to be called again.
func (p *Path) Due(rtt time.Duration) time.Time {
	switch {
	case p.size == 0:
		return p.rest
	case len(p.sent) == 0:
		return time.Time{}
	}
	return p.due(rtt + max(rtt/4, 50*time.Millisecond))
}

// begin takes up a look after a rest.
func (p *Path) begin(now time.Time, every time.Duration) {
	p.rest = now.Add(every)
	p.size = p.top
	if p.mtu != 0 && p.mtu < p.top && now.Before(p.raise) {
		p.size = p.mtu
	}
	p.sent = p.sent[:0]
}

// Sent notes that a packet of the size that Next said has left.
func (p *Path) Sent(nonce uint64, now time.Time) {
	p.sent = append(p.sent, sent{nonce, now})
	p.last, p.held = now, 0
}

// Received notes an answer. It is false if it answers nothing that is out.
func (p *Path) Received(nonce uint64, now time.Time) bool {
	for _, s := range p.sent {
		if s.nonce == nonce && p.size != 0 {
			p.arrives(now)
			return true
		}
	}
	return false
}

func (p *Path) arrives(now time.Time) {
	size := p.size
	p.size, p.sent = 0, p.sent[:0]
	switch {
	case p.seeking:
		p.low, p.sure = size, true
		p.halve(now)
	case size == p.top:
		if p.mtu == p.top && now.Sub(p.raise) > 10*time.Minute {
			p.wait = raiseSoonest
		}
		p.mtu, p.tiny = size, false
	case p.tiny:
		p.tiny = false
	}
}

func (p *Path) fails(now time.Time) {
	size := p.size
	p.size, p.sent = 0, p.sent[:0]
	switch {
	case p.seeking:
		p.high = size
		p.halve(now)
	case size == p.top && p.mtu != 0 && p.mtu < p.top:
		p.wait = min(2*p.wait, raiseLatest)
		p.raise = now.Add(p.wait)
		p.rest = now // what is held to be the MTU was not looked at
	case size == MinMTU:
		p.settle(now, MinMTU, true)
	default:
		p.seeking, p.low, p.sure, p.high = true, MinMTU, false, size
		p.halve(now)
	}
}

// halve goes on with a search, or ends it.
func (p *Path) halve(now time.Time) {
	mid := min((p.low+p.high)/2, p.high-1) / mtuStep * mtuStep
	if next := mid + mtuStep; mid <= p.low && next < p.high {
		mid = next
	}
	switch {
	case mid > p.low:
		p.size = mid
	case p.sure:
		p.settle(now, p.low, false)
	case p.high > MinMTU:
		p.size = MinMTU
	default:
		p.settle(now, MinMTU, true)
	}
}

func (p *Path) settle(now time.Time, mtu int, tiny bool) {
	p.mtu, p.tiny, p.seeking = mtu, tiny, false
	p.raise = now.Add(p.wait)
}
