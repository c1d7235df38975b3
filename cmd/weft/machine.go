package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func machineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "machine", Short: "Workloads: what `weft run` started on a host",
		Long: `Workloads: what "weft run" started on a host. They come and go with their command.

A machine is in names while it is started, not cordoned, and passes its checks. The
verbs here change what names answer, and nothing of what runs; the names that begin
with all. have every machine.`,
	}
	addOrg(cmd)
	all := machines()
	cmd.AddCommand(all.listCommand(), all.showCommand(),
		wantCommand("cordon", "Take a machine out of names, whatever its state", api.UpdateMachine{Cordoned: new(true)}),
		wantCommand("uncordon", "Undo a cordon", api.UpdateMachine{Cordoned: new(false)}),
		wantCommand("drain", "Take a machine out of names: it ends what it has begun", api.UpdateMachine{State: new(mesh.StateDraining)}),
		wantCommand("stop", "Take a machine out of names: it is not to be used", api.UpdateMachine{State: new(mesh.StateStopped)}),
		wantCommand("start", "Put a machine back into names that was drained or stopped", api.UpdateMachine{State: new(mesh.StateStarted)}),
		all.removeCommand())
	return cmd
}

func machines() resource[api.MachineInfo] {
	return resource[api.MachineInfo]{kind: "machine", arg: "ID", table: machineTable, scope: ofOrg("machines"), gone: `Cut a machine off and forget it: its names and its network go within seconds. Its
command is not ended.`, left: func(cmd *cobra.Command, id string) {
		org, _ := orgOf(cmd)
		stillGranted(cmd, mesh.Party{Org: org, Machine: id})
	}}
}

// wantCommand sets what somebody wants of a machine.
func wantCommand(verb, short string, change api.UpdateMachine) *cobra.Command {
	return &cobra.Command{
		Use: verb + " ID", Short: short, Args: cli.Args("ID"), Example: "  weft machine " + verb + " --org acme db-1",
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := machines().path(cmd, args[0])
			if err != nil {
				return err
			}
			m, err := ask[api.MachineInfo](cmd, "PATCH", path, change)
			if err != nil {
				return err
			}
			return machines().print(cmd, false, m)
		},
	}
}

func machineTable(machines ...api.MachineInfo) cli.Table {
	t := cli.Table{Header: []string{"ID", "APP", "HOST", "REGION", "ADDRESS", "STATE", "HEALTH", "META"}}
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
		t.Rows = append(t.Rows, []string{m.ID, m.App, at, m.Region, m.Address.String(), standing(m), machineHealth(m), strings.Join(meta, ",")})
	}
	return t
}

// standing is a machine's state, and what else keeps it out of names.
func standing(m api.MachineInfo) string {
	state := m.State
	if m.Cordoned {
		state += ",cordoned"
	}
	if m.Unlisted {
		state += ",unlisted"
	}
	return state
}

// machineHealth is what a machine's checks said last, and since when; "": it has
// none.
func machineHealth(m api.MachineInfo) string {
	switch {
	case len(m.Checks) == 0:
		return ""
	case m.Health == nil:
		return "unknown"
	case m.Health.Passing:
		return "passing since " + cli.Time(m.Health.Since)
	}
	text := "failing since " + cli.Time(m.Health.Since)
	if m.Health.Note != "" {
		text += ": " + m.Health.Note
	}
	return text
}
