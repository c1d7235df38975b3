// Package agent makes a node do what its view says. On a host (RunHost) and on a
// laptop (RunLaptop) it is the same loop: enrol once, follow the view, keep it on
// disk, and with every change, and every few seconds without one, compare what the
// system holds with what the view asks and change only the difference.
//
// Out of scope: what a view contains (package mesh), how a tunnel, a rule, a link
// or an answer is made (peers/..., mesh/attach, dns), flags and signals (cmd).
package agent

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/agent/probe"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/peers/userspace"
)

// Join says how a node gets into the mesh, and where it keeps what it is.
type Join struct {
	// StateDir holds keys, certificate and the last view, 0700. Required.
	StateDir string
	// Token or the file that holds it; needed until the node has enrolled.
	Token     enroll.Secret
	TokenFile string
	// Controllers are base URLs. Needed until the node has enrolled; what the view
	// says is learnt, and these are kept as a last resort.
	Controllers []string
	Name        string // of the node; default: the host's name up to its first dot
	Version     string // of the program, reported to the controllers
}

// HostConfig is what RunHost needs. Zero values mean the defaults.
type HostConfig struct {
	Join // StateDir: default /var/lib/weft

	Region   string         // if the token does not say
	Endpoint netip.AddrPort // where others reach this host's WireGuard; default: the address that the controller saw
	NAT      bool           // others cannot reach this host; it speaks first

	Port      uint16           // WireGuard's UDP port; default 51820
	ProbePort uint16           // default 51821, the same in the whole mesh
	Namespace string           // of the data plane; default "weft"
	Link      string           // the WireGuard link in it; default "weft0"
	SocketDir string           // of WireGuard's control socket, LINK.sock; default /var/run/wireguard
	MTU       int              // of that link; default: the underlay's less 80, at most 1420
	Backend   string           // BackendAuto, the default, BackendKernel or BackendUserspace
	Upstreams []netip.AddrPort // resolvers for other names; default: those of /etc/resolv.conf
	Socket    string           // the local API; default local.HostSocket
	Metrics   string           // IP:PORT of /metrics and /healthz; default: none

	DNSRules map[string][]netip.AddrPort // resolvers of their own for domains and what is below them
	RebindOK []string                    // domains whose names at other resolvers may point into the mesh
	QueryLog bool                        // a line for each DNS query

	// Device, if not nil, returns the command of a process that calls userspace.Serve
	// with this and a version of its own, extra file 3 being Ready: a userspace device
	// then outlives the agent. nil: it lives in the agent's process.
	Device func(userspace.ProcessConfig) *exec.Cmd

	Timing Timing
	// Disable switches single mechanisms off, to show that tests notice. It is for
	// fault injection only; each name is warned of in the log. See Mechanisms.
	Disable map[string]bool
	Log     *slog.Logger // default: discard
}

// LaptopConfig is what RunLaptop needs. Zero values mean the defaults.
type LaptopConfig struct {
	Join // StateDir: default /var/lib/weft/laptop

	Link      string // default "weft0"
	SocketDir string // of WireGuard's control socket, LINK.sock; default /var/run/wireguard
	Port      uint16 // WireGuard's UDP port; default: any
	ProbePort uint16 // default 51821, the same in the whole mesh
	MTU       int    // default: the underlay's less 80, at most 1420
	Socket    string // the local API; default local.LaptopSocket
	Gateway   string // a host; default: the nearest by measurement
	// NoDNS leaves the system's resolver alone.
	NoDNS bool
	// Guard, if not nil, returns the command of a helper process that calls
	// GuardLaptop with this owner, to put the resolver back if this process dies
	// without doing so itself. It is started before the resolver is changed.
	Guard func(owner string) *exec.Cmd

	Timing  Timing
	Disable map[string]bool
	Log     *slog.Logger
}

// Timing holds the durations of the loop. Tests shorten them.
type Timing struct {
	Tick       time.Duration // between two passes without an event; default 10 s
	Look       time.Duration // between two looks at what tells of no change: the device; default 2 s
	Watchdog   time.Duration // a pass that takes longer is reported; default 5 s
	Silence    time.Duration // without a word the view stream is given up; controllers ping every second; default 4 s
	Stale      time.Duration // a controller that heard nothing from etcd for so long is left for another one; default 10 s
	Backoff    time.Duration // first wait before another attempt; doubles up to MaxBackoff; default 500 ms
	MaxBackoff time.Duration // default 10 s
	Jitter     time.Duration // at most so long after a stream ended the next one is opened; default 200 ms
	HoldFor    time.Duration // a snapshot that removes most of the mesh waits; default 3 min
	Dead       time.Duration // suspect and without presence for so long is dead; default 60 s
	Lease      time.Duration // of presence; see PresenceHold; default 30 s
	Reclaim    time.Duration // for a machine's process to come back after a restart; default 10 s
	Report     time.Duration // between two reports to the controllers; default 30 s
	Attach     time.Duration // a machine waits at most so long to be in effect; default 15 s
	Measure    time.Duration // a laptop measures its gateways anew; default 30 s
	GatewayOut time.Duration // without answers before a laptop takes another one; default 3 s
	MoveWait   time.Duration // for the tunnels of a host that a machine moves to; default 3 s
	MoveGrace  time.Duration // a host delivers to a machine that has moved away; default 2 s
	CacheWrite time.Duration // between two writes of the view to disk, at least; default 10 ms
	Probe      probe.Timing
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) { *d = cmp.Or(*d, v) }
	set(&t.Tick, 10*time.Second)
	set(&t.Look, 2*time.Second)
	set(&t.Watchdog, 5*time.Second)
	set(&t.Silence, 4*time.Second)
	set(&t.Stale, 10*time.Second)
	set(&t.Backoff, 500*time.Millisecond)
	set(&t.MaxBackoff, 10*time.Second)
	set(&t.Jitter, 200*time.Millisecond)
	set(&t.HoldFor, 3*time.Minute)
	set(&t.Dead, time.Minute)
	set(&t.Lease, 30*time.Second)
	set(&t.Reclaim, 10*time.Second)
	set(&t.Report, 30*time.Second)
	set(&t.Attach, 15*time.Second)
	set(&t.Measure, 30*time.Second)
	set(&t.GatewayOut, 3*time.Second)
	set(&t.MoveWait, 3*time.Second)
	set(&t.MoveGrace, 2*time.Second)
	set(&t.CacheWrite, 10*time.Millisecond)
	t.Probe = t.Probe.WithDefaults()
	return t
}

