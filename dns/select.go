package dns

import (
	"net/netip"
	"slices"
	"strings"
)

// selection is the machines that a name under an app means, before anything is
// left out.
type selection struct {
	app      *app
	machines []*machine // of the app, sorted by id
	whole    bool       // the bare name: the app's setting decides how many
	top      int        // over 0: that many of the nearest
}

// underApp finds what stands before an app's name. Qualifiers nest: each one, read
// from the app outwards, narrows what the one before it left, and "the nearest N"
// is taken of what is left at the end, wherever it stands.
//
// The fixed words (vm, process, kv._metadata, nearest.of) and the regions of the
// mesh exist under every app, so that these names do not come and go with the
// machines; an id, a group or a value exists if a machine, in any state, has it.
//
// Port names (_<port>._tcp.) stand at the left end: what remains is found in the
// same way, and has an SRV record for each address.
func (v view) underApp(a *app, labels []string) thing {
	rest, port, depth := service(labels)
	t := v.selected(a, rest)
	switch {
	case depth == 0:
		return t
	case t.kind != addresses:
		return thing{}
	case depth == 1:
		return thing{kind: empty}
	}
	t.kind, t.port = services, port
	return t
}

// selected finds what stands before an app's name, without a port.
func (v view) selected(a *app, labels []string) thing {
	if t, ok := v.appTexts(a, labels); ok {
		return t
	}
	roster := a.roster(v.zone)
	s := selection{app: a, machines: roster.list, whole: true}
	if n := len(labels); n > 1 && labels[n-1] == "vm" { // the one name that an unlisted machine has, too
		if i, ok := slices.BinarySearchFunc(roster.all, labels[n-2], func(m *machine, id string) int { return strings.Compare(m.id, id) }); ok {
			s.machines = roster.all[i : i+1]
		}
	}
	for n := len(labels); n > 0; {
		word := labels[n-1]
		switch word {
		case "vm", "process":
			if n == 1 {
				return thing{kind: empty}
			}
			if !s.narrow(func(m *machine) bool {
				return word == "vm" && m.id == labels[n-2] || word == "process" && m.group == labels[n-2]
			}) {
				return thing{}
			}
			n -= 2
		case "_metadata":
			used, t := s.metadata(labels[:n])
			if used == 0 {
				return t
			}
			n -= used
		case "of":
			used, t := s.nearest(labels[:n])
			if used == 0 {
				return t
			}
			n -= used
		case "global":
			n--
		default:
			if !v.zone.regions.has[word] {
				return thing{}
			}
			s.narrow(func(m *machine) bool { return m.host.region == word })
			n--
		}
		s.whole = false
	}
	return thing{kind: addresses, selection: s}
}

// narrow keeps the machines that match; it reports whether there are any.
func (s *selection) narrow(match func(*machine) bool) bool {
	var kept []*machine
	for _, m := range s.machines {
		if match(m) {
			kept = append(kept, m)
		}
	}
	s.machines = kept
	return len(kept) > 0
}

// metadata reads <value>.<key>.kv._metadata at the end of labels. used is 0 if the
// name ends there, as the thing says.
func (s *selection) metadata(labels []string) (used int, t thing) {
	n := len(labels)
	if n == 1 {
		return 0, thing{kind: empty}
	}
	if labels[n-2] != "kv" {
		return 0, thing{}
	}
	if n == 2 {
		return 0, thing{kind: empty}
	}
	key := labels[n-3]
	if !s.narrow(func(m *machine) bool { _, ok := m.meta[key]; return ok }) {
		return 0, thing{}
	}
	if n == 3 {
		return 0, thing{kind: empty}
	}
	if !s.narrow(func(m *machine) bool { return m.meta[key] == labels[n-4] }) {
		return 0, thing{}
	}
	return 4, thing{}
}

// nearest reads top<N>.nearest.of at the end of labels.
func (s *selection) nearest(labels []string) (used int, t thing) {
	n := len(labels)
	if n == 1 {
		return 0, thing{kind: empty}
	}
	if labels[n-2] != "nearest" {
		return 0, thing{}
	}
	if n == 2 {
		return 0, thing{kind: empty}
	}
	top, ok := topCount(labels[n-3])
	if !ok {
		return 0, thing{}
	}
	if s.top == 0 || top < s.top {
		s.top = top
	}
	return 3, thing{}
}

// pick returns the addresses of a selection for the asker, nearest first.
func (v view) pick(s selection) []netip.Addr {
	cs := v.choose(s)
	addrs := make([]netip.Addr, len(cs))
	for i, c := range cs {
		addrs[i] = c.addr
	}
	return addrs
}

// choose returns the machines of a selection that the asker gets, nearest first.
//
// A machine that asks about its own app gets all of it, suspects included: who is
// a member of a cluster is for the cluster to say. Only a name that asks for the
// nearest few is cut.
func (v view) choose(s selection) []candidate {
	own := v.asker != nil && v.asker.app == s.app.name && s.top == 0
	cs := leaveOut(candidates(v.facts, s.machines), own)
	if nearestFirst(cs, v.rnd) {
		*v.drawn = true
	}
	switch {
	case own:
	case s.top > 0:
		cs = cs[:min(s.top, len(cs))]
	case s.whole && s.app.mode == modeCount:
		cs = cs[:min(s.app.limit, len(cs))]
	case s.whole && s.app.mode == modeNear:
		cs = nearSet(cs)
	}
	if v.seen != nil {
		v.seen(v, s, cs)
	}
	return cs
}
