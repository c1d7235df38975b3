package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func appCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "app", Short: "Named groups of machines: <app>.internal"}
	addOrg(cmd)
	apps := resource[mesh.App]{kind: "app", arg: "NAME", table: appTable, scope: ofOrg("apps"),
		gone: "Remove an app. No machine may be in it any more."}
	create := &cobra.Command{
		Use: "create NAME", Short: "Make an app before its first machine does", Args: cli.Args("NAME"),
		Example: "  weft app create --org acme web",
		RunE: func(cmd *cobra.Command, args []string) error {
			return apps.create(cmd, args[0], api.CreateApp{Name: args[0]})
		},
	}
	cmd.AddCommand(create, apps.listCommand(), apps.showCommand(), apps.removeCommand())
	return cmd
}

func appTable(apps ...mesh.App) cli.Table {
	t := cli.Table{Header: []string{"NAME", "ORG", "ANSWER", "TTL"}}
	for _, a := range apps {
		answer, ttl := a.Answer, a.TTL
		if answer == "" {
			answer = "near"
		}
		if ttl == 0 {
			ttl = 5
		}
		t.Rows = append(t.Rows, []string{a.Name, a.Org, answer, strconv.Itoa(ttl) + " s"})
	}
	return t
}
