// Command weft-agent runs on a host: it joins the mesh once, and from then on makes
// the host match what the controllers say. It only turns flags into a
// configuration; what is done with it is mesh/agent's.
package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/peers/userspace"
)

func main() { os.Exit(cli.Run(root())) }

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "weft-agent",
		Short: "Makes a server a host of a weft mesh",
	}
	cmd.AddCommand(runCommand(), cleanCommand(), deviceCommand())
	return cmd
}

// settings are the flags of `run` that are not what HostConfig takes.
type settings struct {
	log      *cli.Log
	endpoint string
	upstream []string
	rules    []string
	backend  *cli.Choice
	disable  []string
}

func runCommand() *cobra.Command {
	var c agent.HostConfig
	var s settings
	cmd := &cobra.Command{
		Use: "run", Short: "Join if need be, and work until told to end", Args: cli.Args(),
		Long: `Join the mesh if this host has not yet, and make it do its part until SIGTERM or
SIGINT. The first time a token is needed ("weft token create --kind host") and the
address of a controller; from then on everything is in --state-dir, also the last
orders: a host that starts without a controller takes up where it was.

Tunnels outlive this process: the kernel's, or those of "weft-agent device", which it
starts where the kernel has no WireGuard and finds again. In a systemd unit that needs
KillMode=process.

Every flag is also a variable, --listen-port being WEFT_LISTEN_PORT, and a key in the
file that --config names, listen-port.`,
		Example: `  weft-agent run --controller https://203.0.113.1:7443 --token-file host.token
  weft-agent run --config /etc/weft/agent.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.fill(&c); err != nil {
				return err
			}
			c.Version = cli.VersionText()
			c.Log = s.log.Logger(cmd.ErrOrStderr())
			c.Device = func(p userspace.ProcessConfig) *exec.Cmd { return deviceProcess(p, logFlags(cmd)) }
			return cli.Missing(agent.RunHost(cmd.Context(), c), c.TokenFile)
		},
	}
	f := cmd.PersistentFlags()
	f.StringSliceVar(&c.Controllers, "controller", nil, "where the controllers are: `URLS`; needed until the host has joined")
	f.StringVar(&c.TokenFile, "token-file", "", "the `FILE` that holds the join token; needed until the host has joined")
	f.StringVar(&c.Name, "name", "", "of this host in the mesh: `NAME` (default: the host's name up to the first dot)")
	f.StringVar(&c.Region, "region", "", "the `REGION` that it is in, if the token does not say")
	f.StringVar(&s.endpoint, "endpoint", "", "`IP:PORT` at which others reach this host's WireGuard (default: the address that the controller sees)")
	f.BoolVar(&c.NAT, "nat", false, "others cannot reach this host: it always speaks first")
	f.Uint16Var(&c.Port, "listen-port", 51820, "WireGuard's UDP `PORT`")
	f.StringVar(&c.StateDir, "state-dir", "/var/lib/weft", "where keys, certificate and last orders are kept: `DIR`")
	f.StringVar(&c.Socket, "socket", local.HostSocket, "where \"weft run\" and \"weft status\" find the agent: `SOCKET`")
	f.StringVar(&c.Namespace, "namespace", "weft", "network `NAMESPACE` of the data plane")
	f.StringVar(&c.Link, "link", "weft0", "the WireGuard `LINK` in it")
	f.StringVar(&c.SocketDir, "uapi-dir", "/var/run/wireguard", "where wg(8) finds the link's control socket: `DIR`")
	f.IntVar(&c.MTU, "mtu", 0, "`BYTES` of that link (default: as the underlay allows, at most 1420)")
	s.backend = cli.NewChoice(agent.BackendAuto, agent.BackendKernel, agent.BackendUserspace)
	f.Var(s.backend, "backend", "who encrypts; auto: the kernel if it has WireGuard")
	f.StringSliceVar(&s.upstream, "dns-upstream", nil, "resolvers for all other names: `IP[:PORT]`, also several (default: those of /etc/resolv.conf)")
	f.StringSliceVar(&s.upstream, "upstream-dns", nil, "what --dns-upstream was called before")
	f.Lookup("upstream-dns").Hidden = true
	f.StringSliceVar(&s.rules, "dns-rule", nil, "resolvers for a domain and what is below it: `DOMAIN=IP[:PORT],...`, also several; the longest domain counts")
	f.StringSliceVar(&c.RebindOK, "dns-rebind-ok", nil, "`DOMAINS` whose names at other resolvers may point into the mesh")
	f.BoolVar(&c.QueryLog, "dns-log", false, "log each DNS query, up to 1000 a second")
	f.Uint16Var(&c.ProbePort, "probe-port", 0, "UDP `PORT` of the probes between hosts, the same in the whole mesh (default 51821)")
	f.StringVar(&c.Metrics, "metrics", "127.0.0.1:9551", "serve /metrics and /healthz on this `ADDRESS`; empty: do not")
	f.StringSliceVar(&s.disable, "disable", nil, "switch mechanisms off, for fault injection")
	f.Lookup("disable").Hidden = true
	s.log = cli.AddLog(f)
	return cmd
}

func cleanCommand() *cobra.Command {
	// The name only has to be one: nothing that is removed bears it.
	c := agent.HostConfig{Join: agent.Join{Name: "clean"}}
	cmd := &cobra.Command{
		Use: "clean", Short: "Remove what an agent that has ended left in the system", Args: cli.Args(),
		Long: `Remove what an agent that has ended left in the system so that machines and a restart
find it: the network namespace of the data plane, the process that holds its tunnels,
and the machines' links. What it has on disk stays. No agent may run with this configuration.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := (local.Client{Socket: c.Socket}).Status(cmd.Context()); err == nil {
				return mesh.WithHint(fmt.Errorf("clean: an agent runs, on socket %s", c.Socket), "end it first")
			}
			c.Device = func(p userspace.ProcessConfig) *exec.Cmd { return deviceProcess(p, nil) }
			return agent.Clean(cmd.Context(), c)
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&c.Socket, "socket", local.HostSocket, "what \"weft-agent run\" was given: `SOCKET`")
	f.StringVar(&c.Namespace, "namespace", "weft", "what \"weft-agent run\" was given: `NAMESPACE`")
	f.StringVar(&c.Link, "link", "weft0", "what \"weft-agent run\" was given: `LINK`")
	f.StringVar(&c.SocketDir, "uapi-dir", userspace.DefaultSocketDir, "what \"weft-agent run\" was given: `DIR`")
	return cmd
}

