package main

import (
	"cmp"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func appCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "app", Short: "Named groups of machines: <app>.internal"}
	addOrg(cmd)
	create := &cobra.Command{
		Use: "create NAME", Short: "Make an app before its first machine does", Args: cli.Args("NAME"),
		Example: "  weft app create --org acme web",
		RunE: func(cmd *cobra.Command, args []string) error {
			in := api.CreateApp{Name: args[0]}
			in.Answer, _ = cmd.Flags().GetString("answer")
			in.TTL, _ = cmd.Flags().GetInt("ttl")
			if err := checkApp(mesh.App{Name: args[0], Answer: in.Answer, TTL: in.TTL}); err != nil {
				return err
			}
			return apps().create(cmd, args[0], in)
		},
	}
	addAppSettings(create)
	cmd.AddCommand(create, setAppCommand(), apps().listCommand(), apps().showCommand(), apps().removeCommand())
	return cmd
}

func apps() resource[mesh.App] {
	return resource[mesh.App]{kind: "app", arg: "NAME", table: appTable, scope: ofOrg("apps"),
		gone: "Remove an app. No machine may be in it any more.",
		left: func(cmd *cobra.Command, name string) {
			org, _ := orgOf(cmd)
			stillGranted(cmd, mesh.Party{Org: org, App: name})
		}}
}

func addAppSettings(cmd *cobra.Command) {
	f := cmd.Flags()
	f.String("answer", "", "what its bare name answers: near (the default), all, or `HOW` many of the nearest")
	f.Int("ttl", 0, "how many `SECONDS` answers may be kept, 1 to 3600; 0 is the default of 5")
}

func setAppCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Say what an app's name answers", Args: cli.Args("NAME"),
		Long: `Say what an app's name answers, and for how long. What is not given stays.

<app>.internal answers the machines that are about as near as the nearest one (near),
all of them (all), or that many of the nearest (a number). A machine of the app itself
is always given all, and the longer names (global., <region>., top<N>.nearest.of.) mean
what they say.`,
		Example: `  weft app set --org acme web --answer 3
  weft app set --org acme web --answer near --ttl 30`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var change api.UpdateApp
			if answer, _ := cmd.Flags().GetString("answer"); cmd.Flags().Changed("answer") {
				change.Answer = new(cmp.Or(answer, mesh.AnswerNear))
			}
			if ttl, _ := cmd.Flags().GetInt("ttl"); cmd.Flags().Changed("ttl") {
				change.TTL = &ttl
			}
			if change == (api.UpdateApp{}) {
				return cli.Usagef("nothing to set: give --answer, --ttl or both")
			}
			path, err := apps().path(cmd, args[0])
			if err != nil {
				return err
			}
			if err := checkApp(mesh.App{Name: args[0], Answer: *cmp.Or(change.Answer, new("")), TTL: *cmp.Or(change.TTL, new(0))}); err != nil {
				return err
			}
			app, err := ask[mesh.App](cmd, "PATCH", path, change)
			if err != nil {
				return err
			}
			return apps().print(cmd, false, app)
		},
	}
	addAppSettings(cmd)
	return cmd
}

func checkApp(app mesh.App) error {
	if err := app.Validate(); err != nil {
		return cli.WithCode(err, cli.CodeUsage)
	}
	return nil
}

func appTable(apps ...mesh.App) cli.Table {
	t := cli.Table{Header: []string{"NAME", "ORG", "ANSWER", "TTL"}}
	for _, a := range apps {
		t.Rows = append(t.Rows, []string{a.Name, a.Org, cmp.Or(a.Answer, mesh.AnswerNear), seconds(a.TTL)})
	}
	return t
}

// seconds shows a TTL.
func seconds(ttl int) string { return strconv.Itoa(cmp.Or(ttl, mesh.DefaultTTL)) + " s" }
