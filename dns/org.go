package dns

import (
	"cmp"
	"net/netip"
	"reflect"
)

// org is a tenant as the zone keeps it. It does not change once its edit is done.
type org struct {
	name     string
	made     *edition // of the edit that made it: tells it from others of that name
	listed   bool
	prefix   netip.Prefix
	resolver netip.Addr
	host     netip.Addr

	apps     table[*app]
	machines table[*instance]  // also those whose address another one has
	clients  table[netip.Addr] // likewise
	hosts    table[hostName]   // likewise
	names    table[claim]      // by address, see addrKey
	clashes  int               // how many addresses are claimed more than once
	onHost   table[int]        // how many of its machines are on a host
	own      table[*own]       // by name, see ownKey
}

// hostName is what an org calls a host.
type hostName struct {
	kind   kindOfClaim
	addr   netip.Addr // in the org's network
	itself netip.Addr // the host's own; it has a name, too, for who sees it in a trace. May be invalid
}

// same reports whether o answers as p does, and keeps the same.
func (o *org) same(p *org) bool {
	return o.listed == p.listed && o.prefix == p.prefix && o.resolver == p.resolver && o.host == p.host &&
		o.apps.same(p.apps) && o.machines.same(p.machines) && o.clients.same(p.clients) &&
		o.hosts.same(p.hosts) && o.names.same(p.names) && o.own.same(p.own)
}

// empty reports whether nothing would be lost with o.
func (o *org) empty() bool {
	return !o.listed && o.apps.size == 0 && o.machines.size == 0 && o.clients.size == 0 && o.own.size == 0
}

// network is what the org claims, by its first eight bytes. ok is false if it is not
// listed, or claims none that an org of the mesh can have.
func (o *org) network(mesh netip.Prefix) (key string, ok bool) {
	if !o.listed || !o.prefix.Addr().Is6() || !validNetwork(mesh, o.prefix) {
		return "", false
	}
	return addrKey(o.prefix.Addr())[:networkBits/8], true
}

// rebuild takes o apart and makes it anew in another network.
func (e *edit) rebuild(o *org, prefix netip.Prefix, resolver, host netip.Addr) {
	was := *o
	for h := range was.onHost.all() {
		e.zone.carriers = e.zone.carriers.without(e.made, carrier(h, o.name))
	}
	*o = org{name: o.name, listed: o.listed, prefix: prefix, resolver: resolver, host: host, own: was.own}
	if resolver.IsValid() {
		e.claim(o, resolver, ofResolver, "")
	}
	e.hostIn(o, e.zone.self)
	for name, a := range was.apps.all() {
		if a.declared {
			o.apps = o.apps.set(e.made, name, &app{made: e.made, name: name, settings: a.settings})
		}
	}
	for id, m := range was.machines.all() {
		e.setMachine(o, id, m)
	}
	for name, addr := range was.clients.all() {
		e.setClient(o, name, addr)
	}
}

// kindOfClaim says what an address is claimed for. The lower one comes first.
type kindOfClaim uint8

const (
	ofResolver kindOfClaim = iota
	ofSelf
	ofMachine
	ofClient
	ofHost
	ofHostItself
)

// claim is who says that an address is his. The first one has it.
type claim struct {
	kind kindOfClaim
	name string
	next *claim
}

func (c *claim) compare(kind kindOfClaim, name string) int {
	return cmp.Or(cmp.Compare(c.kind, kind), cmp.Compare(c.name, name))
}

// with returns the claims with one more.
func (c *claim) with(kind kindOfClaim, name string) *claim {
	switch {
	case c == nil || c.compare(kind, name) > 0:
		return &claim{kind, name, c}
	case c.compare(kind, name) == 0:
		return c
	}
	return &claim{c.kind, c.name, c.next.with(kind, name)}
}

// without returns the claims without one; nil: there are no others.
func (c *claim) without(kind kindOfClaim, name string) *claim {
	switch {
	case c == nil:
		return nil
	case c.compare(kind, name) == 0:
		return c.next
	}
	return &claim{c.kind, c.name, c.next.without(kind, name)}
}