// fill parses what flags give as text.
func (s settings) fill(c *agent.HostConfig) error {
	c.Backend = s.backend.String()
	var err error
	if s.endpoint != "" {
		if c.Endpoint, err = netip.ParseAddrPort(s.endpoint); err != nil {
			return mesh.WithHint(cli.Usagef("--endpoint %q: want IP:PORT", s.endpoint), "for example 203.0.113.7:51820 or [2001:db8::7]:51820")
		}
	}
	for _, u := range s.upstream {
		addr, err := parseResolver(u)
		if err != nil {
			return cli.Usagef("--dns-upstream %q: want an IP address, or IP:PORT", u)
		}
		c.Upstreams = append(c.Upstreams, addr)
	}
	if c.DNSRules, err = parseRules(s.rules); err != nil {
		return err
	}
	if len(s.disable) > 0 {
		c.Disable = map[string]bool{}
		for _, name := range s.disable {
			c.Disable[name] = true
		}
	}
	return nil
}

// parseRules reads DOMAIN=IP[:PORT]; what has no "=" is another resolver for the
// domain before it, because a list is cut at its commas.
func parseRules(list []string) (map[string][]netip.AddrPort, error) {
	rules := map[string][]netip.AddrPort{}
	domain := ""
	for _, entry := range list {
		name, server, named := strings.Cut(entry, "=")
		if !named {
			name, server = domain, entry
		}
		addr, err := parseResolver(server)
		if name == "" || err != nil {
			return nil, mesh.WithHint(cli.Usagef("--dns-rule %q: want DOMAIN=IP or DOMAIN=IP:PORT", entry), "for example corp.example=10.0.0.53,10.0.1.53")
		}
		if name == "." {
			return nil, mesh.WithHint(cli.Usagef("--dns-rule %q: all names are no domain", entry), "--dns-upstream says who is asked for them")
		}
		domain = strings.ToLower(strings.TrimSuffix(name, "."))
		rules[domain] = append(rules[domain], addr)
	}
	return rules, nil
}

func parseResolver(s string) (netip.AddrPort, error) {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(s)
}
