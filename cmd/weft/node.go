package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// addSocket gives a command the flag --socket, which is also WEFT_SOCKET.
func addSocket(cmd *cobra.Command) {
	cmd.PersistentFlags().String("socket", "", fmt.Sprintf("the `SOCKET` of the agent, or of \"weft up\" (default: %s, else %s)", local.HostSocket, local.LaptopSocket))
}

// node is the agent of this host, or this laptop's `weft up`.
func node(cmd *cobra.Command) local.Client {
	if socket, _ := cmd.Flags().GetString("socket"); socket != "" {
		return local.Client{Socket: socket}
	}
	if _, err := os.Stat(local.HostSocket); err != nil {
		if _, err := os.Stat(local.LaptopSocket); err == nil {
			return local.Client{Socket: local.LaptopSocket}
		}
	}
	return local.Client{Socket: local.HostSocket}
}

// notRunning adds what to do if nobody answers on the socket.
func notRunning(err error) error {
	if errors.Is(err, local.ErrNotRunning) && !errors.Is(err, os.ErrPermission) {
		return mesh.WithHint(err, "on a host: weft-agent run; on a laptop: weft up; elsewhere than usual: --socket")
	}
	return err
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "What this host or laptop does, and what is wrong", Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := node(cmd).Status(cmd.Context())
			if err != nil {
				return notRunning(err)
			}
			if cli.IsJSON(cmd) {
				s.Orgs, s.Peers = append([]string{}, s.Orgs...), append([]local.Peer{}, s.Peers...)
				return cli.PrintJSON(cmd, s) // an empty list is one, not null
			}
			for _, t := range []cli.Table{statusTable(s), peerTable(s.Peers), gatewayTable(s.Gateways), attachedTable(s.Machines)} {
				if len(t.Rows) == 0 {
					continue
				}
				if len(t.Header) > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				if err := t.Write(cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	addSocket(cmd)
	return cmd
}

func statusTable(s local.Status) cli.Table {
	link := fmt.Sprintf("%s, %s, MTU %d", s.Link, s.Backend, s.MTU)
	if s.Namespace != "" {
		link += ", in namespace " + s.Namespace
	}
	if !s.Address.IsValid() {
		t := cli.Table{Rows: [][]string{{"node", cmp.Or(s.Node, "has not joined yet")}, {"controller", "no orders yet"}}}
		return withProblems(t, s)
	}
	t := cli.Table{Rows: [][]string{
		{"node", s.Node},
		{"address", s.Address.String()},
		{"mesh", s.Prefix.String()},
		{"controller", controllerLine(s)},
		{"link", link},
		{"orgs", strings.Join(s.Orgs, ",")},
	}}
	for _, extra := range [][]string{{"gateway", s.Gateway}, {"DNS", s.DNS}, {"version", s.Version}, {"device", s.Device}} {
		if extra[1] != "" {
			t.Rows = append(t.Rows, extra)
		}
	}
	return withProblems(t, s)
}

func withProblems(t cli.Table, s local.Status) cli.Table {
	for _, p := range s.Problems {
		t.Rows = append(t.Rows, []string{"PROBLEM", p})
	}
	return t
}

func controllerLine(s local.Status) string {
	if s.Connected {
		others := ""
		if n := len(s.Controllers) - 1; n > 0 {
			others = fmt.Sprintf(", %d more known", n)
		}
		return fmt.Sprintf("%s, connected, revision %s%s", s.Controller, s.Revision, others)
	}
	from := ""
	if s.FromCache {
		from = ", from disk"
	}
	return fmt.Sprintf("%s, NOT connected; working on with revision %s, %s old%s",
		cmp.Or(s.Controller, "none"), s.Revision, s.ViewAge.Round(time.Second), from)
}

func peerTable(peers []local.Peer) cli.Table {
	t := cli.Table{Header: []string{"PEER", "REGION", "STATE", "RTT", "MTU", "HANDSHAKE", "ENDPOINT", "RECEIVED", "SENT"}}
	for _, p := range peers {
		endpoint := ""
		if p.Endpoint.IsValid() {
			endpoint = p.Endpoint.String()
		}
		t.Rows = append(t.Rows, []string{p.Name, p.Region, peerState(p), cli.Milliseconds(p.RTT), mtuText(p.MTU), cli.Time(p.LastHandshake), endpoint, size(p.Rx), size(p.Tx)})
	}
	return t
}

// peerState is a peer's state and, of a one-way tunnel, what is lost.
func peerState(p local.Peer) string {
	if p.Lost == "" {
		return p.State
	}
	return fmt.Sprintf("%s, lost %s", p.State, p.Lost)
}

func mtuText(mtu int) string {
	if mtu == 0 {
		return ""
	}
	return fmt.Sprint(mtu)
}

// size is an amount of data in a unit that keeps it short.
func size(n uint64) string {
	f, unit := float64(n), 0
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for f >= 1024 && unit < len(units)-1 {
		f /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[unit])
}

func gatewayTable(gateways []local.GatewayState) cli.Table {
	t := cli.Table{Header: []string{"GATEWAY", "REGION", "RTT", "NOTE"}}
	for _, g := range gateways {
		note := ""
		if !g.Rests.IsZero() {
			note = "stopped answering several times; not used before " + g.Rests.Local().Format(time.TimeOnly)
		}
		t.Rows = append(t.Rows, []string{g.Name, g.Region, cli.Milliseconds(g.RTT), note})
	}
	return t
}

func attachedTable(machines []local.Attached) cli.Table {
	t := cli.Table{Header: []string{"MACHINE", "ORG", "APP", "ADDRESS", "LINK"}}
	for _, m := range machines {
		t.Rows = append(t.Rows, []string{m.ID, m.Org, m.App, m.Address.String(), m.Link})
	}
	return t
}

func digCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dig NAME [TYPE]", Short: "Ask this node's resolver", Args: digArgs,
		Long: `Ask this node's resolver, as a member of an org: a laptop is one of its own org's, on
a host --org says which. TYPE is AAAA unless given. A name that does not exist ends
with exit code 3.

With --explain it says instead why the answer is what it is: every machine that the
name means, how far its host is and on what that rests, what state it is in, how old
each of these facts is, and why it is in the answer or not. --as says which machine
asks: one of the app that the name is of gets all of it. Inside a machine that one
asks; a laptop's names are answered by its gateway, so there it says where to ask.

With --top it prints the names that this host's resolver is asked most, and about how
often since the agent was started.`,
		Example: `  weft dig web.internal
  weft dig --org acme global.web.internal
  weft dig regions.web.internal TXT --short
  weft dig --org acme --explain --as 148e21dad76789 web.internal
  weft dig --top`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if on, _ := cmd.Flags().GetBool("top"); on {
				return top(cmd)
			}
			kind := "AAAA"
			if len(args) > 1 {
				kind = strings.ToUpper(args[1])
			}
			if on, _ := cmd.Flags().GetBool("explain"); on {
				return explain(cmd, args[0], kind)
			}
			org, _ := cmd.Flags().GetString("org")
			d, err := node(cmd).Dig(cmd.Context(), org, args[0], kind)
			if err != nil {
				return notRunning(err)
			}
			if err := printDig(cmd, d); err != nil {
				return err
			}
			if d.Rcode == "NXDOMAIN" {
				return noSuchName(args[0])
			}
			return nil
		},
	}
	addSocket(cmd)
	addOrg(cmd)
	cmd.Flags().Bool("short", false, "print only what the records hold")
	cmd.Flags().Bool("explain", false, "say why the answer is what it is")
	cmd.Flags().String("as", "", "with --explain: the `MACHINE` that asks")
	cmd.Flags().Bool("top", false, "print the names that are asked most")
	return cmd
}