// Mechanisms that Disable knows.
const (
	DisableProbes       = "probes"        // hosts are not probed: no distances, nobody is suspect
	DisableFirewall     = "firewall"      // no isolation
	DisableCache        = "cache"         // the view is neither kept on disk nor read from it
	DisablePresenceHold = "presence-hold" // a control plane that fails takes hosts with it
	DisableSnapshotHold = "snapshot-hold" // a snapshot that removes most of the mesh is applied at once
	DisableSuspect      = "suspect"       // hosts that do not answer stay in the names
	DisableRenewal      = "renewal"       // the certificate is not renewed
	DisableLeave        = "leave"         // the record of a machine that ended stays
	DisableDNS          = "dns"           // nothing answers on port 53; a laptop's resolver is left alone
	DisableNear         = "near"          // all of an app is answered, and distances do not count
	DisableResolvconf   = "resolvconf"    // a laptop's resolver is not put back
	DisableNamespace    = "namespace"     // the data plane is in the host's own namespace
	DisableClients      = "clients"       // a gateway has no tunnels to clients
	DisableReconnect    = "reconnect"     // a view stream that ended is not opened again
	DisableSameApp      = "same-app"      // an app's own machines are answered like others
)

// Mechanisms lists the names that Disable knows, sorted.
func Mechanisms() []string {
	return []string{
		DisableCache, DisableClients, DisableDNS, DisableFirewall, DisableLeave, DisableNamespace, DisableNear,
		DisablePresenceHold, DisableProbes, DisableReconnect, DisableRenewal, DisableResolvconf, DisableSameApp,
		DisableSnapshotHold, DisableSuspect,
	}
}

func checkDisable(disable map[string]bool, log *slog.Logger) error {
	for _, name := range slices.Sorted(maps.Keys(disable)) {
		if !slices.Contains(Mechanisms(), name) {
			return mesh.WithHint(fmt.Errorf("mechanism %q to switch off: unknown", name), "there are: %s", strings.Join(Mechanisms(), ", "))
		}
		if disable[name] {
			log.Warn("a mechanism is switched off: for tests only", "mechanism", name)
		}
	}
	return nil
}

func (c HostConfig) withDefaults() (HostConfig, error) {
	var err error
	c.StateDir = cmp.Or(c.StateDir, "/var/lib/weft")
	c.Port = cmp.Or(c.Port, 51820)
	c.ProbePort = cmp.Or(c.ProbePort, probe.DefaultPort)
	c.Namespace = cmp.Or(c.Namespace, "weft")
	c.Link = cmp.Or(c.Link, "weft0")
	c.Socket = cmp.Or(c.Socket, local.HostSocket)
	c.Timing = c.Timing.withDefaults()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Name, err = nodeName("host", c.Name); err != nil {
		return c, err
	}
	if c.Region != "" {
		if err := mesh.CheckName("region", c.Region); err != nil {
			return c, err
		}
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65455) {
		return c, fmt.Errorf("MTU %d: want 1280 to 65455; IPv6 needs 1280", c.MTU)
	}
	if len(c.Link) > 15 {
		return c, fmt.Errorf("link name %q: at most 15 characters", c.Link)
	}
	// What is wrong with these is known before the host joins.
	if _, err := dns.NewForwarder(dns.ForwarderConfig{Domains: c.DNSRules, Rebind: c.RebindOK}); err != nil {
		return c, err
	}
	return c, checkDisable(c.Disable, c.Log)
}

func (c LaptopConfig) withDefaults() (LaptopConfig, error) {
	var err error
	c.StateDir = cmp.Or(c.StateDir, "/var/lib/weft/laptop")
	c.Link = cmp.Or(c.Link, "weft0")
	c.ProbePort = cmp.Or(c.ProbePort, probe.DefaultPort)
	c.Socket = cmp.Or(c.Socket, local.LaptopSocket)
	c.Timing = c.Timing.withDefaults()
	c.NoDNS = c.NoDNS || c.Disable[DisableDNS]
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Name, err = nodeName("client", c.Name); err != nil {
		return c, err
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65455) {
		return c, fmt.Errorf("MTU %d: want 1280 to 65455; IPv6 needs 1280", c.MTU)
	}
	return c, checkDisable(c.Disable, c.Log)
}

func nodeName(kind, name string) (string, error) {
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("name of this %s: %w", kind, err)
		}
		name, _, _ = strings.Cut(strings.ToLower(host), ".")
	}
	if err := mesh.CheckName(kind, name); err != nil {
		return "", mesh.WithHint(err, "give one with --name")
	}
	return name, nil
}
