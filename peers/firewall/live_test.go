package firewall

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// answerer sends back what it gets, until the test ends.
func answerer(t *testing.T, ns *netns.Handle, at netip.AddrPort) {
	t.Helper()
	var conn *net.UDPConn
	check(t, ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(at))
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
}

// talk is a flow with questions and answers in it, one after another.
type talk struct {
	conn *net.UDPConn
	n    int
}

func newTalk(t *testing.T, ns *netns.Handle, to netip.AddrPort) *talk {
	t.Helper()
	x := &talk{}
	check(t, ns.Do(func() (err error) {
		x.conn, err = net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(to))
		return err
	}))
	t.Cleanup(func() { x.conn.Close() })
	return x
}

// ask sends a numbered question and waits for its answer.
func (x *talk) ask(patience time.Duration) error {
	x.n++
	question := fmt.Sprintf("question %d", x.n)
	if _, err := x.conn.Write([]byte(question)); err != nil {
		return err
	}
	x.conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 512)
	for {
		n, err := x.conn.Read(buf)
		if err != nil {
			return fmt.Errorf("%s: %w", question, err)
		}
		if string(buf[:n]) == question {
			return nil
		}
	}
}

// during asks without a pause while fn runs, and returns the first failure.
func (x *talk) during(fn func()) error {
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			if err := x.ask(patience); err != nil {
				failed <- err
				return
			}
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
		}
	}()
	fn()
	close(stop)
	return <-failed
}

// speak lets the machines answer by themselves: in most tests they only hear.
func (l *lab) speak(t *testing.T, machines ...string) {
	t.Helper()
	for _, name := range machines {
		nl := must(l.ports[name].ns.Netlink())
		link := must(nl.LinkByName("eth0"))
		check(t, nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netns.IPNet(netip.MustParsePrefix("fe80::/64")), Scope: netlink.SCOPE_LINK}))
		check(t, nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP("fe80::1"), Dst: netns.IPNet(netip.MustParsePrefix("::/0"))}))
		nl.Close()
	}
}

// withGrants is testPolicy with grants.
func withGrants(list ...peers.Grant) peers.Policy {
	p := testPolicy()
	p.Grants = list
	return p
}

// A flow that is allowed, granted or within a network, loses no packet while all else
// changes: other grants, machines, the whole table, the agent.
func TestChangesCutNothingElse(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.speak(t, "a", "b", "c")
	_, a := who("a")
	_, b := who("b")
	_, c := who("c")
	answerer(t, l.ports["c"].ns, netip.AddrPortFrom(c, 7000))
	answerer(t, l.ports["b"].ns, netip.AddrPortFrom(b, 7000))
	kept := grant("1:100:5:1:0/112", "2:100:5:3:0/112", udp6, 7000, 7000)
	set(t, l.Firewall, withGrants(kept))
	forbidden := newTalk(t, l.ports["c"].ns, netip.AddrPortFrom(a, 7000))
	inside := newTalk(t, l.ports["a"].ns, netip.AddrPortFrom(b, 7000))
	granted := newTalk(t, l.ports["a"].ns, netip.AddrPortFrom(c, 7000))
	changes := func() {
		for i := range 5 {
			more := append(manyGrants(50*i), kept, grant("1::/64", "2::/64", udp6, 6999, uint16(7000+i)))
			set(t, l.Firewall, withGrants(more...)) // the last one covers the first, and goes again
			p := withGrants(kept)
			p.Attachments = append(p.Attachments, peers.Attachment{Link: "m-d", Endpoint: endpoint("2:100:5:4:2")})
			p.Networks = append(p.Networks, peers.Network{Prefix: prefix("4::/64"), Host: addr("4:100:5:0:1"), Resolver: addr("4::3")})
			set(t, l.Firewall, p)
			if forbidden.ask(10*time.Millisecond) == nil {
				t.Error("a flow begins against a grant's direction")
			}
		}
		l.Firewall = must(New(l.plane, l.log)) // an agent that has just begun
		p := withGrants(kept)
		p.ProbePort++ // another rule: the whole table
		set(t, l.Firewall, p)
		set(t, l.Firewall, withGrants(kept))
	}
	if err := inside.during(func() {
		if err := granted.during(changes); err != nil {
			t.Errorf("a granted flow: %v", err)
		}
	}); err != nil {
		t.Errorf("a flow within a network: %v", err)
	}
	t.Logf("%d and %d questions were answered", inside.n, granted.n)
}

