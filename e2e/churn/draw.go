package churn

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
)

func keys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// Kind is what is done.
type Kind string

// Kinds of operations. What ends by itself is made good at the end of a burst.
const (
	StopMachine    Kind = "stop machine"
	KillMachine    Kind = "kill machine"
	StartMachine   Kind = "start machine"
	MoveMachine    Kind = "move machine"
	KillAgent      Kind = "kill agent"
	StopAgent      Kind = "stop agent"
	StartAgent     Kind = "start agent"
	KillDevice     Kind = "kill device" // the process that holds the tunnels
	RebootHost     Kind = "reboot host"
	CutLink        Kind = "cut link"
	CutOneWay      Kind = "cut one way"
	HarmLink       Kind = "harm link" // loss, delay, reordering, duplicates
	HealLinks      Kind = "heal links"
	KillController Kind = "kill controller"
	KillMember     Kind = "kill etcd member"
	CreateOrg      Kind = "create org"
	RemoveOrg      Kind = "remove org"
	Cordon         Kind = "cordon host"
	Uncordon       Kind = "uncordon host"
	LaptopLeaves   Kind = "laptop leaves"
	LaptopJoins    Kind = "laptop joins"
	RouterForgets  Kind = "laptop's router forgets"
	DriftPeers     Kind = "drift: wg set"
	DriftFirewall  Kind = "drift: nft flush"
	DriftRoutes    Kind = "drift: ip route del"
	CreateGrant    Kind = "create grant"
	RemoveGrant    Kind = "remove grant"
)

// Operation is one thing that is done.
type Operation struct {
	Kind Kind
	On   string // a machine's or laptop's key, a host, a controller, an org
	To   string // the host that it goes to; the other end of a link; "": none
	// Of HarmLink.
	Loss, Reorder, Duplicate float64
	DelayMS                  int
	Grant                    Grant
}

func (o Operation) String() string {
	s := strings.TrimSpace(fmt.Sprint(o.Kind, " ", o.On, " ", o.To))
	if o.Kind == HarmLink {
		s += fmt.Sprintf(" (loss %.0f%%, reorder %.0f%%, duplicate %.0f%%, delay %d ms)", 100*o.Loss, 100*o.Reorder, 100*o.Duplicate, o.DelayMS)
	}
	if o.Grant != (Grant{}) {
		s += fmt.Sprintf("%s -> %s port %d", o.Grant.From, o.Grant.To, o.Grant.Port)
	}
	return s
}

// weight is how often a kind is drawn where it can be.
var weights = [...]struct {
	kind   Kind
	weight int
}{
	{StopMachine, 3}, {KillMachine, 4}, {StartMachine, 6}, {MoveMachine, 8},
	{KillAgent, 5}, {StopAgent, 2}, {StartAgent, 5}, {KillDevice, 3}, {RebootHost, 3},
	{CutLink, 4}, {CutOneWay, 4}, {HarmLink, 6}, {HealLinks, 2},
	{KillController, 3}, {KillMember, 3}, {CreateOrg, 2}, {RemoveOrg, 4}, {Cordon, 2}, {Uncordon, 4},
	{LaptopLeaves, 2}, {LaptopJoins, 6}, {RouterForgets, 2},
	{DriftPeers, 3}, {DriftFirewall, 3}, {DriftRoutes, 3},
	{CreateGrant, 4}, {RemoveGrant, 4},
}

// Draw returns something that can be done in s; those of the kinds in without are
// not. The same random numbers give the same operations.
func Draw(r *rand.Rand, s State, without map[Kind]bool) Operation {
	for {
		total := 0
		for _, w := range weights {
			total += w.weight
		}
		x := r.IntN(total)
		for _, w := range weights {
			if x -= w.weight; x < 0 {
				if op, ok := draw(r, s, w.kind); ok && !without[w.kind] {
					return op
				}
				break
			}
		}
	}
}

// pick returns one of the names, which it sorts first; ok is false if there is none.
func pick(r *rand.Rand, names []string) (string, bool) {
	if len(names) == 0 {
		return "", false
	}
	slices.Sort(names)
	return names[r.IntN(len(names))], true
}