// clash is 1 if there are two or more.
func (c *claim) clash() int {
	if c == nil || c.next == nil {
		return 0
	}
	return 1
}

// addrKey is an address as a key.
func addrKey(a netip.Addr) string {
	b := a.As16()
	return string(b[:])
}

// claim notes that addr is claimed. Addresses outside the network are nobody's.
func (e *edit) claim(o *org, addr netip.Addr, kind kindOfClaim, name string) {
	if kind != ofHostItself && !o.prefix.Contains(addr) {
		return
	}
	key := addrKey(addr)
	was, there := o.names.get(key)
	var list *claim
	if there {
		list = &was
	}
	first := list.with(kind, name)
	o.names = o.names.set(e.made, key, *first)
	o.clashes += first.clash() - list.clash()
	if first.compare(kind, name) == 0 {
		if there {
			e.shown(o, was, false)
		}
		e.shown(o, *first, true)
	}
}

func (e *edit) unclaim(o *org, addr netip.Addr, kind kindOfClaim, name string) {
	key := addrKey(addr)
	was, there := o.names.get(key)
	if !there {
		return
	}
	rest := was.without(kind, name)
	o.clashes += rest.clash() - was.clash()
	if rest == nil {
		o.names = o.names.without(e.made, key)
	} else {
		o.names = o.names.set(e.made, key, *rest)
	}
	if was.compare(kind, name) == 0 {
		e.shown(o, was, false)
		if rest != nil {
			e.shown(o, *rest, true)
		}
	}
}

// shown is told that who claims an address has it, or has it no longer.
func (e *edit) shown(o *org, c claim, has bool) {
	if c.kind != ofMachine {
		return
	}
	m, _ := o.machines.get(c.name)
	if has {
		e.place(o, nil, m)
	} else {
		e.place(o, m, nil)
	}
}

// holds reports whether an address is the one's that says so. Nearly always nobody
// else does, and it need not be looked up.
func (o *org) holds(addr netip.Addr, kind kindOfClaim, name string) bool {
	if o.clashes == 0 {
		return o.prefix.Contains(addr)
	}
	c, ok := o.names.get(addrKey(addr))
	return ok && c.compare(kind, name) == 0
}

// setMachine sets a machine, or removes it (nil).
func (e *edit) setMachine(o *org, id string, m *instance) {
	was, there := o.machines.get(id)
	switch {
	case !there && m == nil || there && m != nil && was.equal(m):
		return
	case there && m != nil && was.addr == m.addr:
		o.machines = o.machines.set(e.made, id, m)
		if o.holds(m.addr, ofMachine, id) {
			e.place(o, was, m)
		}
		return
	}
	if there {
		e.unclaim(o, was.addr, ofMachine, id)
		o.machines = o.machines.without(e.made, id)
	}
	if m != nil {
		o.machines = o.machines.set(e.made, id, m)
		e.claim(o, m.addr, ofMachine, id)
	}
}

// place puts a machine where was stood before; either may be nil.
func (e *edit) place(o *org, was, m *instance) {
	if was != nil && (m == nil || m.app != was.app) {
		a := e.app(o, was.app)
		a.machines = a.machines.without(e.made, was.id)
		e.settle(o, a)
	}
	if m != nil {
		a := e.app(o, m.app)
		a.machines = a.machines.set(e.made, m.id, m)
	}
	if was != nil && m != nil && was.on == m.on {
		return
	}
	if m != nil {
		e.count(o, m.on, +1)
	}
	if was != nil {
		e.count(o, was.on, -1)
	}
}

// count counts the org's machines on a host.
func (e *edit) count(o *org, host string, by int) {
	n, _ := o.onHost.get(host)
	switch n += by; {
	case n == 0:
		o.onHost = o.onHost.without(e.made, host)
		e.zone.carriers = e.zone.carriers.without(e.made, carrier(host, o.name))
		e.hostIn(o, host)
		return
	case n == 1 && by > 0:
		e.zone.carriers = e.zone.carriers.set(e.made, carrier(host, o.name), o.name)
	}
	o.onHost = o.onHost.set(e.made, host, n)
	if n == 1 && by > 0 {
		e.hostIn(o, host)
	}
}

