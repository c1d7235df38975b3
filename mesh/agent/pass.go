package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/probe"
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

	// What follows changes what is named, and asks about nothing else: for the changes
	// of a view. After an error the methods above have to find out what there is.

	// ChangeFirewall puts in force what differs between two policies, see
	// firewall.Change.
	ChangeFirewall(ctx context.Context, before, after peers.Policy) error
	// ChangeLink carries out changes of addresses and routes.
	ChangeLink(changes []link.Change) (done []string, err error)
	// ChangeNames answers DNS for other networks.
	ChangeNames(plus, minus []peers.Network) error
	// ChangeProbes asks these hosts, if targets is not nil, and answers others.
	ChangeProbes(targets []probe.Target, plus, minus []netip.Addr) error
	// Strange reports whether the firewall's rules may not be ours any more.
	Strange(ctx context.Context) (bool, error)
	// Opened returns the device, and makes none.
	Opened() (peers.Device, bool)
	// Rename gives the link of a RenameEvent its name back.
	Rename(e link.Event) error
	// Repair puts a machine's link right, see attach.Repair.
	Repair(m attach.Machine) (changes []string, err error)
}

// applied is what the last pass left in force.
type applied struct {
	// view is the one in effect. After a pass over what changed alone its lists are
	// empty.
	view    *mesh.View
	links   *admitted
	orgs    int // carried
	mtu     int
	problem error
}

// admitted are the links of machines that the firewall knows, and what the view in
// effect shows of them. The loop changes it, everybody may look.
type admitted struct {
	mu sync.Mutex
	at map[string]mesh.Machine // guarded by mu; the zero Machine: the view does not show it
}

func newAdmitted() *admitted { return &admitted{at: map[string]mesh.Machine{}} }

func (a *admitted) get(link string) (shown mesh.Machine, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	shown, known = a.at[link]
	return shown, known
}

func (a *admitted) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.at)
}

func (a *admitted) change(gone []peers.Attachment, shown map[string]mesh.Machine) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range gone {
		delete(a.at, x.Link)
	}
	for link, r := range shown {
		a.at[link] = r
	}
}

// loop makes the system what the view says, pass by pass.
type loop struct {
	feed      *feed
	alarms    *alarms
	events    *events
	timing    Timing
	system    system
	machines  *machines
	tunnels   tunnels
	link      string
	alias     string // of link; "": none is wanted
	probe     uint16
	mtu       func(*mesh.View) int
	sizes     func() *sizes // how large packets to each peer may be; nil: as large as the link's
	contact   func() contact
	reach     func() contact                // contact without what the controllers say
	differ    func(seen, effect *mesh.View) // told how what is put in effect differs from the view; nil: nobody asks
	correct   func(over *mesh.Delta)        // told the same, when only that changed
	log       *slog.Logger
	noWall    bool // fault injection: no firewall
	noClients bool // fault injection: no tunnels to clients

	guarded  bool       // the firewall has been in force once: it stays
	last     *mesh.View // in effect since the last pass; nil: it is seen
	seen     *version
	due      time.Time              // the next whole pass
	look     time.Time              // the next look at what tells nobody of its changes
	mtuNow   int                    // as of then
	knocking map[wgtypes.Key]*knock // new hosts that have not answered
	doubts   map[string]time.Time   // links of machines that may not be right: when to look
	progress *progress              // what leads on from there; nil: only a whole pass can
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
	out := applied{view: v, links: newAdmitted()}
	l.machines.takeNews()
	found, err := l.system.Attached()
	if err != nil {
		return out, err // a firewall without the machines that are there would cut them off
	}
	c := l.contact()
	attachments, leftover := l.machines.plan(v, found, c)
	seen := v
	v = l.machines.mask(v)
	masked := v
	if orgs := l.machines.needs(); len(orgs) > 0 {
		v = carryOn(l.before(), v, orgs)
	}
	l.progress = nil
	if v == masked && !l.noWall && !l.noClients {
		l.progress = l.newProgress(seen, found, leftover, attachments, c, out.links)
	}
	out.view, l.last, l.mtuNow = v, v, l.mtu(v)
	out.mtu, out.orgs = l.mtuNow, len(v.Orgs)
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
		out.links.change(nil, shownAt(v, l.machines.host, attachments))
	}
	fail(l.tunnels.set(ctx, l.tunnelled(v), l.system.Device))
	if l.progress != nil {
		l.progress.retire(l.tunnels.retired)
	}
	fail(l.routes(v))
	if l.differ != nil {
		l.differ(seen, v)
	}
	if l.progress != nil {
		l.machines.correct(l.progress.over, l.machines.all(), l.progress.want)
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
	if out.problem = errors.Join(errs...); out.problem != nil {
		l.progress = nil
	}
	return out, out.problem
}

// before is the view in effect since the last pass, nil if there was none.
func (l *loop) before() *mesh.View {
	if l.last == nil {
		return l.seen.View()
	}
	return l.last
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

// addressesOn is the link that holds a host's addresses.
const addressesOn = "lo"

func (l *loop) routes(v *mesh.View) error {
	c := link.Config{
		Link: l.link, AddressesOn: addressesOn, Alias: l.alias, MTU: l.mtuNow, Unreachable: v.Plan.Prefix(), Up: true,
	}
	for _, a := range v.Addresses() {
		c.Addresses = append(c.Addresses, link.Address{Prefix: a.Prefix, Deprecated: a.Anycast})
	}
	c.Routes = peerRoutes(v, l.sizesNow())
	changes, err := l.system.Link(c)
	for _, c := range changes {
		l.log.Info("link", "change", c)
	}
	return err
}

// shownAt is what a view shows of the machines of these links; the zero Machine:
// nothing.
func shownAt(v *mesh.View, host string, in []peers.Attachment) map[string]mesh.Machine {
	out := make(map[string]mesh.Machine, len(in))
	for _, a := range in {
		out[a.Link] = mesh.Machine{}
	}
	for _, r := range v.Machines {
		if r.Host != host && r.Next != host {
			continue
		}
		link := attach.LinkName(r.Org, r.ID)
		if _, there := out[link]; there {
			out[link] = r
		}
	}
	return out
}