func draw(r *rand.Rand, s State, kind Kind) (op Operation, ok bool) {
	op.Kind = kind
	op.On, ok = pick(r, s.subjects(kind))
	if !ok {
		return op, false
	}
	switch kind {
	case StartMachine, MoveMachine:
		op.To, ok = pick(r, s.targets(op.On, kind == MoveMachine))
	case CutLink, CutOneWay, HarmLink:
		op.To, ok = pick(r, slices.DeleteFunc(slices.Collect(keys(s.Regions)), func(h string) bool { return h == op.On || s.Harmed[PairOf(h, op.On)] }))
		if kind == HarmLink {
			op.Loss, op.Reorder, op.Duplicate, op.DelayMS = float64(r.IntN(20))/100, float64(r.IntN(20))/100, float64(r.IntN(10))/100, r.IntN(60)
		}
	case CreateOrg:
		op.On = fmt.Sprint("temp", s.Temporary+1)
		op.To, ok = pick(r, s.running())
	case CreateGrant:
		from, _ := pick(r, slices.DeleteFunc(slices.Collect(keys(s.Orgs)), func(o string) bool { return o == op.On }))
		op.Grant, op.On = Grant{From: from, To: op.On, Port: Port}, ""
		ok = from != "" && !slices.Contains(s.Grants, op.Grant)
	case RemoveGrant:
		op.Grant, op.On = s.Grants[r.IntN(len(s.Grants))], ""
	}
	return op, ok
}

// subjects are what a kind can be done to.
func (s State) subjects(kind Kind) []string {
	switch kind {
	case StopMachine, KillMachine, MoveMachine:
		return s.machines(true)
	case StartMachine:
		return s.machines(false)
	case KillAgent, StopAgent, KillDevice, DriftPeers, DriftFirewall, DriftRoutes:
		return s.running()
	case StartAgent:
		return slices.DeleteFunc(slices.Collect(keys(s.Agents)), func(h string) bool { return s.Agents[h] })
	case RebootHost, CutLink, CutOneWay, HarmLink:
		return slices.Collect(keys(s.Regions))
	case HealLinks:
		return some(len(s.Harmed) > 0, "all")
	case KillController:
		return slices.DeleteFunc(slices.Collect(keys(s.Controllers)), func(c string) bool { return !s.Controllers[c] })
	case KillMember: // one at a time: most of them have to run
		return some(allRun(s.Members), slices.Collect(keys(s.Members))...)
	case CreateOrg:
		return some(s.served() && len(s.temporary()) == 0, "temp")
	case RemoveOrg:
		return some(s.served(), s.temporary()...)
	case Cordon:
		return some(s.served() && s.Cordoned == "", slices.Collect(keys(s.Regions))...)
	case Uncordon:
		return some(s.served() && s.Cordoned != "", s.Cordoned)
	case LaptopLeaves, RouterForgets:
		return s.laptops(true)
	case LaptopJoins:
		return s.laptops(false)
	case CreateGrant:
		return some(s.served(), slices.Collect(keys(s.Orgs))...)
	case RemoveGrant:
		return some(s.served() && len(s.Grants) > 0, "one")
	}
	return nil
}

func some(is bool, names ...string) []string {
	if !is {
		return nil
	}
	return names
}

// served says whether all controllers run, and what they work on: requests are
// answered.
func (s State) served() bool { return allRun(s.Controllers) && allRun(s.Members) }

func allRun(runs map[string]bool) bool {
	return !slices.Contains(slices.Collect(maps.Values(runs)), false)
}

func (s State) running() []string {
	return slices.DeleteFunc(slices.Collect(keys(s.Agents)), func(h string) bool { return !s.Agents[h] })
}

func (s State) machines(runs bool) []string {
	return slices.DeleteFunc(slices.Collect(keys(s.Machines)), func(k string) bool { return s.Machines[k].Runs != runs })
}

func (s State) laptops(up bool) []string {
	return slices.DeleteFunc(slices.Collect(keys(s.Laptops)), func(k string) bool { return s.Laptops[k].Up != up })
}

func (s State) temporary() []string {
	return slices.DeleteFunc(slices.Collect(keys(s.Orgs)), func(o string) bool { return !strings.HasPrefix(o, "temp") })
}

