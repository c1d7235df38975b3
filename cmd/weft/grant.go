package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func grants() resource[api.GrantInfo] {
	return resource[api.GrantInfo]{kind: "grant", arg: "ID", table: grantTable,
		gone: "Take a grant back: what it let through ends, also what has begun."}
}

func grantCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "grant", Short: "What of one org may reach what of another",
		Long: `What of one org may reach what of another. Two orgs never reach each other but by a
grant. It lets flows begin from the one side to the other, and answers return; nothing
begins the other way. Neither org is told the other's names: give the address, or make
a record of your own for it (see: weft record create --help).`,
	}
	create := &cobra.Command{
		Use: "create --from ORG[/APP] --to ORG[/APP] --tcp PORTS", Short: "Let one side begin flows to the other", Args: cli.Args(),
		Long: `Let one side begin flows to the other. A side is all of an org (acme), an app
(acme/db), a machine (acme/machine:db-1) or a client (acme/client:laptop); it need not
be there yet. PORTS are those of the destination: 5432, 5432-5440, or all.`,
		Example: `  weft grant create --from shop/web --to acme/db --tcp 5432
  weft grant create --from shop --to acme/metrics --udp 8125-8126
  weft grant create --from acme/client:laptop --to shop --icmp`,
		RunE: createGrant,
	}
	f := create.Flags()
	f.String("from", "", "the `SIDE` that begins")
	f.String("to", "", "the `SIDE` that is reached")
	f.String("tcp", "", "TCP to these `PORTS`")
	f.String("udp", "", "UDP to these `PORTS`")
	f.Bool("icmp", false, "echo (ping)")
	f.Bool("all", false, "TCP and UDP to all ports, and echo")
	r := grants()
	cmd.AddCommand(create, r.listCommand(), r.showCommand(), r.removeCommand())
	return cmd
}

func createGrant(cmd *cobra.Command, _ []string) error {
	in, err := grantRequest(cmd)
	if err != nil {
		return err
	}
	made, err := ask[api.GrantInfo](cmd, "POST", path("grants"), in)
	if errors.Is(err, api.ErrNotFound) {
		return mesh.WithHint(err, "see the orgs with: weft org list")
	}
	if err != nil {
		return err
	}
	for _, side := range []struct {
		p   mesh.Party
		has *int
	}{{made.From, made.Sources}, {made.To, made.Targets}} {
		if side.has != nil && *side.has == 0 {
			cli.Notef(cmd, "there is nothing in %s yet; the grant holds as soon as there is (what there is: %s)", side.p, listOf(side.p))
		}
	}
	return grants().print(cmd, false, made)
}

// listOf is what to type to see what a side of a grant could have named.
func listOf(p mesh.Party) string {
	kind := "machine"
	switch {
	case p.App != "":
		kind = "app"
	case p.Client != "":
		kind = "client"
	}
	return fmt.Sprintf("weft %s list --org %s", kind, p.Org)
}

// stillGranted tells of the grants that name something that is gone: they hold again
// for whatever comes under that name.
func stillGranted(cmd *cobra.Command, gone mesh.Party) {
	all, err := ask[[]api.GrantInfo](cmd, "GET", path("grants"), nil)
	if err != nil {
		return // it is gone, and that is what was asked for
	}
	for _, g := range all {
		if g.From == gone || g.To == gone {
			cli.Notef(cmd, "grant %s (%s from %s to %s) still names it, and holds for whatever comes under that name; to take it back: weft grant remove %s", g.ID, g.Traffic(), g.From, g.To, g.ID)
		}
	}
}

func grantRequest(cmd *cobra.Command) (in api.CreateGrant, err error) {
	if err := cli.Required(cmd, "from", "to"); err != nil {
		return in, err
	}
	f := cmd.Flags()
	for i, to := range []*mesh.Party{&in.From, &in.To} {
		flag := []string{"from", "to"}[i]
		text, _ := f.GetString(flag)
		if *to, err = mesh.ParseParty(text); err != nil {
			return in, cli.WithCode(fmt.Errorf("grant create: --%s: %w", flag, err), cli.CodeUsage)
		}
	}
	var given []string // a flag has the name of its protocol
	for _, protocol := range []string{mesh.ProtocolTCP, mesh.ProtocolUDP, mesh.ProtocolICMP, mesh.ProtocolAll} {
		if on := f.Lookup(protocol); on.Changed && on.Value.String() != "false" {
			given = append(given, protocol)
		}
	}
	switch len(given) {
	case 0:
		return in, mesh.WithHint(cli.Usagef("grant create: what may pass is missing: --tcp PORTS, --udp PORTS, --icmp or --all"), "for example: --tcp 5432")
	case 1:
		in.Protocol = given[0]
	default:
		return in, mesh.WithHint(cli.Usagef("grant create: --%s: one grant is for one of them", strings.Join(given, " and --")), "make a grant for each")
	}
	if in.Protocol == mesh.ProtocolTCP || in.Protocol == mesh.ProtocolUDP {
		ports, _ := f.GetString(in.Protocol)
		if in.FirstPort, in.LastPort, err = mesh.ParsePorts(ports); err != nil {
			return in, cli.WithCode(fmt.Errorf("grant create: --%s: %w", in.Protocol, err), cli.CodeUsage)
		}
	}
	_, err = mesh.Grant{From: in.From, To: in.To, Protocol: in.Protocol, FirstPort: in.FirstPort, LastPort: in.LastPort}.Canonical()
	if err != nil {
		err = cli.WithCode(err, cli.CodeUsage)
	}
	return in, err
}

func grantTable(grants ...api.GrantInfo) cli.Table {
	t := cli.Table{Header: []string{"ID", "FROM", "TO", "TRAFFIC", "SOURCES", "TARGETS", "CREATED"}}
	count := func(n *int) string {
		if n == nil {
			return ""
		}
		return strconv.Itoa(*n)
	}
	for _, g := range grants {
		t.Rows = append(t.Rows, []string{g.ID, g.From.String(), g.To.String(), g.Traffic(), count(g.Sources), count(g.Targets), cli.Time(g.Created)})
	}
	return t
}
