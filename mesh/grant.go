package mesh

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Grant lets endpoints of one org begin flows to endpoints of another. Answers come
// back; nothing begins the other way. What it names need not be there yet.
type Grant struct {
	ID       string `json:"id"`
	From     Party  `json:"from"`
	To       Party  `json:"to"`
	Protocol string `json:"protocol"` // ProtocolTCP, ProtocolUDP, ProtocolICMP or ProtocolAll
	// Ports of the destination, both ends included, of TCP and UDP. Both 0: all.
	FirstPort uint16    `json:"first_port,omitempty"`
	LastPort  uint16    `json:"last_port,omitempty"`
	Created   time.Time `json:"created,omitzero"`
}

// Protocols of grants. ICMP is echo alone: errors about what is granted need none.
const (
	ProtocolTCP  = "tcp"
	ProtocolUDP  = "udp"
	ProtocolICMP = "icmp"
	ProtocolAll  = "all" // these three
)

// Party is one side of a grant: all of an org, or one app, one machine or one client
// of it.
type Party struct {
	Org     string `json:"org"`
	App     string `json:"app,omitempty"`
	Machine string `json:"machine,omitempty"`
	Client  string `json:"client,omitempty"`
}

// Words before a name in the text of a Party. No name has a ':'.
const (
	partyMachine = "machine:"
	partyClient  = "client:"
)

// String is what ParseParty reads.
func (p Party) String() string {
	switch {
	case p.Machine != "":
		return p.Org + "/" + partyMachine + p.Machine
	case p.Client != "":
		return p.Org + "/" + partyClient + p.Client
	case p.App != "":
		return p.Org + "/" + p.App
	}
	return p.Org
}

// ParseParty reads ORG, ORG/APP, ORG/machine:ID or ORG/client:NAME.
func ParseParty(s string) (Party, error) {
	org, rest, inside := strings.Cut(s, "/")
	p := Party{Org: org}
	machine, isMachine := strings.CutPrefix(rest, partyMachine)
	client, isClient := strings.CutPrefix(rest, partyClient)
	switch {
	case isMachine:
		p.Machine = machine
	case isClient:
		p.Client = client
	default:
		p.App = rest
	}
	if inside && p == (Party{Org: org}) {
		return p, WithHint(fmt.Errorf("%q: nothing is named behind the /", s), "all of an org is its name alone; else %s", partyForms)
	}
	return p, WithHint(p.check(), "a side is an ORG, or of an org %s", partyForms)
}

// partyForms are the texts of a Party that is not all of its org.
const partyForms = "ORG/APP, ORG/machine:ID or ORG/client:NAME"

func (p Party) check() error {
	if err := CheckName("org", p.Org); err != nil {
		return err
	}
	named := 0
	for _, x := range []struct{ kind, name string }{{"app", p.App}, {"machine", p.Machine}, {"client", p.Client}} {
		if x.name == "" {
			continue
		}
		named++
		if err := CheckName(x.kind, x.name); err != nil {
			return err
		}
	}
	if named > 1 {
		return fmt.Errorf("org %s: a side of a grant is an app, a machine or a client, not several", p.Org)
	}
	return nil
}

// whole reports whether it is all of the org.
func (p Party) whole() bool { return p == Party{Org: p.Org} }

func (p Party) namesMachine(m Machine) bool {
	return p.Org == m.Org && (p.whole() || p.App != "" && p.App == m.App || p.Machine != "" && p.Machine == m.ID)
}

func (p Party) namesClient(org, name string) bool {
	return p.Org == org && (p.whole() || p.Client != "" && p.Client == name)
}

// Canonical returns g as it is stored, or says why it cannot be a grant.
func (g Grant) Canonical() (Grant, error) {
	for _, x := range []struct {
		side string
		p    Party
	}{{"from", g.From}, {"to", g.To}} {
		if err := x.p.check(); err != nil {
			return g, fmt.Errorf("grant, %s: %w", x.side, err)
		}
	}
	if g.From.Org == g.To.Org {
		return g, WithHint(fmt.Errorf("grant: both sides are of org %s", g.From.Org), "members of one org reach each other without")
	}
	if !slices.Contains([]string{ProtocolTCP, ProtocolUDP, ProtocolICMP, ProtocolAll}, g.Protocol) {
		return g, fmt.Errorf("grant: protocol %q: want %s, %s, %s or %s", g.Protocol, ProtocolTCP, ProtocolUDP, ProtocolICMP, ProtocolAll)
	}
	g.LastPort = cmp.Or(g.LastPort, g.FirstPort)
	switch {
	case g.LastPort == 0:
	case g.Protocol != ProtocolTCP && g.Protocol != ProtocolUDP:
		return g, fmt.Errorf("grant: ports go with %s or %s, not with %s", ProtocolTCP, ProtocolUDP, g.Protocol)
	case g.FirstPort == 0 || g.FirstPort > g.LastPort:
		return g, fmt.Errorf("grant: ports %d-%d: want 1 to 65535, the lower one first", g.FirstPort, g.LastPort)
	}
	return g, nil
}

// Same reports whether g lets through just what other does.
func (g Grant) Same(other Grant) bool {
	g.ID, g.Created = other.ID, other.Created
	return g == other
}

// Traffic is what a grant lets through, as text: "tcp 5432-5433", "udp", "icmp", "all".
func (g Grant) Traffic() string {
	if g.FirstPort == 0 {
		return g.Protocol
	}
	return g.Protocol + " " + FormatPorts(g.FirstPort, g.LastPort)
}

// FormatPorts is the inverse of ParsePorts.
func FormatPorts(first, last uint16) string {
	switch {
	case first == 0:
		return "all"
	case first == last:
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// ParsePorts reads "5432", "5432-5433" or "all", which is both 0.
func ParsePorts(s string) (first, last uint16, err error) {
	if s == "all" {
		return 0, 0, nil
	}
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	lower, err1 := strconv.ParseUint(a, 10, 16)
	upper, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || lower == 0 || lower > upper {
		err := fmt.Errorf("ports %q: want a PORT, FIRST-LAST, or all; a port is 1 to 65535, and the lower one is first", s)
		if strings.ContainsAny(s, ",; ") {
			err = WithHint(err, "a grant has one range of ports: make one for each")
		}
		return 0, 0, err
	}
	return uint16(lower), uint16(upper), nil
}

// side returns the side of g that is of org, and the other one.
func (g Grant) side(org string) (own, other Party) {
	if g.From.Org == org {
		return g.From, g.To
	}
	return g.To, g.From
}

// NamesMachine reports whether either side of g names m.
func (g Grant) NamesMachine(m Machine) bool { return g.From.namesMachine(m) || g.To.namesMachine(m) }

// NamesClient reports whether either side of g names a client of an org.
func (g Grant) NamesClient(org, name string) bool {
	return g.From.namesClient(org, name) || g.To.namesClient(org, name)
}
