package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh/api"
)

func orgCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "org", Short: "Organisations, each with a network of its own"}
	create := &cobra.Command{
		Use: "create NAME", Short: "Make an org and its network", Args: cli.Args("NAME"),
		Example: "  weft org create acme",
		RunE: func(cmd *cobra.Command, args []string) error {
			return orgs(orgTable).create(cmd, args[0], api.CreateOrg{Name: args[0]})
		},
	}
	all := orgs(orgTable)
	cmd.AddCommand(create, all.listCommand(), orgs(orgDetail).showCommand(), limitCommand(), all.removeCommand())
	return cmd
}

func orgs(table func(...api.OrgInfo) cli.Table) resource[api.OrgInfo] {
	return resource[api.OrgInfo]{kind: "org", arg: "NAME", table: table, gone: `Cut an org off and remove all that it has: its machines lose their network, its
clients their tunnels, and its names are gone, within seconds, and every grant that
names it. There is no way back; the number of its network is not used again.`}
}

func orgTable(orgs ...api.OrgInfo) cli.Table {
	t := cli.Table{Header: []string{"NAME", "PREFIX", "NETWORK", "CREATED"}}
	for _, o := range orgs {
		t.Rows = append(t.Rows, orgRow(o))
	}
	return t
}

func orgRow(o api.OrgInfo) []string {
	created := cli.Time(o.Created)
	if o.Tombstone {
		created = "being removed"
	}
	return []string{o.Name, o.Prefix.String(), strconv.FormatUint(o.Network, 10), created}
}

// orgDetail is orgTable with what an org has.
func orgDetail(orgs ...api.OrgInfo) cli.Table {
	t := orgTable()
	t.Header = append(t.Header, "MACHINES", "CLIENTS", "TOKENS")
	for _, o := range orgs {
		t.Rows = append(t.Rows, append(orgRow(o), strconv.Itoa(o.Has.Machines), strconv.Itoa(o.Has.Clients), strconv.Itoa(o.Has.Tokens)))
	}
	return t
}

func limitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "limit NAME", Short: "Show or set what an org may have", Args: cli.Args("NAME"),
		Long: `Show what an org has and may have, or with flags set it first. What it has beyond a
lower limit stays; it gets nothing more.`,
		Example: `  weft org limit acme
  weft org limit acme --machines 20000 --metadata 64`,
		RunE: limitOrg,
	}
	f := cmd.Flags()
	f.Int("machines", 0, "how `MANY` machines; 0 is the default")
	f.Int("clients", 0, "how `MANY` clients; 0 is the default")
	f.Int("tokens", 0, "how `MANY` tokens for clients that can still be used; 0 is the default")
	f.Int("metadata", 0, "how `MANY` pairs of metadata on a machine; 0 is the default")
	f.Int("records", 0, "how `MANY` records of its own; 0 is the default")
	f.Int("grants", 0, "how `MANY` grants that name it; 0 is the default")
	return cmd
}

func limitOrg(cmd *cobra.Command, args []string) error {
	limits := orgs(limitTable)
	path, err := limits.path(cmd, args[0])
	if err != nil {
		return err
	}
	var change api.UpdateLimits
	changed := false
	for name, to := range map[string]**int{
		"machines": &change.Machines, "clients": &change.Clients, "tokens": &change.Tokens, "metadata": &change.Metadata,
		"records": &change.Records, "grants": &change.Grants,
	} {
		if !cmd.Flags().Changed(name) {
			continue
		}
		n, _ := cmd.Flags().GetInt(name)
		if n < 0 {
			return cli.Usagef("--%s %d: want 1 or more, or 0 for the default", name, n)
		}
		*to, changed = &n, true
	}
	method, body := "GET", any(nil)
	if changed {
		method, body = "PATCH", api.UpdateOrg{Limits: change}
	}
	org, err := ask[api.OrgInfo](cmd, method, path, body)
	if err != nil {
		return err
	}
	return limits.print(cmd, false, org)
}

func limitTable(orgs ...api.OrgInfo) cli.Table {
	t := cli.Table{Header: []string{"KIND", "HAS", "LIMIT"}}
	for _, o := range orgs {
		t.Rows = append(t.Rows,
			[]string{"machines", strconv.Itoa(o.Has.Machines), strconv.Itoa(o.Limits.Machines)},
			[]string{"clients", strconv.Itoa(o.Has.Clients), strconv.Itoa(o.Limits.Clients)},
			[]string{"tokens", strconv.Itoa(o.Has.Tokens), strconv.Itoa(o.Limits.Tokens)},
			[]string{"metadata", "", fmt.Sprintf("%d of a machine", o.Limits.Metadata)},
			[]string{"records", strconv.Itoa(o.Has.Records), strconv.Itoa(o.Limits.Records)},
			[]string{"grants", strconv.Itoa(o.Has.Grants), strconv.Itoa(o.Limits.Grants)})
	}
	return t
}
