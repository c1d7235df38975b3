package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/attach"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/link"
)

// system is what a host's pass acts on. The program's is plane; tests have a fake
// that prints what is done to it.
type system interface {
	// Attached lists the machines' links that are there.
	Attached() ([]attach.Found, error)
	// Firewall makes the policy the one in force.
	Firewall(ctx context.Context, p peers.Policy) error
	// Device returns the WireGuard device, made if there is none.
	Device() (peers.Device, error)
	// Link makes addresses and routes what c says.
	Link(c link.Config) (changes []string, err error)
	// Names answers DNS with what the view says, on the resolvers' addresses of the
	// networks in it and on no others.
	Names(v *mesh.View) error
	// Probes asks the hosts of the view, and answers theirs.
	Probes(v *mesh.View) error
	// Detach removes a machine's link.
	Detach(link string) error
}

// applied is what the last pass left in force.
type applied struct {
	view    *mesh.View
	links   map[string]bool // of machines that the firewall knows
	problem error
}

// loop makes the system what the view says, pass by pass.
type loop struct {
	system    system
	machines  *machines
	tunnels   tunnels
	link      string
	probe     uint16
	mtu       func(*mesh.View) int
	contact   func() contact
	differ    func(seen, effect *mesh.View) // told how what is put in effect differs from the view; nil: nobody asks
	log       *slog.Logger
	noWall    bool // fault injection: no firewall
	noClients bool // fault injection: no tunnels to clients

	guarded bool       // the firewall has been in force once: it stays
	last    *mesh.View // of the last pass
}

// pass brings the system from what it is to what v says. It is the same work
// whether something changed or not; when nothing did, it finds nothing to do. What
// fails is joined and does not hold up what does not depend on it.
//
//	firewall -> tunnels -> addresses and routes -> names -> probes -> what is left over
//
// The order keeps isolation closed: what refuses comes first, then what lets
// through, and what is not wanted any more goes from the other end.
func (l *loop) pass(ctx context.Context, v *mesh.View) (applied, error) {
	out := applied{view: v, links: map[string]bool{}}
	found, err := l.system.Attached()
	if err != nil {
		return out, err // a firewall without the machines that are there would cut them off
	}
	attachments, leftover := l.machines.plan(v, found, l.contact())
	seen := v
	v = l.machines.mask(v)
	v = carryOn(l.last, v, l.machines.needs())
	out.view, l.last = v, v
	var errs []error
	fail := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}

	if err := l.firewall(ctx, v, attachments); err != nil {
		if fail(err); !l.guarded {
			return out, err // nothing comes up before the firewall is in force
		}
	} else {
		for _, a := range attachments {
			out.links[a.Link] = true
		}
	}
	fail(l.tunnels.set(ctx, l.tunnelled(v), l.system.Device))
	fail(l.routes(v))
	if l.differ != nil {
		l.differ(seen, v)
	}
	fail(l.system.Names(v))
	fail(l.system.Probes(v))
	for _, name := range leftover {
		err := l.system.Detach(name)
		if err == nil {
			l.log.Info("machine's link removed: the mesh does not know it", "link", name)
		}
		fail(err)
	}
	out.problem = errors.Join(errs...)
	return out, out.problem
}

// tunnelled is the view that the tunnels are made of.
func (l *loop) tunnelled(v *mesh.View) *mesh.View {
	if !l.noClients {
		return v
	}
	w := *v
	w.Clients = nil
	return &w
}

func (l *loop) firewall(ctx context.Context, v *mesh.View, attachments []peers.Attachment) error {
	if l.noWall {
		l.guarded = true
		return nil
	}
	if err := l.system.Firewall(ctx, v.Policy(l.link, l.probe, attachments)); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	l.guarded = true
	return nil
}

func (l *loop) routes(v *mesh.View) error {
	c := link.Config{
		Link: l.link, AddressesOn: "lo", MTU: l.mtu(v), Unreachable: v.Plan.Prefix(), Up: true,
	}
	for _, a := range v.Addresses() {
		c.Addresses = append(c.Addresses, link.Address{Prefix: a.Prefix, Deprecated: a.Anycast})
	}
	for _, p := range v.Routes() {
		c.Routes = append(c.Routes, link.Route{Prefix: p})
	}
	changes, err := l.system.Link(c)
	for _, c := range changes {
		l.log.Info("link", "change", c)
	}
	return err
}
