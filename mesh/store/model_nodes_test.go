package store

import (
	"context"

	"github.com/weftmesh/weft/mesh"
)

func (s *steps) enrollHost() { s.enrollHostBy(s.host(), s.key(), s.token()) }

func (s *steps) enrollHostBy(name, as, id string) {
	spec := hostSpec(name)
	spec.Key = key(as)
	spec.TLSKey = "tls of " + spec.Key.String()
	var want refusals
	t, there := s.ledger.tokens[id]
	want.when(!there || t.Kind != mesh.KindHost, ErrToken)
	old, taken := s.hosts[spec.Name]
	same := taken && old.Key == spec.Key
	if !same {
		s.spend(id, mesh.KindHost, &want)
		want.when(taken || s.keyTaken(spec.Key), ErrExists)
	}
	h, rev, err := s.at().EnrollHost(context.Background(), spec, TokenUse{id, hash(id)})
	if !s.done(rev, err, want) || same {
		return
	}
	for name, other := range s.hosts {
		if other.Number == h.Number {
			s.t.Fatalf("hosts %s and %s have number %d", name, h.Name, h.Number)
		}
	}
	if due, rests := s.numbers[h.Number]; rests && s.now.Unix() < due.Unix() {
		s.t.Fatalf("host %s got number %d, which rests until %s", h.Name, h.Number, due)
	}
	for k, r := range s.reserved {
		if parts, _ := s.plan.Parts(r.Endpoint.Addr()); parts.Host.Number == h.Number {
			s.t.Fatalf("host %s got number %d, at which an address is kept for %s", h.Name, h.Number, k)
		}
	}
	t.Uses--
	s.ledger.tokens[id] = t
	s.hosts[h.Name] = mesh.Host{Name: h.Name, Number: h.Number, RegionNumber: h.RegionNumber, Key: spec.Key, Orgs: t.Orgs}
}

func (s *steps) cordonHost() {
	name := s.host()
	h, there := s.hosts[name]
	var want refusals
	want.when(!there, ErrNotFound)
	cordoned := !h.Cordoned
	_, rev, err := s.at().SetHost(context.Background(), "", name, HostChange{Cordoned: &cordoned})
	if s.done(rev, err, want) {
		h.Cordoned = cordoned
		s.hosts[name] = h
	}
}

func (s *steps) removeHost() {
	name := s.host()
	_, there := s.hosts[name]
	var want refusals
	want.when(!there, ErrNotFound)
	x := s.at()
	rev, err := x.RemoveHost(context.Background(), "", name)
	if !s.done(rev, err, want) {
		return
	}
	if err := x.Wait(context.Background(), rev); err != nil {
		s.t.Fatal(err)
	}
	if err := s.ledger.removeHost(name, x.State()); err != nil {
		s.t.Fatal(err)
	}
}

// carrier says what an org and a host must be for something to be there.
func (s *steps) carrier(org, host string, want *refusals) (mesh.Org, mesh.Host) {
	o, orgThere := s.orgs[org]
	h, hostThere := s.hosts[host]
	want.when(!orgThere || !hostThere, ErrNotFound)
	return o, h
}

