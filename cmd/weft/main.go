// Command weft is for operators, for developers on laptops, and on a host to run
// a command as a machine. It only turns flags into requests and answers into
// tables; what happens is decided by the controller, the agent and the laptop's
// own agent (mesh/...).
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh/attach"
)

func main() {
	// A machine's first process is this program again.
	if code, ok := attach.Init(); ok {
		os.Exit(code)
	}
	os.Exit(cli.Run(root()))
}

// root is the whole tree of commands.
func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "weft",
		Short: "A private network for machines in many places, of many organisations",
		Long: `weft is a private network for people who run machines in many places for many
organisations. Every org has a network of its own; its machines find each other by
name (web.internal), nearest first; its developers join from their laptops.

Operators give orders to a controller; "weft context" keeps which one, and who you
are there. "weft up" joins a laptop; "weft run", on a host, runs a command as a
machine.`,
		Example: `  weft context add home --file operator.yaml
  weft org create acme
  weft token create --kind client --org acme > token
  weft up --controller https://203.0.113.1:7443 --token-file token
  weft dig web.internal`,
	}
	cli.AddOutput(cmd)
	cmd.PersistentFlags().String("context", "", "who you are, and where: the `NAME` of a context or the path of a credential file (default: the one in use)")
	cmd.AddGroup(
		&cobra.Group{ID: "operate", Title: "Operate a mesh:"},
		&cobra.Group{ID: "host", Title: "On a host:"},
		&cobra.Group{ID: "laptop", Title: "On a laptop or a host:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			cmd.AddCommand(c)
		}
	}
	add("operate", contextCommand(), orgCommand(), regionCommand(), tokenCommand(), hostCommand(),
		appCommand(), machineCommand(), recordCommand(), grantCommand(), clientCommand(), eventsCommand(), backupCommand())
	add("host", runCommand())
	add("laptop", upCommand(), downCommand(), statusCommand(), pingCommand(), digCommand())
	cmd.AddCommand(guardCommand())
	return cmd
}
