package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh/api"
)

func orgCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "org", Short: "Organisations, each with a network of its own"}
	orgs := resource[api.OrgInfo]{kind: "org", arg: "NAME", table: orgTable, gone: `Cut an org off and remove all that it has: its machines lose their network, its
clients their tunnels, and its names are gone, within seconds. There is no way back;
the number of its network is not used again.`}
	create := &cobra.Command{
		Use: "create NAME", Short: "Make an org and its network", Args: cli.Args("NAME"),
		Example: "  weft org create acme",
		RunE: func(cmd *cobra.Command, args []string) error {
			return orgs.create(cmd, args[0], api.CreateOrg{Name: args[0]})
		},
	}
	cmd.AddCommand(create, orgs.listCommand(), orgs.showCommand(), orgs.removeCommand())
	return cmd
}

func orgTable(orgs ...api.OrgInfo) cli.Table {
	t := cli.Table{Header: []string{"NAME", "PREFIX", "NETWORK", "CREATED"}}
	for _, o := range orgs {
		created := cli.Time(o.Created)
		if o.Tombstone {
			created = "being removed"
		}
		t.Rows = append(t.Rows, []string{o.Name, o.Prefix.String(), strconv.FormatUint(o.Network, 10), created})
	}
	return t
}
