package main

import (
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh/api"
)

func hostCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "host", Short: "Servers that carry machines and are gateways",
		Long: `Servers that carry machines and are gateways for clients. A host enrols itself:
give its agent a token ("weft token create --kind host").`,
	}
	cmd.AddCommand(hosts().listCommand(), hosts().showCommand(), hosts().removeCommand(),
		cordonCommand("cordon", "Leave a host's machines out of answers, and give it no new clients", true),
		cordonCommand("uncordon", "Take a host back into service", false))
	return cmd
}

func hosts() resource[api.HostInfo] {
	return resource[api.HostInfo]{kind: "host", arg: "NAME", table: hostTable, gone: `Remove a host: its certificate, its tunnels and its machines' names are refused
within seconds. To bring it back, give its agent a new token.`}
}

func cordonCommand(verb, short string, cordoned bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Args: cli.Args("NAME"), Example: "  weft host " + verb + " fra-1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := named("host", args[0]); err != nil {
				return err
			}
			host, err := ask[api.HostInfo](cmd, "PATCH", path("hosts", args[0]), api.UpdateHost{Cordoned: &cordoned})
			if err != nil {
				return err
			}
			return hosts().print(cmd, false, host)
		},
	}
}

func hostTable(hosts ...api.HostInfo) cli.Table {
	t := cli.Table{Header: []string{"NAME", "REGION", "ADDRESS", "ENDPOINT", "ORGS", "STATE"}}
	for _, h := range hosts {
		t.Rows = append(t.Rows, []string{h.Name, h.Region, h.Address.String(), endpoints(h.Endpoints, h.NAT), strings.Join(h.Orgs, ","), hostState(h)})
	}
	return t
}

func endpoints(list []netip.AddrPort, nat bool) string {
	var words []string
	for _, e := range list {
		words = append(words, e.String())
	}
	if nat {
		words = append(words, "behind NAT")
	}
	return strings.Join(words, ",")
}

func hostState(h api.HostInfo) string {
	state := "away"
	if h.Present {
		state = "present"
	}
	if h.Cordoned {
		state += ",cordoned"
	}
	return state
}
