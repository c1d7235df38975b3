package main

import (
	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
)

func eventsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "events", Short: "Who did what, newest last", Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			events, err := ask[[]mesh.Event](cmd, "GET", path("events"), nil)
			if err != nil {
				return err
			}
			t := cli.Table{Header: []string{"TIME", "ACTOR", "ACTION", "TARGET", "NOTE"}}
			for _, e := range events {
				t.Rows = append(t.Rows, []string{cli.Time(e.Time), e.Actor, e.Action, e.Target, e.Note})
			}
			return cli.Print(cmd, events, t)
		},
	}
	return cmd
}
