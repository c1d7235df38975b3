//go:build linux

package resolvconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/weftmesh/weft/dns"
)

// resolved is the way by systemd-resolved, over D-Bus (org.freedesktop.resolve1(5)).
type resolved struct{}

const (
	resolvedName      = "org.freedesktop.resolve1"
	resolvedPath      = "/org/freedesktop/resolve1"
	resolvedInterface = resolvedName + ".Manager."
	// noSuchLink is what it says of a link that is gone, and its settings with it.
	noSuchLink = resolvedName + ".NoSuchLink"
)

// resolvedStubs are the addresses that systemd-resolved answers on.
var resolvedStubs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 53}), netip.AddrFrom4([4]byte{127, 0, 0, 54})}

// resolvedAnswers reports whether systemd-resolved runs and names are looked up
// through it: that it runs is not enough, resolv.conf, whose text without us is
// given, may go past it.
func resolvedAnswers(ctx context.Context, cfg Config, text []byte) bool {
	asked := slices.ContainsFunc(dns.ParseResolvConf(text).Nameservers, func(a netip.AddrPort) bool {
		return slices.Contains(resolvedStubs, a.Addr())
	})
	nsswitch, _ := os.ReadFile(cfg.path("/etc/nsswitch.conf"))
	if !asked && !nssResolve(string(nsswitch)) {
		return false
	}
	conn, err := cfg.bus(ctx)
	if err != nil {
		return false
	}
	defer conn.Close()
	var running bool
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, resolvedName).Store(&running)
	return err == nil && running
}

// nssResolve reports whether nsswitch.conf sends host names to systemd-resolved.
func nssResolve(text string) bool {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		if hosts, ok := strings.CutPrefix(strings.TrimSpace(line), "hosts:"); ok {
			return slices.Contains(strings.Fields(hosts), "resolve")
		}
	}
	return false
}

// bus connects to the system bus. The caller closes it.
func (cfg Config) bus(ctx context.Context) (*dbus.Conn, error) {
	address := cfg.Bus
	if address == "" && cfg.Root == "" {
		address = os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
	}
	if address == "" {
		address = "unix:path=" + cfg.path("/run/dbus/system_bus_socket")
	}
	return dbus.Connect(address, dbus.WithContext(ctx))
}

// Wire types of the calls.
type (
	linkDNS struct { // iay
		Family  int32
		Address []byte
	}
	linkDomain struct { // sb
		Domain      string
		RoutingOnly bool
	}
)

func (resolved) set(ctx context.Context, cfg Config, st *state) error {
	index := cfg.Index
	if index == 0 {
		link, err := net.InterfaceByName(cfg.Link)
		if err != nil {
			return fmt.Errorf("link %s: %w", cfg.Link, err)
		}
		index = link.Index
	}
	st.Link, st.Index = cfg.Link, index
	if err := cfg.save(st); err != nil {
		return err
	}
	domains := make([]linkDomain, len(cfg.Domains))
	for i, d := range cfg.Domains {
		domains[i] = linkDomain{bare(d), true}
	}
	conn, err := cfg.bus(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	manager := conn.Object(resolvedName, resolvedPath)
	if linkIs(ctx, conn, int32(index), domains, serverOf(cfg.Server)) {
		return nil // each of the calls below drops what it has learnt
	}
	for _, call := range []struct {
		method string
		arg    any
		old    bool // older versions lack it, and do well without
	}{
		// Domains before the server, or all names would go there for a moment.
		{method: "SetLinkDomains", arg: domains},
		{method: "SetLinkDefaultRoute", arg: false, old: true},
		{method: "SetLinkDNSSEC", arg: "no"}, // internal. is signed by nobody
		{method: "SetLinkDNSOverTLS", arg: "no", old: true},
		{method: "SetLinkLLMNR", arg: "no"},
		{method: "SetLinkMulticastDNS", arg: "no"},
		{method: "SetLinkDNS", arg: []linkDNS{serverOf(cfg.Server)}},
	} {
		err := manager.CallWithContext(ctx, resolvedInterface+call.method, 0, int32(index), call.arg).Err
		if err != nil && !(call.old && isDBusError(err, "org.freedesktop.DBus.Error.UnknownMethod")) {
			return fmt.Errorf("%s of link %s: %w", call.method, cfg.Link, err)
		}
	}
	// Negative answers from before would stay for a while otherwise.
	_ = manager.CallWithContext(ctx, resolvedInterface+"FlushCaches", 0).Err
	return nil
}

// linkIs reports whether the link has these settings. An older version may lack some
// that do not matter, and one that does not tell is told.
func linkIs(ctx context.Context, conn *dbus.Conn, index int32, domains []linkDomain, server linkDNS) bool {
	var path dbus.ObjectPath
	err := conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedInterface+"GetLink", 0, index).Store(&path)
	if err != nil {
		return false
	}
	var is map[string]dbus.Variant
	err = conn.Object(resolvedName, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, resolvedName+".Link").Store(&is)
	if err != nil {
		return false
	}
	var haveDomains []linkDomain
	var haveServers []linkDNS
	if is["Domains"].Store(&haveDomains) != nil || is["DNS"].Store(&haveServers) != nil {
		return false
	}
	for setting, want := range map[string]any{"DNSSEC": "no", "DNSOverTLS": "no", "LLMNR": "no", "MulticastDNS": "no", "DefaultRoute": false} {
		if have, ok := is[setting]; ok && have.Value() != want {
			return false
		}
	}
	sameServer := func(a, b linkDNS) bool { return a.Family == b.Family && bytes.Equal(a.Address, b.Address) }
	return slices.Equal(haveDomains, domains) && slices.EqualFunc(haveServers, []linkDNS{server}, sameServer)
}

func serverOf(a netip.Addr) linkDNS {
	if a.Is4() {
		return linkDNS{2, a.AsSlice()} // AF_INET
	}
	return linkDNS{10, a.AsSlice()} // AF_INET6
}

// revert drops the link's settings. They also end with the link, and with
// systemd-resolved itself, so that either is gone is no error.
func (resolved) revert(ctx context.Context, cfg Config, st *state) (note string, err error) {
	if st.Index == 0 {
		return "", nil
	}
	conn, err := cfg.bus(ctx)
	if err != nil {
		return "", nil
	}
	defer conn.Close()
	var running bool
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, resolvedName).Store(&running)
	if err != nil || !running {
		return "", err
	}
	if link, err := net.InterfaceByIndex(st.Index); cfg.Index == 0 && (err != nil || link.Name != st.Link) {
		return "", nil // the number may be another link's by now
	}
	err = conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedInterface+"RevertLink", 0, int32(st.Index)).Err
	if err != nil && !isDBusError(err, noSuchLink) {
		return "", fmt.Errorf("RevertLink of link %s: %w", st.Link, err)
	}
	return "", nil
}

func isDBusError(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == name
}
