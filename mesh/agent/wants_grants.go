package agent

import (
	"maps"
	"slices"
	"strings"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers"
)

// What grants let through is worked out from what they name: every endpoint of the one
// side with every one of the other. So wants knows of every machine the little that it
// takes to find those of an app; and a change that is about no grant costs what
// changed, as ever.

const grantedKind = "granted/"

// grant takes a grant as it is now; nil: it went.
func (w *wants) grant(id string, now *mesh.Grant) {
	w.touchGrants()
	if delete(w.grants, id); now != nil {
		w.grants[id] = *now
	}
}

// grantedTo takes an endpoint beyond the orgs that are carried.
func (w *wants) grantedTo(g mesh.Granted) {
	w.granted = append(w.granted, g)
	w.stood(grantedKind+g.Endpoint.String(), away{g.Endpoint, g.Host})
}

// beyond reports whether a change is about endpoints beyond the orgs that are carried:
// from where the host sends to them is worked out from all grants (mesh.View.Sources),
// so w is made anew.
func (w *wants) beyond(d mesh.Delta) bool {
	if len(d.Granted) > 0 || len(w.granted) > 0 && len(d.Grants)+len(d.Orgs) > 0 {
		return true
	}
	return slices.ContainsFunc(d.Removed, func(key string) bool {
		return strings.HasPrefix(key, grantedKind) || len(w.granted) > 0 && (strings.HasPrefix(key, "grants/") || strings.HasPrefix(key, "orgs/"))
	})
}

// beyondView is the part of the view that endpoints beyond are about.
func (w *wants) beyondView() mesh.View {
	v := mesh.View{Plan: w.plan, Host: &w.self, Granted: w.granted}
	for _, name := range slices.Sorted(maps.Keys(w.orgs)) {
		v.Orgs = append(v.Orgs, w.orgs[name])
	}
	for _, id := range slices.Sorted(maps.Keys(w.grants)) {
		v.Grants = append(v.Grants, w.grants[id])
	}
	return v
}

// spotted notes where a machine is; nil: it went.
func (w *wants) spotted(key string, now *mesh.Machine) {
	org, _, _ := strings.Cut(key, "/")
	was, known := w.spots[key]
	is := mesh.Machine{}
	if now != nil {
		is = *now
	}
	if known && now != nil && was.App == is.App && was.Endpoint == is.Endpoint && was.Host == is.Host && was.Next == is.Next {
		return
	}
	if len(w.grants) > 0 && (known && w.names(was) || now != nil && w.names(is)) {
		w.touchGrants()
	}
	if known {
		unset(w.apps, org+"/"+was.App, key)
		delete(w.spots, key)
	}
	if now != nil {
		set(w.apps, org+"/"+is.App, key)
		w.spots[key] = mesh.Machine{Org: is.Org, ID: is.ID, App: is.App, Endpoint: is.Endpoint, Host: is.Host, Next: is.Next}
	}
}

func (w *wants) names(m mesh.Machine) bool {
	for _, g := range w.grants {
		if g.NamesMachine(m) {
			return true
		}
	}
	return false
}

func (w *wants) namesClient(org, name string) bool {
	for _, g := range w.grants {
		if g.NamesClient(org, name) {
			return true
		}
	}
	return false
}

// touchGrants notes what grants let through before that changes.
func (w *wants) touchGrants() {
	if w.touched != nil && !w.touched.regranted {
		w.touched.regranted, w.touched.boxes = true, w.boxes()
	}
}

// boxes are what grants let through, as in View.Policy.
func (w *wants) boxes() []peers.Grant {
	if len(w.grants) == 0 {
		return nil
	}
	v := w.beyondView()
	named, clients := map[string]bool{}, map[string]bool{}
	for _, g := range v.Grants {
		for _, p := range []mesh.Party{g.From, g.To} {
			switch {
			case p.App != "":
				maps.Copy(named, w.apps[p.Org+"/"+p.App])
			case p.Machine != "":
				named[p.Org+"/"+p.Machine] = true
			case p.Client != "":
				clients[p.Org+"/"+p.Client] = true
			}
		}
	}
	for key := range named {
		if m, there := w.spots[key]; there {
			v.Machines = append(v.Machines, m)
		}
	}
	for key := range clients {
		if c, there := w.clients[key]; there {
			v.Clients = append(v.Clients, c)
		}
	}
	return v.Policy("", 0, nil).Grants
}