// digArgs wants a name, unless it is about all of them.
func digArgs(cmd *cobra.Command, args []string) error {
	if on, _ := cmd.Flags().GetBool("top"); on {
		return cli.Args()(cmd, args)
	}
	return cli.Args("NAME", "[TYPE]")(cmd, args)
}

func noSuchName(name string) error {
	return cli.WithCode(fmt.Errorf("%s: there is no such name in this org (NXDOMAIN)", name), cli.CodeNotFound)
}

func printDig(cmd *cobra.Command, d local.Dig) error {
	if cli.IsJSON(cmd) {
		d.Answer = append([]string{}, d.Answer...)
		return cli.PrintJSON(cmd, d)
	}
	w := cmd.OutOrStdout()
	if short, _ := cmd.Flags().GetBool("short"); short {
		for _, record := range d.Answer {
			// name, TTL, class, type, data
			if f := strings.Fields(record); len(f) > 4 {
				record = strings.Join(f[4:], " ")
			}
			fmt.Fprintln(w, record)
		}
		return nil
	}
	fmt.Fprintf(w, "%s\n;; server %s, asked as %s, %s\n", strings.TrimSpace(d.Text), d.Server, d.Source, cmp.Or(cli.Milliseconds(d.RTT), "0 ms"))
	return nil
}

func pingCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ping NAME", Short: "Send echoes through the mesh to a name or an address", Args: cli.Args("NAME"),
		Long: `Send echoes through the mesh to a name or an address, as a member of an org: a laptop
is one of its own org's, on a host --org says which. Ends with exit code 1 if none
comes back.`,
		Example: "  weft ping web.internal\n  weft ping -c 10 --org acme 148e21dad76789.vm.web.internal",
		RunE:    ping,
	}
	addSocket(cmd)
	addOrg(cmd)
	cmd.Flags().IntP("count", "c", 4, "how `MANY` to send")
	cmd.Flags().Duration("interval", time.Second, "`TIME` between two")
	return cmd
}

func ping(cmd *cobra.Command, args []string) error {
	org, _ := cmd.Flags().GetString("org")
	count, _ := cmd.Flags().GetInt("count")
	interval, _ := cmd.Flags().GetDuration("interval")
	if count < 1 || interval < 0 {
		return cli.Usagef("ping: --count and --interval must be above 0")
	}
	ctx, all := cmd.Context(), []local.Ping{}
	received := 0
	for i := range count {
		if i > 0 && !wait(ctx, interval) {
			break
		}
		p, err := node(cmd).Ping(ctx, org, args[0])
		if err != nil {
			return notRunning(err)
		}
		all = append(all, p)
		line := fmt.Sprintf("%s (%s): %s", p.Name, p.Address, cli.Milliseconds(p.RTT))
		if p.Error != "" {
			line = fmt.Sprintf("%s (%s): %s", p.Name, p.Address, p.Error)
		} else {
			received++
		}
		if !cli.IsJSON(cmd) {
			fmt.Fprintln(cmd.OutOrStdout(), line)
		}
	}
	if cli.IsJSON(cmd) {
		if err := cli.PrintJSON(cmd, all); err != nil {
			return err
		}
	}
	if received == 0 {
		err := fmt.Errorf("ping %s: %d sent, none came back", args[0], len(all))
		if len(all) > 0 && all[len(all)-1].Hint != "" {
			err = mesh.WithHint(err, "%s", all[len(all)-1].Hint)
		}
		return err
	}
	cli.Notef(cmd, "%d of %d came back", received, len(all))
	return nil
}