// targets are the hosts that a machine can start on, or move to.
func (s State) targets(key string, move bool) []string {
	return slices.DeleteFunc(s.Hosts(OrgOf(key)), func(h string) bool { return !s.Agents[h] || move && h == s.Machines[key].Host })
}

// After is s with op done.
func (s State) After(op Operation) State {
	s = s.Clone()
	machine := func(change func(*Machine)) {
		m := s.Machines[op.On]
		change(&m)
		s.Machines[op.On] = m
	}
	switch op.Kind {
	case StopMachine, KillMachine:
		machine(func(m *Machine) { m.Runs = false })
	case StartMachine:
		machine(func(m *Machine) { m.Runs, m.Host, m.From = true, op.To, "" })
	case MoveMachine:
		machine(func(m *Machine) { m.Host, m.From = op.To, m.Host })
	case KillAgent, StopAgent:
		s.Agents[op.On] = false
	case StartAgent:
		s.Agents[op.On] = true
	case RebootHost:
		s.Agents[op.On] = false
		for key, m := range s.Machines {
			switch {
			case m.Host != op.On:
				continue
			case m.From != "": // nobody knows whether it was there already
				m.Host, m.From = m.From, ""
			default:
				m.Runs = false
			}
			s.Machines[key] = m
		}
	case CutLink, CutOneWay, HarmLink:
		s.Harmed[PairOf(op.On, op.To)] = true
	case HealLinks:
		clear(s.Harmed)
	case KillController:
		s.Controllers[op.On] = false
	case KillMember:
		s.Members[op.On] = false
	case CreateOrg:
		s.Temporary++
		s.Orgs[op.On] = slices.Sorted(keys(s.Regions))
		s.Machines[op.On+"/only"] = Machine{App: "only", Host: op.To, Home: op.To, Runs: true, Temporary: true}
	case RemoveOrg:
		delete(s.Orgs, op.On)
		delete(s.Machines, op.On+"/only")
		s.Grants = slices.DeleteFunc(s.Grants, func(g Grant) bool { return g.From == op.On || g.To == op.On })
	case Cordon:
		s.Cordoned = op.On
	case Uncordon:
		s.Cordoned = ""
	case LaptopLeaves, LaptopJoins:
		s.Laptops[op.On] = Laptop{Up: op.Kind == LaptopJoins}
	case CreateGrant:
		s.Grants = append(s.Grants, op.Grant)
	case RemoveGrant:
		s.Grants = slices.DeleteFunc(s.Grants, func(g Grant) bool { return g == op.Grant })
	}
	return s
}

// Amends are what makes a quiet moment possible: links heal, what runs all hosts and
// requests is started, what moves arrives. What is temporary or has ended otherwise
// stays so.
func (s State) Amends() State {
	s = s.Clone()
	clear(s.Harmed)
	for host := range s.Agents {
		s.Agents[host] = true
	}
	for key, m := range s.Machines {
		m.From = ""
		s.Machines[key] = m
	}
	for c := range s.Controllers {
		s.Controllers[c] = true
	}
	for m := range s.Members {
		s.Members[m] = true
	}
	return s
}

// Homeward lists what brings s back to where it began: all machines run at home, all
// laptops are up, and nothing else is there.
func (s State) Homeward() (out []Operation) {
	for _, org := range slices.Sorted(slices.Values(s.temporary())) {
		out = append(out, Operation{Kind: RemoveOrg, On: org})
	}
	for _, g := range s.Grants {
		out = append(out, Operation{Kind: RemoveGrant, Grant: g})
	}
	if s.Cordoned != "" {
		out = append(out, Operation{Kind: Uncordon, On: s.Cordoned})
	}
	for _, key := range slices.Sorted(keys(s.Machines)) {
		switch m := s.Machines[key]; {
		case m.Temporary:
		case !m.Runs:
			out = append(out, Operation{Kind: StartMachine, On: key, To: m.Home})
		case m.Host != m.Home:
			out = append(out, Operation{Kind: MoveMachine, On: key, To: m.Home})
		}
	}
	for _, key := range slices.Sorted(slices.Values(s.laptops(false))) {
		out = append(out, Operation{Kind: LaptopJoins, On: key})
	}
	return out
}
