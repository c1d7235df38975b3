package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

func tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "What hosts and laptops join with"}
	addOrg(cmd)
	tokens := resource[api.Token]{kind: "token", arg: "ID", table: tokenTable, name: tokenID,
		gone: "Make a token worthless. What has joined with it stays."}
	create := &cobra.Command{
		Use: "create --kind host|client", Short: "Make a token; it is shown only now", Args: cli.Args(),
		Long: `Make a token. It goes to stdout and nowhere else: the controller keeps only a hash.
Whoever has it can join until it is spent or expires; it also names the mesh, so
that the one who joins knows the right controller by it.`,
		Example: `  weft token create --kind host --orgs all --region fra > host.token
  weft token create --kind host --orgs acme,globex --region ams --uses 3 --ttl 24h
  weft token create --kind client --org acme > laptop.token
  weft token create --kind client --org acme --uses 100 --ttl 720h --client-expires 2h > ci.token`,
		RunE: createToken,
	}
	kind := cli.NewChoice("host", "client")
	f := create.Flags()
	f.Var(kind, "kind", "what joins with it")
	f.StringSlice("orgs", nil, "for a host: the `ORGS` whose machines it may carry, or all")
	f.String("region", "", "for a host: the `REGION` that it is in (default: the host says)")
	f.Int("uses", 1, "how `MANY` can join with it")
	f.String("ttl", "1h", "how `LONG` it is valid, for example 30m or 24h")
	f.String("client-expires", "", "for a client: how `LONG` what joins with it lasts, for example 1h (default: for ever)")
	cmd.AddCommand(create, tokens.listCommand(), tokens.showCommand(), tokens.removeCommand())
	return cmd
}

func createToken(cmd *cobra.Command, _ []string) error {
	in, err := tokenRequest(cmd)
	if err != nil {
		return err
	}
	token, err := ask[api.CreatedToken](cmd, "POST", path("tokens"), in)
	if err != nil {
		return err
	}
	if cli.IsJSON(cmd) {
		return cli.PrintJSON(cmd, token)
	}
	fmt.Fprintln(cmd.OutOrStdout(), token.Token)
	cli.Notef(cmd, "token %s is good for %d use(s) until %s; it is not shown again", token.ID, in.Uses, cli.Time(token.Expires))
	return nil
}

func tokenRequest(cmd *cobra.Command) (in api.CreateToken, err error) {
	f := cmd.Flags()
	if !f.Changed("kind") {
		return in, cli.Usagef("token create: --kind is missing: host or client")
	}
	in.Kind = f.Lookup("kind").Value.String()
	in.Orgs, _ = f.GetStringSlice("orgs")
	in.Region, _ = f.GetString("region")
	in.Uses, _ = f.GetInt("uses")
	in.TTL, _ = f.GetString("ttl")
	in.ClientTTL, _ = f.GetString("client-expires")
	if in.Uses < 1 {
		return in, cli.Usagef("--uses %d: want at least 1", in.Uses)
	}
	if err := checkDuration("ttl", in.TTL); err != nil {
		return in, err
	}
	if in.ClientTTL != "" {
		if err := checkDuration("client-expires", in.ClientTTL); err != nil {
			return in, err
		}
	}
	if in.Kind == mesh.KindClient {
		if len(in.Orgs) > 0 || in.Region != "" {
			return in, cli.Usagef("--orgs and --region are for hosts: a client has one org, --org")
		}
		in.Org, err = orgOf(cmd)
		return in, err
	}
	if in.ClientTTL != "" {
		return in, cli.Usagef("--client-expires is for clients: a host stays until it is removed")
	}
	if len(in.Orgs) == 0 {
		return in, mesh.WithHint(cli.Usagef("token create: --orgs is missing: whose machines may the host carry?"), "--orgs all, or a list such as --orgs acme,globex")
	}
	for _, org := range in.Orgs {
		if org == mesh.AllOrgs {
			continue
		}
		if err := named("org", org); err != nil {
			return in, err
		}
	}
	if in.Region != "" {
		err = named("region", in.Region)
	}
	return in, err
}

// tokenID accepts what `token list` shows, and a whole token of which it takes
// nothing: a secret in the path would end up in logs.
func tokenID(id string) error {
	if strings.Contains(id, ".") || id == "" {
		return cli.Usagef("token ID %q: want the ID alone, as \"weft token list\" shows it", "[redacted]")
	}
	return nil
}

func tokenTable(tokens ...api.Token) cli.Table {
	t := cli.Table{Header: []string{"ID", "KIND", "ORGS", "REGION", "USES LEFT", "EXPIRES"}}
	for _, k := range tokens {
		orgs := k.Org
		if orgs == "" {
			orgs = strings.Join(k.Orgs, ",")
		}
		t.Rows = append(t.Rows, []string{k.ID, k.Kind, orgs, k.Region, strconv.Itoa(k.Uses), cli.Time(k.Expires)})
	}
	return t
}

// checkDuration tells a duration that the controller would refuse.
func checkDuration(flag, s string) error {
	if d, err := time.ParseDuration(s); err != nil || d <= 0 {
		return cli.Usagef("--%s %q: want a duration, for example 30m or 24h", flag, s)
	}
	return nil
}
