package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/peers/netns"
)

// evidence is all that an explanation is made of.
type evidence struct {
	zone     *dns.Zone
	facts    dns.Facts
	view     *mesh.View
	contact  contact
	measured probe.Results
	sights   map[string]probe.Sight
	presence *presence // nil: no controller has spoken
	now      time.Time
	// forward says who is asked for names that are not the mesh's; nil: nobody.
	forward func(name string) []netip.AddrPort
}

// explain says why a question of org has the answer that it has; as is the machine
// that asks, "": none. It is pure but for the order among equals.
func (e evidence) explain(org, as, name, kind string) (local.Explain, error) {
	code, ok := dns.TypeCode(cmp.Or(kind, "AAAA"))
	if !ok {
		return local.Explain{}, invalid("unknown record type %q", kind)
	}
	own, _, err := orgAddress(e.view, org)
	if err != nil {
		return local.Explain{}, err
	}
	if org == "" {
		org = e.view.Orgs[0].Name // orgAddress wants it to be the only one
	}
	machines := map[string]mesh.Machine{} // of the org
	for _, m := range e.view.Machines {
		if m.Org == org {
			machines[m.ID] = m
		}
	}
	out := local.Explain{
		Name: name, Type: strings.ToUpper(cmp.Or(kind, "AAAA")), Org: org, As: as, Source: own, Node: e.view.Self.String(), Region: e.view.Host.Region,
		Answer: []string{}, Machines: []local.Considered{}, Revision: e.view.Revision.String(), Connected: e.contact.connected,
	}
	if as != "" {
		m, ok := machines[as]
		if !ok {
			return out, mesh.WithHint(invalid("machine %s: org %s has none of that name", as, org), "weft dig --org %s _instances.internal TXT lists them", org)
		}
		out.Source = m.Address()
	}
	if !e.contact.last.IsZero() {
		out.ViewAge = max(e.now.Sub(e.contact.last), 0)
	}
	a, considered := e.zone.Explain(e.facts, dns.Query{Name: name, Type: code, Source: out.Source}, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	out.Rcode, out.Answer = a.Rcode.String(), append(out.Answer, a.Data()...)
	switch {
	case a.Forward && e.forward == nil:
		out.Rcode, out.Note = "REFUSED", "it is no name of the mesh"
	case a.Forward:
		out.Rcode, out.Note = "", "it is no name of the mesh: it is asked of "+addresses(e.forward(name))
	case a.Rcode == dns.NameError:
		out.Note = "there is no such name in this org"
	case len(considered) == 0 && len(out.Answer) == 0:
		out.Note = "there are no records of this type"
	case len(considered) == 0:
		out.Note = "distances do not matter: it is what the view says"
	}
	hosts := map[string]mesh.ViewHost{}
	for _, h := range e.view.Hosts {
		hosts[h.Name] = h
	}
	health := map[string]mesh.Health{}
	for _, h := range e.view.Health {
		if h.Org == org {
			health[h.Machine] = h
		}
	}
	for _, c := range append(considered, e.unlisted(name, machines)...) {
		out.Machines = append(out.Machines, e.considered(c, machines[c.Machine], health[c.Machine], hosts[c.Host]))
	}
	return out, nil
}

// unlisted returns the machines that somebody may look for behind an app's bare name,
// and that want no part in it: the names do not know them.
func (e evidence) unlisted(name string, machines map[string]mesh.Machine) (out []dns.Considered) {
	for _, id := range slices.Sorted(maps.Keys(machines)) {
		m := machines[id]
		if !m.Unlisted || !strings.EqualFold(strings.TrimSuffix(name, "."), m.App+".internal") {
			continue
		}
		c := dns.Considered{
			Machine: id, App: m.App, Host: m.Host, Addr: m.Address(), Basis: dns.Unknown,
			Reason: "it is not listed: its only name is " + id + ".vm." + m.App + ".internal",
		}
		switch f := e.facts[m.Host]; {
		case m.Host == e.view.Host.Name:
			c.Basis, c.Region = dns.Here, e.view.Host.Region
		case f.RTT > 0:
			c.Basis, c.Distance = dns.Measured, f.RTT
		case f.Estimate > 0:
			c.Basis, c.Distance = dns.Coordinates, f.Estimate
		}
		out = append(out, c)
	}
	return out
}

// considered joins what the names say of a machine with how old that is. Of what is
// not known the records are zero.
func (e evidence) considered(c dns.Considered, m mesh.Machine, health mesh.Health, h mesh.ViewHost) local.Considered {
	out := local.Considered{
		Position: c.Position, Reason: c.Reason, Machine: c.Machine, App: c.App, Address: c.Addr,
		State: m.State, Cordoned: m.Cordoned, Host: c.Host, Region: c.Region, Distance: c.Distance, Basis: string(c.Basis),
		HostState: hostState(e.facts[c.Host]), HostCordoned: h.Cordoned,
	}
	if out.Region == "" {
		out.Region = h.Region
	}
	if len(m.Checks) > 0 {
		out.Health = "failing"
		if m.Healthy(health, health.Machine != "") {
			out.Health = "passing"
		}
		out.HealthAge, out.Note = e.age(health.Since), health.Note
	}
	if c.Basis == dns.Here {
		out.HostState = string(dns.Here)
		out.HostCordoned = e.view.Host.Cordoned
		return out
	}
	s := e.sights[c.Host]
	out.AskedAge, out.AnsweredAge = e.age(s.Asked), e.age(s.Answered)
	if r := e.measured[c.Host]; r.Suspect {
		out.SuspectAge = e.age(r.SuspectSince)
	}
	if e.presence != nil {
		out.AbsentAge = e.age(e.presence.gone[c.Host])
	}
	if h.Coordinate != nil {
		out.CoordinateError = h.Coordinate.Error
	}
	return out
}

// age is how long ago t was; nil: never.
func (e evidence) age(t time.Time) *time.Duration {
	if t.IsZero() {
		return nil
	}
	d := max(e.now.Sub(t), 0)
	return &d
}

func addresses(list []netip.AddrPort) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return cmp.Or(strings.Join(out, ", "), "nobody, for there is no upstream resolver")
}