// Revoking a grant ends its flows, at once, and those alone.
func TestRevokedFlowsEnd(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.speak(t, "a", "b", "c")
	_, b := who("b")
	_, c := who("c")
	for port := uint16(7000); port < 7003; port++ {
		answerer(t, l.ports["c"].ns, netip.AddrPortFrom(c, port))
	}
	answerer(t, l.ports["b"].ns, netip.AddrPortFrom(b, 7000))
	one := func(first, last uint16) peers.Grant {
		return grant("1:100:5:1:0/112", "2:100:5:3:0/112", udp6, first, last)
	}
	set(t, l.Firewall, withGrants(one(7000, 7001), one(7001, 7002)))
	a := l.ports["a"].ns
	talks := []*talk{newTalk(t, a, netip.AddrPortFrom(c, 7000)), newTalk(t, a, netip.AddrPortFrom(c, 7001)), newTalk(t, a, netip.AddrPortFrom(c, 7002)), newTalk(t, a, netip.AddrPortFrom(b, 7000))}
	ask := func(when string, want ...bool) {
		t.Helper()
		for i, x := range talks {
			within := patience
			if !want[i] {
				within = 50 * time.Millisecond
			}
			if err := x.ask(within); (err == nil) != want[i] {
				t.Errorf("%s: flow %d: %v, want it to pass: %v", when, i, err, want[i])
			}
		}
	}
	ask("both grants", true, true, true, true)
	// What the other one lets too goes on.
	if err := talks[1].during(func() { set(t, l.Firewall, withGrants(one(7001, 7002))) }); err != nil {
		t.Errorf("revoking one grant cut a flow that another lets: %v", err)
	}
	ask("one grant", false, true, true, true)
	if got := entries(t, l.plane); got != "7001 7002" {
		t.Errorf("tracked: %s, want 7001 7002", got)
	}
	// By a change of elements without the whole.
	before := peers.Policy{Mesh: testPolicy().Mesh, Self: testPolicy().Self, Resolver: testPolicy().Resolver}
	after := before
	before.Grants, after.Grants = []peers.Grant{one(7001, 7002)}, []peers.Grant{one(7002, 7002)}
	check(t, l.Change(context.Background(), before, after))
	ask("a change", false, false, true, true)
	if got := entries(t, l.plane); got != "7002" {
		t.Errorf("tracked: %s, want 7002", got)
	}
	// An agent that ends between the rules and the flows: the next one goes on with it.
	k := must(l.open(context.Background()))
	defer k.Close()
	check(t, k.replace(must(Render(withGrants(one(7001, 7001))))))
	ask("half a change", false, true, true, true)
	l.Firewall = must(New(l.plane, l.log))
	if set(t, l.Firewall, withGrants(one(7001, 7001))) {
		t.Error("the new agent changed the rules")
	}
	ask("the next agent", false, true, false, true)
	set(t, l.Firewall, withGrants())
	ask("no grant", false, false, false, true)
	set(t, l.Firewall, peers.Policy{})
	if got := entries(t, l.plane); got != "" {
		t.Errorf("tracked: %s, want nothing", got)
	}
}

// entries are the destination ports of what connection tracking holds.
func entries(t *testing.T, plane *netns.Handle) string {
	t.Helper()
	nl := must(plane.Netlink(unix.NETLINK_NETFILTER))
	defer nl.Close()
	var out []string
	for _, c := range must(nl.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET6)) {
		out = append(out, fmt.Sprint(c.Forward.DstPort))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
