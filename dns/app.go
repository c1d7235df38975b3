package dns

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
)

// app is a named group of machines. It is there when it is declared, or has machines.
type app struct {
	settings
	made     *edition // of the edit that made it
	name     string
	machines table[*instance]
	members  atomic.Pointer[roster] // made when it is asked for
}

type settings struct {
	declared bool
	mode     mode
	limit    int // with modeCount
	ttl      uint32
}

// mode is what an app's bare name answers to those outside it.
type mode uint8

const (
	modeNear  mode = iota // the near set
	modeAll               // everything
	modeCount             // the nearest few
)

// instance is a machine as the zone keeps it. It never changes.
type instance struct {
	id, app, group string
	meta           map[string]string // keys and values in lower case
	on             string            // name of its host
	addr           netip.Addr
	up             bool // started, healthy and not cordoned
	started        bool
	cordoned       bool
	unlisted       bool
}

// machine is an instance with its host.
type machine struct {
	*instance
	host *host
}

// roster is the machines of an app with their hosts.
type roster struct {
	hosts *edition   // that made the zone's hosts what they are here
	all   []*machine // sorted by id
	list  []*machine // of all, those that are listed
	used  []usedHost // each once
}

// usedHost is a host that a roster goes by; host is nil if the zone has none of that
// name.
type usedHost struct {
	name string
	host *host
}

// roster returns the machines of a with their hosts in z.
func (a *app) roster(z *Zone) *roster {
	if r := a.members.Load(); r != nil && r.hosts == z.hostsAt {
		return r
	}
	r := &roster{hosts: z.hostsAt, all: make([]*machine, 0, a.machines.size)}
	found := map[string]*host{}
	room := make([]machine, a.machines.size)
	for _, m := range a.machines.all() {
		h, there := found[m.on]
		if !there {
			known, _ := z.hosts.get(m.on)
			r.used = append(r.used, usedHost{m.on, known})
			h = known
			if h == nil {
				h = nowhere(m.on)
			}
			found[m.on] = h
		}
		at := &room[len(r.all)]
		*at = machine{m, h}
		r.all = append(r.all, at)
	}
	r.list = r.all
	if slices.ContainsFunc(r.all, func(m *machine) bool { return m.unlisted }) {
		r.list = slices.DeleteFunc(slices.Clone(r.all), func(m *machine) bool { return m.unlisted })
	}
	a.members.Store(r)
	return r
}

// nowhere is a host that is not known: between two views its machines can be used,
// but nothing is known of where it is.
func nowhere(name string) *host {
	return &host{name: name, region: "unknown", estimate: unknownDistance}
}

// machine returns an instance with its host in z.
func (z *Zone) machine(m *instance) *machine {
	h, ok := z.hosts.get(m.on)
	if !ok {
		h = nowhere(m.on)
	}
	return &machine{m, h}
}

// newInstance returns nil for a machine whose names cannot be.
func newInstance(d Machine) *instance {
	id, name := lower(d.ID), lower(d.App)
	if !validLabel(id) || !usableApp(name) {
		return nil
	}
	m := &instance{
		id: id, app: name, group: lower(d.Group), on: lower(d.Host), addr: d.Addr,
		up: d.Started && d.Healthy && !d.Cordoned, started: d.Started, cordoned: d.Cordoned, unlisted: d.Unlisted,
	}
	if len(d.Meta) > 0 {
		m.meta = make(map[string]string, len(d.Meta))
		for k, v := range d.Meta {
			m.meta[lower(k)] = lower(v)
		}
	}
	return m
}

func (m *instance) equal(n *instance) bool {
	return m.id == n.id && m.app == n.app && m.group == n.group && m.on == n.on && m.addr == n.addr &&
		m.up == n.up && m.started == n.started && m.cordoned == n.cordoned && m.unlisted == n.unlisted && maps.Equal(m.meta, n.meta)
}

func newSettings(d App) settings {
	s := settings{declared: true, ttl: defaultTTL}
	if d.TTL > 0 {
		s.ttl = uint32(min(d.TTL, maxTTL))
	}
	if n, err := strconv.Atoi(d.Answer); err == nil && n > 0 {
		s.mode, s.limit = modeCount, n
	} else if d.Answer == "all" {
		s.mode = modeAll
	}
	return s
}

// app returns the app of that name, to be changed; it may be a new one.
func (e *edit) app(o *org, name string) *app {
	was, there := o.apps.get(name)
	if there && was.made == e.made {
		return was
	}
	a := &app{made: e.made, name: name, settings: newSettings(App{})}
	a.declared = false
	if there {
		a.settings, a.machines = was.settings, was.machines
	}
	o.apps = o.apps.set(e.made, name, a)
	return a
}

// settle removes an app that is not there any more.
func (e *edit) settle(o *org, a *app) {
	if !a.declared && a.machines.size == 0 {
		o.apps = o.apps.without(e.made, a.name)
	}
}

func (e *edit) setApp(o *org, d App) {
	name := lower(d.Name)
	if !usableApp(name) {
		return
	}
	s := newSettings(d)
	if was, there := o.apps.get(name); !there || was.settings != s {
		e.app(o, name).settings = s
	}
}

func (e *edit) removeApp(o *org, name string) {
	if was, there := o.apps.get(name); there && was.declared {
		a := e.app(o, name)
		a.settings = newSettings(App{})
		a.declared = false
		e.settle(o, a)
	}
}
