package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideRouter is every router's own address towards the hosts behind it.
var insideRouter = netip.AddrFrom4([4]byte{198, 51, 100, 1})

// NATConfig says how a router translates. The zero value is what most homes have:
// one outer port for each inner one, whoever it speaks to, and answers let in from
// those who were spoken to.
type NATConfig struct {
	// RandomPorts gives each flow an outer port of its own ("symmetric").
	RandomPorts bool
	// UDPTimeout is how long a mapping is kept after the last packet, in whole
	// seconds; 0: the kernel's (30 s, 120 s once both have spoken).
	UDPTimeout time.Duration
}

// Router is a host with one leg on the switch and one in a private network, whose
// hosts reach the others through it and are not reached.
type Router struct {
	self   *Host
	cfg    NATConfig
	inside int // hosts made; guarded by the lab's mu
}

// Self is the router as a host, to look into it.
func (r *Router) Self() *Host { return r.self }

// Addr is the router's address on the switch, which is what all the hosts behind
// it are seen as.
func (r *Router) Addr() netip.Addr { return r.self.addr }

// NAT makes a router.
func (l *Lab) NAT(name string, cfg NATConfig) (*Router, error) {
	r := &Router{cfg: cfg}
	if _, err := l.add(name, HostConfig{}, r); err != nil {
		return nil, err
	}
	err := r.self.Do(r.setTimeouts)
	if err == nil {
		err = r.makeBridge()
	}
	if err == nil {
		err = r.makeTable()
	}
	if err != nil {
		return nil, fmt.Errorf("router %s: %w", name, err)
	}
	return r, nil
}

// Host makes a host behind the router, with the router as its default gateway. The
// switch takes its name for the router's.
func (r *Router) Host(name string, cfg HostConfig) (*Host, error) {
	return r.self.lab.add(name, cfg, r)
}

func (r *Router) setTimeouts() error {
	if r.cfg.UDPTimeout == 0 {
		return nil
	}
	seconds := strconv.Itoa(int(r.cfg.UDPTimeout / time.Second))
	for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
		if err := os.WriteFile("/proc/sys/net/netfilter/"+name, []byte(seconds), 0); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}

// makeBridge makes the inner leg, which the hosts' links are ports of.
func (r *Router) makeBridge() error {
	return r.self.netlink(func(nl *netlink.Handle) error {
		lan := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}}
		if err := nl.LinkAdd(lan); err != nil {
			return fmt.Errorf("add lan0: %w", err)
		}
		if err := nl.AddrAdd(lan, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(insideRouter, 24))}); err != nil {
			return fmt.Errorf("add address to lan0: %w", err)
		}
		return nl.LinkSetUp(lan)
	})
}

// plugInside makes eth0 of a host a veth whose other end is a port of lan0.
func (r *Router) plugInside(h *Host, b *boot) error {
	return r.self.netlink(func(nl *netlink.Handle) error {
		lan, err := nl.LinkByName("lan0")
		if err != nil {
			return fmt.Errorf("find lan0 of %s: %w", r.self.name, err)
		}
		name := fmt.Sprintf("lan%d", h.index)
		// After a reboot: the kernel is slow to remove the old namespace with its end.
		if old, err := nl.LinkByName(name); err == nil {
			if err := nl.LinkDel(old); err != nil {
				return fmt.Errorf("unplug from %s: %w", r.self.name, err)
			}
		}
		link := netlink.NewVeth(netlink.LinkAttrs{Name: name, MasterIndex: lan.Attrs().Index, TxQLen: 1000})
		link.PeerName, link.PeerNamespace = "eth0", netlink.NsFd(b.netns.Fd())
		if err := nl.LinkAdd(link); err != nil {
			return fmt.Errorf("plug into %s: %w", r.self.name, err)
		}
		return nl.LinkSetUp(link)
	})
}

// awaitInside waits until the bridge forwards to and from a host's port.
func (r *Router) awaitInside(h *Host) error {
	port := fmt.Sprintf("lan%d", h.index)
	err := Await(context.Background(), port+" to forward", 10*time.Second, func(context.Context) error {
		state, err := r.self.ReadFile("/sys/class/net/" + port + "/brport/state")
		if err == nil && strings.TrimSpace(string(state)) != "3" { // BR_STATE_FORWARDING
			err = fmt.Errorf("its state is %s", state)
		}
		return err
	})
	return errors.Join(err, r.self.awaitLink("lan0"))
}

// makeTable makes the rules:
//
//	chain nat     { type nat hook postrouting; oifname eth0 masquerade }
//	chain forward { policy drop; ct state established,related accept; iifname lan0 accept }
//	chain input   { iifname eth0 l4proto udp/tcp, not established: drop }
//
// The last one is what a home router does: silence, where the kernel would say that
// nobody listens.
func (r *Router) makeTable() error {
	ns, err := r.self.Netns()
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(ns.Fd()))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	drop := nftables.ChainPolicyDrop
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "home"})
	nat := c.AddChain(&nftables.Chain{Table: t, Name: "nat", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	forward := c.AddChain(&nftables.Chain{Table: t, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	input := c.AddChain(&nftables.Chain{Table: t, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})

	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var exprs []expr.Any
		for _, p := range parts {
			exprs = append(exprs, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
	}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	rule(nat, onLink(expr.MetaKeyOIFNAME, "eth0"), []expr.Any{&expr.Masq{FullyRandom: r.cfg.RandomPorts}})
	rule(forward, established(), accept)
	rule(forward, onLink(expr.MetaKeyIIFNAME, "lan0"), accept)
	rule(input, established(), accept)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		rule(input, onLink(expr.MetaKeyIIFNAME, "eth0"), []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Verdict{Kind: expr.VerdictDrop},
		})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set nftables rules: %w", err)
	}
	return nil
}

func onLink(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded},
	}
}

func established() []expr.Any {
	mask := make([]byte, 4)
	binary.NativeEndian.PutUint32(mask, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// Forget drops all mappings, as a router that is switched off and on does. With
// RandomPorts the next packet of a flow gets another port.
func (r *Router) Forget() error {
	err := r.self.netlink(func(nl *netlink.Handle) error {
		return nl.ConntrackTableFlush(netlink.ConntrackTable)
	}, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("router %s: forget its mappings: %w", r.self.name, err)
	}
	return nil
}
