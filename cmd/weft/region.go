package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func regionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "region", Short: "Places where hosts are"}
	regions := resource[mesh.Region]{kind: "region", arg: "NAME", table: regionTable,
		gone: "Remove a region. No host may be in it any more."}
	create := &cobra.Command{
		Use: "create NAME", Short: "Name a place", Args: cli.Args("NAME"),
		Long: `Name a place. Where it is (--at) is only used until round trips have been measured,
and to give regions of one continent addresses that are alike.`,
		Example: `  weft region create fra --at 50.1,8.7
  weft region create syd --at=-33.9,151.2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := api.CreateRegion{Name: args[0]}
			if at, _ := cmd.Flags().GetString("at"); at != "" {
				point, err := mesh.ParsePoint(at)
				if err != nil {
					return cli.Usagef("--at: %w", err)
				}
				in.At = point
			}
			return regions.create(cmd, args[0], in)
		},
	}
	create.Flags().String("at", "", "`LATITUDE,LONGITUDE` in degrees, north and east positive")
	cmd.AddCommand(create, regions.listCommand(), regions.showCommand(), regions.removeCommand())
	return cmd
}

func regionTable(regions ...mesh.Region) cli.Table {
	t := cli.Table{Header: []string{"NAME", "NUMBER", "AT"}}
	for _, r := range regions {
		t.Rows = append(t.Rows, []string{r.Name, strconv.Itoa(int(r.Number)), r.At.String()})
	}
	return t
}
