// Package local is the language between the programs on one machine: `weft` asks
// the agent of a host, or the `weft up` of a laptop, over a unix socket. Here are
// the types and the client; the server is mesh/agent.
package local

import (
	"net/netip"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// Default places of the socket.
const (
	HostSocket   = "/run/weft/agent.sock"
	LaptopSocket = "/run/weft/up.sock"
)

// Status is GET /v1/status.
type Status struct {
	Node        string         `json:"node"` // host/NAME or client/ORG/NAME
	Version     string         `json:"version"`
	Address     netip.Addr     `json:"address"`
	Prefix      netip.Prefix   `json:"prefix"`                // the mesh's
	Connected   bool           `json:"connected"`             // a view stream is open
	Controller  string         `json:"controller"`            // the one last spoken to
	Controllers []string       `json:"controllers,omitempty"` // all that are known, in the order in which they would be asked
	Revision    string         `json:"revision"`              // of the view in effect
	ViewAge     time.Duration  `json:"view_age"`              // since it was last known to be current
	FromCache   bool           `json:"from_cache"`            // no controller has confirmed the view since the start
	Backend     string         `json:"backend"`
	Device      string         `json:"device,omitempty"` // version and number of the process that holds a userspace device
	Link        string         `json:"link"`
	Namespace   string         `json:"namespace,omitempty"`
	MTU         int            `json:"mtu"`
	Orgs        []string       `json:"orgs"` // carried
	Peers       []Peer         `json:"peers"`
	Machines    []Attached     `json:"machines,omitempty"` // attached here
	Gateway     string         `json:"gateway,omitempty"`  // of a laptop
	Gateways    []GatewayState `json:"gateways,omitempty"` // that a laptop could use, nearest first
	DNS         string         `json:"dns,omitempty"`      // how a laptop's resolver was set
	Problems    []string       `json:"problems,omitempty"` // what is wrong now, a sentence each
}

// Peer states: what the agent's own probes say.
const (
	PeerOK         = "ok"
	PeerUnmeasured = "unmeasured" // no answer yet
	PeerSuspect    = "suspect"    // answers stopped
	PeerDead       = "dead"       // suspect, and unknown to the controllers for a while
	PeerOneWay     = "one-way"    // suspect, and one direction of the tunnel works
)

// What a one-way tunnel loses.
const (
	LostOut = "out" // what is sent to the peer
	LostIn  = "in"  // what the peer sends
)

// Peer is one tunnel.
type Peer struct {
	Name          string         `json:"name"` // host/NAME or client/ORG/NAME
	Region        string         `json:"region,omitempty"`
	Key           string         `json:"key"`
	Endpoint      netip.AddrPort `json:"endpoint"`
	LastHandshake time.Time      `json:"last_handshake"`
	Rx            uint64         `json:"rx"`
	Tx            uint64         `json:"tx"`
	RTT           time.Duration  `json:"rtt"`
	State         string         `json:"state"`
	Lost          string         `json:"lost,omitempty"` // of a one-way tunnel
	MTU           int            `json:"mtu,omitempty"`  // of the routes to a host
}

// GatewayState is a host that a laptop could connect through.
type GatewayState struct {
	Name   string        `json:"name"`
	Region string        `json:"region"`
	RTT    time.Duration `json:"rtt"`            // 0: no answer
	Rests  time.Time     `json:"rests,omitzero"` // it stopped answering several times: not used before this
}

// AttachRequest is POST /v1/attach: a machine wants to be in the mesh. The caller's
// thread TID holds the machine's network namespace while the request is answered;
// its process is taken from the socket's credentials, not from here.
type AttachRequest struct {
	Org   string            `json:"org"`
	App   string            `json:"app"`
	ID    string            `json:"id,omitempty"`
	Group string            `json:"group,omitempty"`
	Meta  map[string]string `json:"meta,omitempty"`
	TID   int               `json:"tid"`
	// Stable: it keeps its address on another host; nil: if ID is given.
	Stable *bool `json:"stable,omitempty"`
	// Move takes the machine over from the host where it runs.
	Move     bool `json:"move,omitempty"`
	Unlisted bool `json:"unlisted,omitempty"` // see mesh.Machine
	// Checks are what the agent looks at. Those that are commands the caller runs, and
	// says what came of it (CheckResult).
	Checks []mesh.Check `json:"checks,omitempty"`
	// Held is what the caller was given before, when it comes back to an agent that
	// went away.
	Held *Held `json:"held,omitempty"`
}

// Held is what a machine holds, in its process's own memory: so an agent that lost
// its record knows whose it was, and whether it was removed since.
type Held struct {
	Endpoint   netip.Prefix  `json:"endpoint"`
	Generation uint64        `json:"generation"`
	Revision   mesh.Revision `json:"revision"` // of a view that had it
}

// Attached answers AttachRequest as one line of JSON. The response then stays
// open, for Notices: the machine is attached until the caller closes the connection
// or dies, and the caller learns that the agent is gone by the connection's end. A
// caller that reconnects with what it was given gets the same machine back.
type Attached struct {
	Org      string     `json:"org"`
	App      string     `json:"app"`
	ID       string     `json:"id"`
	Address  netip.Addr `json:"address"`
	Resolver netip.Addr `json:"resolver"`
	Link     string     `json:"link"` // the host's end, in the data plane's namespace
	MTU      int        `json:"mtu"`
	Host     string     `json:"host"`
	Region   string     `json:"region"`
	Held     Held       `json:"held,omitzero"`
	// From is the host that the machine is still on: it is being moved. It can send
	// already; what is sent to it comes here when its process has said that it is
	// ready, and a Notice says so.
	From string `json:"from,omitempty"`
}

// Notice is a further line of the answer to AttachRequest. The last one has Over.
type Notice struct {
	// Holds is what the machine holds from now on. The first one of a machine that is
	// being moved says that it has arrived.
	Holds *Held `json:"holds,omitempty"`
	Over  *Over `json:"over,omitempty"`
}

// Over says why the agent ended a stay.
type Over struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Codes of Over, and of an api.Error that answers a caller with Held.
const (
	OverMoved   = "moved"    // the machine runs on another host now
	OverRemoved = "removed"  // by an operator
	OverFenced  = "fenced"   // another one has its address
	OverFailed  = "not-here" // the move to this host was not completed
)

// Ready is POST /v1/attach/ready: the process of a machine that is being moved can
// serve. It is of the process that attached it.
type Ready struct {
	Org string `json:"org"`
	ID  string `json:"id"`
}

// CheckResult is POST /v1/attach/check: what one run of a check said that is a
// command. It is of the process that attached the machine.
type CheckResult struct {
	Org     string `json:"org"`
	ID      string `json:"id"`
	Check   int    `json:"check"`             // index in AttachRequest.Checks
	Failure string `json:"failure,omitempty"` // "": it succeeded
}

// Drain is POST /v1/attach/drain: the machine is about to end, and is to be in names
// no longer. It is of the process that attached it.
type Drain struct {
	Org string `json:"org"`
	ID  string `json:"id"`
}

// Dig is GET /v1/dig?name=NAME&type=TYPE&org=ORG: what the node's own resolver
// answers, as text in dig's format, to a member of org (a laptop: its own).
type Dig struct {
	Server netip.AddrPort `json:"server"`
	Source netip.Addr     `json:"source"`
	RTT    time.Duration  `json:"rtt"`
	Rcode  string         `json:"rcode"`
	Answer []string       `json:"answer"` // one record a line
	Text   string         `json:"text"`   // the whole message
}

// Ping is GET /v1/ping?name=NAME&org=ORG: one ICMPv6 echo through the data plane
// to a name or an address.
type Ping struct {
	Name    string        `json:"name"`
	Address netip.Addr    `json:"address"`
	RTT     time.Duration `json:"rtt"`
	Error   string        `json:"error,omitempty"` // no reply, unreachable, ...
	Hint    string        `json:"hint,omitempty"`  // what to do about it
}
