package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func records() resource[mesh.Record] {
	return resource[mesh.Record]{kind: "record", arg: "NAME", table: recordTable, scope: ofOrg("records"), name: recordName}
}

// recordName checks a name; it may be given with .internal at its end.
func recordName(name string) error {
	if err := mesh.CheckRecordName(name); err != nil {
		return cli.WithCode(err, cli.CodeUsage)
	}
	return nil
}

// plainName is a name as it is typed, as a record's is kept.
func plainName(name string) string {
	return strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(name), "."), ".internal")
}

func recordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "record", Short: "An org's own names under internal",
		Long: `An org's own names under internal: addresses, texts, services, and aliases of names of
the mesh. Only the org's members are told of them. A name that is an app's, or under
one, is the app's.`,
	}
	addOrg(cmd)
	create := &cobra.Command{
		Use: "create NAME TYPE VALUE...", Short: "Make a record", Args: cli.Args("NAME", "TYPE", "VALUE..."),
		Long: `Make a record: all values of a type at NAME.internal. TYPE is AAAA (addresses), TXT
(texts), SRV ("PRIORITY WEIGHT PORT TARGET"), or alias: NAME then stands for another
name of the mesh, and is answered with what is there, never with a CNAME.`,
		Example: `  weft record create --org acme printer AAAA fd12:3456:789a:1::7
  weft record create --org acme _pg._tcp.store SRV "0 1 5432 db.internal"
  weft record create --org acme api alias web.internal --ttl 30`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := recordOf(cmd, args)
			if err != nil {
				return err
			}
			return records().create(cmd, r.Name, api.CreateRecord{Name: r.Name, Type: r.Type, TTL: r.TTL, Values: r.Values})
		},
	}
	set := &cobra.Command{
		Use: "set NAME TYPE VALUE...", Short: "Make a record, or replace its values", Args: cli.Args("NAME", "TYPE", "VALUE..."),
		Example: "  weft record set --org acme motd TXT 'closed today'",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := recordOf(cmd, args)
			if err != nil {
				return err
			}
			path, err := recordPath(cmd, r.Name, r.Type)
			if err != nil {
				return err
			}
			made, err := ask[mesh.Record](cmd, "PUT", path, api.SetRecord{TTL: r.TTL, Values: r.Values})
			if err != nil {
				return err
			}
			return records().print(cmd, false, made)
		},
	}
	for _, c := range []*cobra.Command{create, set} {
		c.Flags().Int("ttl", 0, "how many `SECONDS` answers may be kept, 1 to 3600; 0 is the default of 5")
	}
	cmd.AddCommand(create, set, records().listCommand(), showRecordCommand(), removeRecordCommand())
	return cmd
}

// recordOf is the record that the arguments describe.
func recordOf(cmd *cobra.Command, args []string) (mesh.Record, error) {
	ttl, _ := cmd.Flags().GetInt("ttl")
	r, err := mesh.Record{Name: plainName(args[0]), Type: args[1], TTL: ttl, Values: args[2:]}.Canonical()
	if err != nil {
		return r, cli.WithCode(err, cli.CodeUsage)
	}
	return r, nil
}

// recordPath is where a name's records of a type are, or with "" all of them.
func recordPath(cmd *cobra.Command, name, kind string) (string, error) {
	at, err := records().path(cmd, name)
	if err != nil || kind == "" {
		return at, err
	}
	if kind, err = mesh.RecordType(kind); err != nil {
		return "", cli.WithCode(err, cli.CodeUsage)
	}
	return at + "/" + kind, nil
}

func showRecordCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a name's records", Args: cli.Args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := recordPath(cmd, plainName(args[0]), "")
			if err != nil {
				return err
			}
			all, err := ask[[]mesh.Record](cmd, "GET", path, nil)
			if err != nil {
				return err
			}
			return records().print(cmd, true, all...)
		},
	}
}

func removeRecordCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME [TYPE]", Aliases: []string{"rm"}, Short: "Remove a name's record of a type, or all of its records",
		Args: cli.Args("NAME", "[TYPE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind := strings.Join(args[1:], "")
			path, err := recordPath(cmd, plainName(args[0]), kind)
			if err != nil {
				return err
			}
			if _, err := ask[struct{}](cmd, "DELETE", path, nil); err != nil {
				return err
			}
			cli.Notef(cmd, "record %s removed", strings.Join(args, " "))
			return nil
		},
	}
}

func recordTable(records ...mesh.Record) cli.Table {
	t := cli.Table{Header: []string{"NAME", "ORG", "TYPE", "TTL", "VALUE"}}
	for _, r := range records {
		for _, v := range r.Values {
			t.Rows = append(t.Rows, []string{r.Name, r.Org, r.Type, seconds(r.TTL), v})
		}
	}
	return t
}