// explain is GET /v1/explain of a host.
func (h *host) explain(w http.ResponseWriter, r *http.Request) {
	v, err := h.view()
	zone := (*dns.Zone)(nil)
	if err == nil {
		if zone = h.plane.zone.Load(); zone == nil {
			err = notYet(&h.problems)
		}
	}
	if err != nil {
		refuse(w, err)
		return
	}
	e := evidence{
		zone: zone, facts: *h.plane.facts.Load(), view: v, contact: h.ready.Load().follower.Contact(),
		measured: h.plane.prober.results(), sights: h.plane.prober.sights(), presence: h.presence.get(), now: time.Now(),
	}
	if f := h.plane.forward.Load(); f != nil {
		e.forward = f.Servers
	}
	q := r.URL.Query()
	org, as := q.Get("org"), q.Get("as")
	if cred, ok := caller(r.Context()); ok && as == "" {
		if key := h.machines.of(cred.Pid); key != "" {
			if its, id, _ := strings.Cut(key, "/"); org == "" || org == its {
				org, as = its, id
			}
		}
	}
	x, err := e.explain(org, as, q.Get("name"), q.Get("type"))
	answer(w, x, err)
}

// of returns the key of the machine that a process is in; "": of none.
func (m *machines) of(pid int32) string {
	ns, err := netns.OpenPath(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return ""
	}
	defer ns.Close()
	var st unix.Stat_t
	if unix.Fstat(ns.Fd(), &st) != nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, s := range m.stays {
		if s.ns == st.Ino {
			return key
		}
	}
	return ""
}

// top is GET /v1/top of a host.
func (h *host) top(w http.ResponseWriter, _ *http.Request) {
	const most = 100
	out := local.Top{Names: []local.TopName{}}
	if _, err := h.view(); err != nil {
		refuse(w, err)
		return
	}
	if server := h.plane.server.Load(); server != nil {
		for _, n := range server.TopNames(most) {
			out.Names = append(out.Names, local.TopName(n))
		}
	}
	answer(w, out, nil)
}

// explain is GET /v1/explain of a laptop. Its gateway answers for it, by its own
// distances, and there is no way to ask that for its reasons: what can be said here
// is who that is, and where to ask.
func (l *laptop) explain(ctx context.Context, org, as, name, kind string) (local.Explain, error) {
	v, err := l.view()
	if err != nil {
		return local.Explain{}, err
	}
	if as != "" {
		return local.Explain{}, mesh.WithHint(invalid("--as %s: a laptop asks as itself", as), "run it on a host that carries the org")
	}
	d, err := dig(ctx, nil, v, org, name, kind)
	if err != nil {
		return local.Explain{}, err
	}
	x := explainThrough(v, d, l.prober.results()[v.Client.Gateway], name, cmp.Or(kind, "AAAA"))
	if c := l.follower.Load().Contact(); !c.last.IsZero() {
		x.ViewAge, x.Connected = max(time.Since(c.last), 0), c.connected
	}
	return x, nil
}

// explainThrough says what a laptop knows of an answer that its gateway gave.
func explainThrough(v *mesh.View, d local.Dig, r probe.Result, name, kind string) local.Explain {
	org, gateway := v.Self.Org, v.Client.Gateway
	x := local.Explain{
		Name: name, Type: strings.ToUpper(kind), Org: org, Source: d.Source, Node: "host/" + gateway, Rcode: d.Rcode,
		Answer: []string{}, Machines: []local.Considered{}, Revision: v.Revision.String(),
	}
	if i := slices.IndexFunc(v.Hosts, func(h mesh.ViewHost) bool { return h.Name == gateway }); i >= 0 {
		x.Region = v.Hosts[i].Region
	}
	for _, record := range d.Answer {
		fields := strings.Split(record, "\t")
		x.Answer = append(x.Answer, fields[len(fields)-1])
	}
	way := "not measured from here"
	switch {
	case r.Suspect:
		way = "it does not answer probes from here"
	case r.RTT > 0:
		way = fmt.Sprintf("%.1f ms from here", float64(r.RTT)/float64(time.Millisecond))
	}
	x.Note = fmt.Sprintf("this laptop's gateway answers for it, host %s (%s), and orders by its own distances; why, it says there: weft dig --explain --org %s %s %s",
		gateway, way, org, name, x.Type)
	return x
}

// answerExplain answers for a laptop.
func (l *laptop) answerExplain(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	x, err := l.explain(r.Context(), q.Get("org"), q.Get("as"), q.Get("name"), q.Get("type"))
	answer(w, x, err)
}

// answerTop answers for a laptop, which has no resolver of its own.
func (l *laptop) answerTop(w http.ResponseWriter, _ *http.Request) {
	gateway := "its gateway"
	if v, err := l.view(); err == nil {
		gateway = "host " + v.Client.Gateway
	}
	refuse(w, mesh.WithHint(&api.Error{Status: http.StatusNotFound, Code: api.ErrNotFound.Code, Message: "a laptop has no resolver that counts names: " + gateway + " answers"}, "run it there"))
}
