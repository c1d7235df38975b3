package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh/api"
)

func machineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "machine", Short: "Workloads: what `weft run` started on a host",
		Long: "Workloads: what \"weft run\" started on a host. They come and go with their command.",
	}
	addOrg(cmd)
	machines := resource[api.MachineInfo]{kind: "machine", arg: "ID", table: machineTable, scope: ofOrg("machines"), gone: `Cut a machine off and forget it: its names and its network go within seconds. Its
command is not ended.`}
	cmd.AddCommand(machines.listCommand(), machines.showCommand(), machines.removeCommand())
	return cmd
}

func machineTable(machines ...api.MachineInfo) cli.Table {
	t := cli.Table{Header: []string{"ID", "APP", "HOST", "REGION", "ADDRESS", "STATE", "META"}}
	for _, m := range machines {
		var meta []string
		if m.Group != "" {
			meta = append(meta, "group="+m.Group)
		}
		for _, k := range slices.Sorted(maps.Keys(m.Meta)) {
			meta = append(meta, k+"="+m.Meta[k])
		}
		at := m.Host
		if m.Next != "" {
			at += " -> " + m.Next // it is about to move
		}
		t.Rows = append(t.Rows, []string{m.ID, m.App, at, m.Region, m.Address.String(), m.State, strings.Join(meta, ",")})
	}
	return t
}