func (s *steps) createMachine() {
	spec := MachineSpec{
		Org: s.org(), App: s.pick("app", "web", "db"), ID: s.pick("machine", "1", "2", "3"), Host: s.host(),
		Stable: s.pick("stable", "yes", "no") == "yes", Move: s.pick("move", "yes", "no", "no") == "yes",
	}
	key := spec.Org + "/" + spec.ID
	var want refusals
	o, h := s.carrier(spec.Org, spec.Host, &want)
	old, there := s.machines[key]
	prepared := false
	switch {
	case there && old.Host == spec.Host:
		want.when(old.App != spec.App || old.Stable != spec.Stable, ErrExists)
	case there && !spec.Move:
		want.when(true, ErrExists)
	case there:
		prepared = true
		want.when(!old.Stable || old.App != spec.App || old.Next != "" && old.Next != spec.Host || h.Cordoned && old.Next != spec.Host, ErrConflict)
	default:
		want.when(h.Cordoned, ErrConflict)
		want.when(s.count("machines", spec.Org) >= o.Limits.Or(mesh.DefaultLimits).Machines, ErrLimit)
	}
	kept, keeps := s.reserved[spec.Org+"/"+mesh.KindMachine+"/"+spec.ID]
	keeps = keeps && spec.Stable
	if !there && !keeps && len(want) == 0 {
		want = append(want, s.full(o, h)...)
	}
	m, rev, err := s.at().CreateMachine(context.Background(), "", spec)
	switch {
	case !s.done(rev, err, want):
	case prepared:
		old.Next = spec.Host
		s.machines[key] = old
	case there:
	case keeps && (m.Endpoint != kept.Endpoint || m.Generation != kept.Generation+1):
		s.t.Fatalf("machine %s has %s, generation %d; kept for it is %s, generation %d", key, m.Endpoint, m.Generation, kept.Endpoint, kept.Generation)
	default:
		parts, _ := s.plan.Parts(m.Endpoint.Addr())
		if !keeps {
			if err := s.endpoint("machine "+key, m.Endpoint, parts, o, h); err != nil {
				s.t.Fatal(err)
			}
		}
		if keeps {
			delete(s.reserved, spec.Org+"/"+mesh.KindMachine+"/"+spec.ID)
		}
		delete(s.slots, m.Endpoint.String())
		s.apps[spec.Org+"/"+spec.App] = true
		s.machines[key] = mesh.Machine{
			Org: spec.Org, ID: spec.ID, App: spec.App, Host: spec.Host, Endpoint: m.Endpoint, Stable: spec.Stable,
			Generation: kept.Generation*boolean(keeps) + 1, State: mesh.StateStarted,
		}
	}
}