// carrier is the key of a host and an org with machines on it.
func carrier(host, org string) string { return host + "\x00" + org }

// hostIn gives a host with machines of the org its name and address in the org's
// network: the mesh's part of (0, host)::1 replaced by the network. Other hosts are
// none of the org's business.
func (e *edit) hostIn(o *org, name string) {
	var want hostName
	h, _ := e.zone.hosts.get(name)
	switch {
	case h == nil:
	case h.self && o.prefix.Contains(o.host):
		want.kind, want.addr = ofSelf, o.host
	case o.onHost.has(name) && h.addr.Is6() && o.prefix.Addr().Is6():
		a, n := h.addr.As16(), o.prefix.Addr().As16()
		copy(a[:8], n[:8])
		want.kind, want.addr = ofHost, netip.AddrFrom16(a)
	}
	if want.addr.IsValid() && h.addr.Is6() && h.addr.Zone() == "" && !o.prefix.Contains(h.addr) {
		want.itself = h.addr
	}
	was, there := o.hosts.get(name)
	if was == want {
		return
	}
	if there {
		e.unclaim(o, was.addr, was.kind, name)
		if was.itself.IsValid() {
			e.unclaim(o, was.itself, ofHostItself, name)
		}
		o.hosts = o.hosts.without(e.made, name)
	}
	if want.addr.IsValid() {
		o.hosts = o.hosts.set(e.made, name, want)
		e.claim(o, want.addr, want.kind, name)
		if want.itself.IsValid() {
			e.claim(o, want.itself, ofHostItself, name)
		}
	}
}

// setClient sets a client, or removes it (no address).
func (e *edit) setClient(o *org, name string, addr netip.Addr) {
	was, there := o.clients.get(name)
	if !validLabel(name) || !addr.Is6() {
		addr = netip.Addr{}
	}
	if there && was == addr || !there && !addr.IsValid() {
		return
	}
	if there {
		e.unclaim(o, was, ofClient, name)
		o.clients = o.clients.without(e.made, name)
	}
	if addr.IsValid() {
		o.clients = o.clients.set(e.made, name, addr)
		e.claim(o, addr, ofClient, name)
	}
}

// setOwn sets what the org's own records say of a name.
func (e *edit) setOwn(o *org, n OwnName) {
	key, set := newOwn(n)
	was, there := o.own.get(key)
	switch {
	case set == nil && there:
		o.own = o.own.without(e.made, key)
	case set != nil && !(there && reflect.DeepEqual(was, set)):
		o.own = o.own.set(e.made, key, set)
	}
}

// machineAt returns the machine that has an address, or nil.
func (o *org) machineAt(addr netip.Addr) *instance {
	c, ok := o.names.get(addrKey(addr))
	if !ok || c.kind != ofMachine {
		return nil
	}
	m, _ := o.machines.get(c.name)
	return m
}

// clientAddr and hostAddr find addresses by name.
func (o *org) clientAddr(name string) (netip.Addr, bool) {
	addr, ok := o.clients.get(name)
	return addr, ok && o.holds(addr, ofClient, name)
}

func (o *org) hostAddr(name string) (netip.Addr, bool) {
	h, ok := o.hosts.get(name)
	return h.addr, ok && o.holds(h.addr, h.kind, name)
}

// nameAt returns the name of an address.
func (o *org) nameAt(addr netip.Addr) (string, bool) {
	c, ok := o.names.get(addrKey(addr))
	if !ok {
		return "", false
	}
	switch c.kind {
	case ofResolver:
		return "_api." + zoneName, true
	case ofMachine:
		m, _ := o.machines.get(c.name)
		return c.name + ".vm." + m.app + "." + zoneName, true
	case ofClient:
		return c.name + "._peer." + zoneName, true
	}
	return c.name + ".host." + zoneName, true
}

// anyIn reports whether an address that the org may know lies in p.
func (o *org) anyIn(p netip.Prefix) bool {
	for key := range o.names.from(addrKey(p.Masked().Addr())) {
		return p.Contains(netip.AddrFrom16([16]byte([]byte(key))))
	}
	return false
}
