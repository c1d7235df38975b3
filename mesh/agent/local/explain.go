package local

import (
	"net/netip"
	"time"
)

// Explain is GET /v1/explain?name=NAME&type=TYPE&org=ORG&as=MACHINE: why a resolver
// answers a member of org as it does now. Ages are how old a fact is; one that is
// not there has no moment: it never happened, or is not known.
type Explain struct {
	Name   string     `json:"name"`
	Type   string     `json:"type"`
	Org    string     `json:"org"`
	As     string     `json:"as,omitempty"` // the machine that asks; "": the host itself, which is of no app
	Source netip.Addr `json:"source"`
	Node   string     `json:"node"`             // that answers: distances are from there
	Region string     `json:"region,omitempty"` // of it

	Rcode  string   `json:"rcode"`
	Answer []string `json:"answer"`         // what the records hold
	Note   string   `json:"note,omitempty"` // what there is to say about a name that no machines stand for

	Revision  string        `json:"revision"` // of the view
	ViewAge   time.Duration `json:"view_age"` // since it was last known to be current
	Connected bool          `json:"connected"`

	Machines []Considered `json:"machines"` // that the name means: those of the answer in its order, then the others by distance
}

// Considered is one machine that a name means.
type Considered struct {
	Position int        `json:"position"` // in the answer, from 1; 0: left out
	Reason   string     `json:"reason"`   // why it is in the answer, or not
	Machine  string     `json:"machine"`
	App      string     `json:"app"`
	Address  netip.Addr `json:"address"`

	State     string         `json:"state"`                // of the machine
	Health    string         `json:"health,omitempty"`     // passing or failing; "": it has no checks
	HealthAge *time.Duration `json:"health_age,omitempty"` // since it began to pass, or to fail
	Note      string         `json:"note,omitempty"`       // why it fails
	Cordoned  bool           `json:"cordoned,omitempty"`   // the machine itself

	Host     string        `json:"host"`
	Region   string        `json:"region"`
	Distance time.Duration `json:"distance"` // round trip; 0: here, or unknown
	Basis    string        `json:"basis"`    // here, measured, coordinates, geography or unknown
	// HostState is what the own probes say: see the peers' states, or "here".
	HostState    string         `json:"host_state"`
	HostCordoned bool           `json:"host_cordoned,omitempty"`
	AskedAge     *time.Duration `json:"asked_age,omitempty"`
	AnsweredAge  *time.Duration `json:"answered_age,omitempty"` // since the host's last answer to a probe
	SuspectAge   *time.Duration `json:"suspect_age,omitempty"`
	AbsentAge    *time.Duration `json:"absent_age,omitempty"` // since the controllers lost the host
	// CoordinateError says how sure the host's network coordinate is, from 0 (very) to
	// 1.5 (not at all); 0: it has none.
	CoordinateError float64 `json:"coordinate_error,omitempty"`
}

// Top is GET /v1/top: the names that are asked most.
type Top struct {
	Names []TopName `json:"names"`
}

// TopName is a name, and about how often it was asked since the agent's start.
type TopName struct {
	Name  string `json:"name"`
	Count uint64 `json:"count"`
}