func boolean(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// full says whether no slot of an org at a host can be given: the first host has
// four, and of those each is in use, kept or resting.
func (s *steps) full(o mesh.Org, h mesh.Host) (want refusals) {
	if h.Number != 1 {
		return nil
	}
	for slot := uint16(65532); slot != 0; slot++ {
		if s.unused("", s.plan.Endpoint(o.Network, h.Position(), slot).String()) == nil {
			return nil
		}
	}
	return refusals{ErrFull}
}

func (s *steps) moveMachine() {
	org, id, host := s.org(), s.pick("machine", "1", "2", "3"), s.host()
	m, there := s.machines[org+"/"+id]
	generation := m.Generation
	if s.pick("generation", "right", "right", "wrong") == "wrong" {
		generation += 3
	}
	var want refusals
	want.when(!there, ErrNotFound)
	want.when(there && (m.Next != host || m.Generation != generation), ErrConflict)
	_, rev, err := s.at().MoveMachine(context.Background(), "", MachineRef{Org: org, ID: id}, host, generation)
	if s.done(rev, err, want) {
		m.Host, m.Next, m.Generation = host, "", generation+1
		s.machines[org+"/"+id] = m
	}
}

func (s *steps) stopMachine() {
	org, id := s.org(), s.pick("machine", "1", "2", "3")
	m, there := s.machines[org+"/"+id]
	var want refusals
	want.when(!there, ErrNotFound)
	_, rev, err := s.at().SetMachine(context.Background(), "", MachineRef{Org: org, ID: id}, MachineChange{State: new(mesh.StateStopped)})
	if s.done(rev, err, want) {
		m.State = mesh.StateStopped
		s.machines[org+"/"+id] = m
	}
}

func (s *steps) removeMachine() {
	ref := MachineRef{Org: s.org(), ID: s.pick("machine", "1", "2", "3"), Host: s.pick("must be on", "", "h", "h1")}
	m, there := s.machines[ref.Org+"/"+ref.ID]
	var want refusals
	want.when(!there, ErrNotFound)
	want.when(there && ref.Host != "" && m.Host != ref.Host, ErrConflict)
	rev, err := s.at().RemoveMachine(context.Background(), "", ref)
	if s.done(rev, err, want) {
		s.dropMachine(ref.Org + "/" + ref.ID)
	}
}

func (s *steps) createClient() {
	spec := ClientSpec{Org: s.org(), Name: s.pick("client", "c1", "c2"), Key: key(s.key()), Gateway: s.host()}
	var want refusals
	s.room(spec, &want)
	c, rev, err := s.at().CreateClient(context.Background(), "", spec)
	if s.done(rev, err, want) {
		s.client(spec, c)
	}
}

func (s *steps) enrollClient() {
	id := s.token()
	spec := ClientSpec{Name: s.pick("client", "c1", "c2"), Key: key(s.key()), Gateway: s.host()}
	spec.TLSKey = "tls of " + spec.Key.String()
	var want refusals
	t := s.spend(id, mesh.KindClient, &want)
	spec.Org = t.Org
	old, taken := s.clients[spec.Org+"/"+spec.Name]
	same := taken && old.Key == spec.Key && old.TLSKey == spec.TLSKey
	if same {
		want = nil // it is there, and nothing is spent; but the token must be
		want.when(t.Kind != mesh.KindClient, ErrToken)
	} else {
		s.room(spec, &want)
	}
	spec.Org = ""
	c, rev, err := s.at().EnrollClient(context.Background(), spec, TokenUse{id, hash(id)})
	if s.done(rev, err, want) && !same {
		spec.Org = t.Org
		t.Uses--
		s.ledger.tokens[id] = t
		s.client(spec, c)
	}
}

// room says what a new client may be refused for.
func (s *steps) room(spec ClientSpec, want *refusals) {
	o, h := s.carrier(spec.Org, spec.Gateway, want)
	_, taken := s.clients[spec.Org+"/"+spec.Name]
	want.when(taken || s.keyTaken(spec.Key), ErrExists)
	want.when(s.count("clients", spec.Org) >= o.Limits.Or(mesh.DefaultLimits).Clients, ErrLimit)
	if _, keeps := s.reserved[spec.Org+"/"+mesh.KindClient+"/"+spec.Name]; !keeps && len(*want) == 0 {
		*want = append(*want, s.full(o, h)...)
	}
}

// client writes a client down.
func (s *steps) client(spec ClientSpec, c mesh.Client) {
	reservation := spec.Org + "/" + mesh.KindClient + "/" + spec.Name
	kept, keeps := s.reserved[reservation]
	switch {
	case keeps && (c.Endpoint != kept.Endpoint || c.Generation != kept.Generation+1):
		s.t.Fatalf("client %s has %s, generation %d; kept for it is %s, generation %d", spec.Name, c.Endpoint, c.Generation, kept.Endpoint, kept.Generation)
	case !keeps:
		parts, _ := s.plan.Parts(c.Endpoint.Addr())
		if err := s.endpoint("client "+spec.Name, c.Endpoint, parts, s.orgs[spec.Org], s.hosts[spec.Gateway]); err != nil {
			s.t.Fatal(err)
		}
	}
	delete(s.reserved, reservation)
	delete(s.slots, c.Endpoint.String())
	s.clients[spec.Org+"/"+spec.Name] = mesh.Client{
		Org: spec.Org, Name: spec.Name, Key: spec.Key, TLSKey: spec.TLSKey, Endpoint: c.Endpoint, Gateway: spec.Gateway, Generation: kept.Generation + 1,
	}
}

func (s *steps) setGateway() {
	org, name, gateway := s.org(), s.pick("client", "c1", "c2"), s.host()
	c, there := s.clients[org+"/"+name]
	var want refusals
	want.when(!there, ErrNotFound)
	s.carrier(org, gateway, &want)
	_, rev, err := s.at().SetGateway(context.Background(), "", org, name, gateway)
	if s.done(rev, err, want) && c.Gateway != gateway {
		c.Gateway, c.Generation = gateway, c.Generation+1
		s.clients[org+"/"+name] = c
	}
}

func (s *steps) removeClient() {
	org, name := s.org(), s.pick("client", "c1", "c2")
	_, there := s.clients[org+"/"+name]
	var want refusals
	want.when(!there, ErrNotFound)
	rev, err := s.at().RemoveClient(context.Background(), "", org, name)
	if s.done(rev, err, want) {
		s.dropClient(org + "/" + name)
	}
}
