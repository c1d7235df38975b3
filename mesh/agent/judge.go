package agent

import (
	"slices"

	"github.com/weftmesh/weft/mesh"
)

// fate is what a view means for a machine that runs here.
type fate int

const (
	fateStays   fate = iota // it is ours, or the view does not know it yet
	fateMoved               // another host has it now
	fateRemoved             // an operator removed it
	fateGone                // it is not here any more: it moved, or an operator removed it
	fateLost                // the controllers were restored from an older state, which does not have it
	fateOff                 // the move to this host was called off
)

// standing is what is known here of a machine that runs here, or is about to.
type standing struct {
	record mesh.Machine // as registered; its Generation says how old that is
	epoch  uint32       // of the last word of the controllers that agreed with it
	seen   bool         // a view had it as it is in record
	next   string       // the host that a view last said it was about to move to
	coming bool         // it is prepared to move here, and still on another host
}

// sight is what a view shows of one machine. While a removal is held back, what is
// in force has more than the controllers say.
type sight struct {
	host    string
	effect  *mesh.Machine // in the view in force
	told    *mesh.Machine // in what the controllers say
	epoch   uint32        // of that
	org     bool          // the view in force has its org, and so all that is of it
	current bool          // a controller has spoken since the start
}

// judge decides what becomes of a machine whose process runs here. host is where
// it is, with fateMoved.
//
// A record with a lower generation than ours is older than ours. Within an epoch
// the view lags then; in a new epoch the controllers have forgotten what came
// after, and we are the ones who know.
func judge(s standing, v sight) (f fate, host string) {
	switch {
	case !v.current:
		return fateStays, "" // nobody but our own disk has spoken
	case s.coming:
		return judgeComing(s, v)
	case v.epoch > s.epoch && !shows(v.told, v.host, s.record) && !succeeds(v.told, v.host, s.record):
		return fateLost, ""
	case v.effect == nil && s.next != "" && s.seen:
		// With its last machine the org went from the view: we cannot see where it is.
		return fateMoved, s.next
	case v.effect == nil && s.seen && !v.org:
		return fateGone, "" // nobody has shown us a move, as after a restart in the midst of one
	case v.effect == nil && s.seen:
		return fateRemoved, ""
	case v.effect == nil || shows(v.effect, v.host, s.record):
		return fateStays, ""
	case v.effect.Host == v.host:
		if s.seen {
			return fateRemoved, "" // and another one of that name was registered
		}
		return fateStays, ""
	case v.effect.Generation > s.record.Generation || v.effect.Generation == s.record.Generation && s.seen:
		return fateMoved, v.effect.Host
	}
	return fateStays, ""
}

// judgeComing is judge for one that is prepared to move here. With its record gone
// nobody has it: the commit will find that out, and register it.
func judgeComing(s standing, v sight) (fate, string) {
	if s.seen && v.effect != nil && v.effect.Host != v.host && v.effect.Next != v.host {
		return fateOff, ""
	}
	return fateStays, ""
}

// shows reports whether a view has the machine on host as it is in our record.
func shows(r *mesh.Machine, host string, ours mesh.Machine) bool {
	return r != nil && r.Host == host && r.Endpoint == ours.Endpoint
}

// succeeds reports whether a view has the machine on another host, where it went
// after it was here.
func succeeds(r *mesh.Machine, host string, ours mesh.Machine) bool {
	return r != nil && r.Host != host && r.Generation > ours.Generation
}

// carryOn returns new with those orgs of old that it does not have any more, and
// what belongs to them: machines that are here need them for a while. What cannot
// stand beside new is left out, as in retain.
func carryOn(old, new *mesh.View, orgs []string) *mesh.View {
	if old == nil {
		return new
	}
	missing := map[string]bool{}
	numbers := map[uint64]bool{}
	for _, o := range new.Orgs {
		numbers[o.Network] = true
	}
	for _, o := range lost(old.Orgs, new.Orgs, func(o mesh.Org) string { return o.Name }) {
		if slices.Contains(orgs, o.Name) && !numbers[o.Network] {
			missing[o.Name] = true
		}
	}
	if len(missing) == 0 {
		return new
	}
	only := *old
	only.Orgs = slices.DeleteFunc(slices.Clone(old.Orgs), func(o mesh.Org) bool { return !missing[o.Name] })
	only.Apps = slices.DeleteFunc(slices.Clone(old.Apps), func(a mesh.App) bool { return !missing[a.Org] })
	only.Machines = slices.DeleteFunc(slices.Clone(old.Machines), func(m mesh.Machine) bool { return !missing[m.Org] })
	only.Clients = slices.DeleteFunc(slices.Clone(old.Clients), func(c mesh.ViewClient) bool { return !missing[c.Org] })
	// Grants are not carried on: what they let through ends with the org.
	only.Grants, only.Granted = nil, nil
	only.Hosts = nil
	shared := map[string][]string{} // host: orgs among missing
	for _, h := range old.Hosts {
		kept := slices.DeleteFunc(slices.Clone(h.Orgs), func(org string) bool { return !missing[org] })
		if len(kept) > 0 {
			shared[h.Name] = kept
			h.Orgs = kept
			only.Hosts = append(only.Hosts, h)
		}
	}
	v := *retain(&only, new)
	there := map[string]bool{}
	for _, h := range new.Hosts {
		there[h.Name] = true
	}
	v.Hosts = slices.Clone(v.Hosts)
	for i, h := range v.Hosts {
		if there[h.Name] && len(shared[h.Name]) > 0 {
			v.Hosts[i].Orgs = slices.Sorted(slices.Values(slices.Concat(h.Orgs, shared[h.Name])))
		}
	}
	return &v
}
