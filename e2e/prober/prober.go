// Package prober tries from inside an endpoint of the mesh what it reaches, and notes
// who reaches it. A server listens for echoes over TCP and UDP and is told over a
// unix socket what to try; the socket is a file, so a test outside the endpoint's
// network finds it. What must be reached is for others to say (e2e/churn). It is part
// of the lab's workload and no part of the product.
package prober

import (
	"net/netip"
	"time"
)

// What is tried.
const (
	TCP  = "tcp"  // a connection to the echo, and what is said comes back
	UDP  = "udp"  // a datagram to the echo, again and again until it comes back
	Echo = "echo" // an ICMPv6 echo, likewise
	Name = "name" // AAAA by the resolver in resolv.conf
)

// Question is one thing to try.
type Question struct {
	Kind string         `json:"kind"`
	To   netip.AddrPort `json:"to,omitzero"` // the port of Echo is 0
	Name string         `json:"name,omitempty"`
	// Source is the address to send from, whoever's it is; invalid: the own one. Only
	// UDP and Echo. Whether it came through, the receiver has heard.
	Source netip.Addr `json:"source,omitzero"`
}

// Answer is what came of a Question.
type Answer struct {
	OK        bool          `json:"ok"` // it was said back; the name was answered, also with nothing
	Addresses []netip.Addr  `json:"addresses,omitempty"`
	Error     string        `json:"error,omitempty"` // why not OK
	Began     time.Time     `json:"began"`
	Took      time.Duration `json:"took"`
}

// Heard is who has spoken to the echoes since that was asked the last time.
type Heard struct {
	Kind  string     `json:"kind"` // TCP or UDP
	Port  uint16     `json:"port"`
	From  netip.Addr `json:"from"` // as the packets said
	Who   string     `json:"who"`  // as the speaker said; "": it did not
	Count int        `json:"count"`
	First time.Time  `json:"first"`
	Last  time.Time  `json:"last"`
}

// Self is what an endpoint says about itself.
type Self struct {
	Who       string       `json:"who"`
	Addresses []netip.Addr `json:"addresses"` // global ones, IPv6
	Heard     []Heard      `json:"heard"`
}

// ask is the body of a request.
type ask struct {
	Within    time.Duration `json:"within"`
	Questions []Question    `json:"questions"`
}

const (
	maxHeard = 4096 // different speakers that are noted
	maxText  = 256  // of a line that is echoed
	atOnce   = 64   // questions that are tried at a time
)
