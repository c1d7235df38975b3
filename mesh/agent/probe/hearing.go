package probe

import "time"

// Hearing is what the sender of a packet says of how it hears its receiver: with it
// each end of a tunnel can tell which direction is broken. It stands in the flags of
// a packet, where older agents ignore it.
//
//	15                          4   3    2          1      0
//	| age, units of 50 ms         |    | decrypts | said | holds data |
type Hearing struct {
	// Said is false in the packets of older agents, which say nothing. Who says it
	// also answers padded probes and passes on a Tell.
	Said bool
	// Age is how long ago a packet of the other end's agent came through the tunnel;
	// Never if none has.
	Age time.Duration
	// Decrypts: no such packet comes, and yet the sender's tunnel decrypts what the
	// other end sends.
	Decrypts bool
}

// Never stands for the age of what has not happened.
const Never = time.Duration(-1)

const (
	flagSaid     uint16 = 1 << 1
	flagDecrypts uint16 = 1 << 2

	ageShift = 4
	ageUnit  = 50 * time.Millisecond
	ageNever = 0xfff
)

// Flags are the bits for a packet.
func (h Hearing) Flags() uint16 {
	if !h.Said {
		return 0
	}
	age := uint16(ageNever)
	if h.Age >= 0 {
		age = uint16(min(h.Age/ageUnit, ageNever-1))
	}
	flags := flagSaid | age<<ageShift
	if h.Decrypts {
		flags |= flagDecrypts
	}
	return flags
}

// HearingOf reads the flags of a packet.
func HearingOf(flags uint16) Hearing {
	if flags&flagSaid == 0 {
		return Hearing{Age: Never}
	}
	h := Hearing{Said: true, Age: Never, Decrypts: flags&flagDecrypts != 0}
	if age := flags >> ageShift; age != ageNever {
		h.Age = time.Duration(age) * ageUnit
	}
	return h
}

// Way says which directions of a tunnel work.
type Way uint8

// The ways, as seen from here.
const (
	WayUnknown Way = iota // nothing says that one direction works, or it is too early to say
	WayBoth
	WayLostOut // what is sent does not arrive there; what they send arrives
	WayLostIn  // what they send does not arrive; what is sent arrives there
)

// OneWay reports whether exactly one direction works.
func (w Way) OneWay() bool { return w == WayLostOut || w == WayLostIn }

// Exchange is what is known of a tunnel's two directions. Ages are Never for what has
// not happened.
type Exchange struct {
	Silent bool          // own probes get no answers any more (see Tracker)
	Heard  time.Duration // since anything of the other end's agent came
	Said   time.Duration // since the other end said how it hears this one
	Hears  Hearing       // what it said
}

// Way decides. What is younger than fresh counts as now.
//
//	own probes  their packets  they say                  way
//	answered    any            any                       both
//	silent      come           hear nothing              lost out
//	silent      come           nothing (older agent)     lost out: a reply would come as well
//	silent      come           hear us                   unknown: they hear and do not answer
//	silent      none           hear us (by a third one)  lost in
//	silent      none           else                      unknown: both, or the host is gone
func (e Exchange) Way(fresh time.Duration) Way {
	now := func(age time.Duration) bool { return age >= 0 && age < fresh }
	// What was said a while ago is as old as that more.
	heardThere := e.Hears.Said && e.Said >= 0 && e.Hears.Age >= 0 && now(e.Hears.Age) && now(e.Said)
	switch {
	case !e.Silent && now(e.Heard):
		return WayBoth
	case !e.Silent:
		return WayUnknown
	case now(e.Heard) && !heardThere:
		return WayLostOut
	case !now(e.Heard) && heardThere:
		return WayLostIn
	}
	return WayUnknown
}
