package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

func contextCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "context", Short: "Which mesh, and who you are there",
		Long: `A context is a credential with a name: the controllers of a mesh, how to know them,
and who you are there. It is kept in WEFT_CONFIG_DIR, else $XDG_CONFIG_HOME/weft, else
~/.config/weft, readable by you alone. --context or WEFT_CONTEXT choose one for a
single command, also by the path of a credential file.`,
		Example: `  weft context add home --file operator.yaml
  weft context use home
  weft context create ann --role org-admin --org acme --file ann.yaml`,
	}
	cmd.AddCommand(contextAdd(), contextCreate(), contextList(), contextUse(), contextShow(), contextRemove(), contextOperators(), contextRevoke())
	return cmd
}

func contextAdd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add NAME --file FILE", Short: "Keep a credential file under a name", Args: cli.Args("NAME"),
		Long: `Keep a credential file under a name. If a controller answers, all of the mesh's are
noted, and asked in turn when one does not; the list is kept up to date.`,
		Example: `  weft context add home --file operator.yaml
  weft context add home --file operator.yaml --controller https://203.0.113.1:7443,https://203.0.113.2:7443`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(named("context", args[0]), cli.Required(cmd, "file")); err != nil {
				return err
			}
			file, _ := cmd.Flags().GetString("file")
			cred, err := readCredential(cmd, file)
			if err != nil {
				return cli.Missing(err, file)
			}
			if servers, _ := cmd.Flags().GetStringSlice("controller"); len(servers) > 0 {
				cred.Controllers = servers
			}
			if err := checkServers(cred.Controllers); err != nil {
				return err
			}
			if client, err := cred.client(nil); err == nil {
				if list, ok := askControllers(cmd.Context(), client, cred.Controllers); ok {
					cred.Controllers = list
				}
				client.Close()
			}
			return keep(cmd, args[0], cred)
		},
	}
	cmd.Flags().String("file", "", "the credential `FILE`, for example operator.yaml of the controller")
	cmd.Flags().StringSlice("controller", nil, "where the controllers are reached from here, if not as the file says: `URLS`")
	return cmd
}

// keep writes a credential under a name, and uses it if it is the first.
func keep(cmd *cobra.Command, name string, cred credential) error {
	dir, err := contextsDir()
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(cred)
	if err != nil {
		return fmt.Errorf("context %s: %w", name, err)
	}
	err = writeSecret(dir.file(name), text)
	if errors.Is(err, fs.ErrExist) {
		return mesh.WithHint(fmt.Errorf("context %q: it exists already", name), "choose another name, or first: weft context remove %s", name)
	}
	if err != nil {
		return fmt.Errorf("context %s: %w", name, err)
	}
	if dir.current() != "" {
		cli.Notef(cmd, "context %s kept in %s; to use it: weft context use %s", name, dir.file(name), name)
		return nil
	}
	cli.Notef(cmd, "context %s kept in %s; it is in use", name, dir.file(name))
	return dir.use(name)
}

func contextCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME --role ROLE", Short: "Give somebody a credential of their own", Args: cli.Args("NAME"),
		Long: `Make an operator at the controller, and a credential for it: kept here as a context
of that name, or with --file written to a file, to hand to somebody else. The secret
is nowhere else.`,
		Example: `  weft context create ann --role org-admin --org acme --file ann.yaml
  weft context create backup --role operator`,
		RunE: createContext,
	}
	cmd.Flags().Var(cli.NewChoice(mesh.RoleOrgMember, mesh.RoleOrgAdmin, mesh.RoleOperator), "role", "what it may do: read one org and have clients; all of one org; all")
	cmd.Flags().String("org", "", "the `ORG` of an org role")
	cmd.Flags().String("file", "", "write the credential to this `FILE` instead of keeping it here")
	return cmd
}

func createContext(cmd *cobra.Command, args []string) error {
	if err := named("context", args[0]); err != nil {
		return err
	}
	in := api.CreateOperator{ID: args[0], Role: cmd.Flag("role").Value.String(), Org: cmd.Flag("org").Value.String()}
	if in.Role == mesh.RoleOperator && in.Org != "" {
		return cli.Usagef("--org %s: the role operator is for the whole mesh", in.Org)
	}
	if in.Role != mesh.RoleOperator {
		var err error
		if in.Org, err = orgOf(cmd); err != nil {
			return err
		}
	}
	me, err := inUse(cmd)
	if err != nil {
		return err
	}
	file := cmd.Flag("file").Value.String()
	if err := free(file, args[0]); err != nil {
		return err
	}
	made, err := ask[api.CreatedOperator](cmd, "POST", path("operators"), in)
	if err != nil {
		return err
	}
	who := enroll.Credential{ID: made.ID, Secret: enroll.NewSecret(made.Secret)}
	cred := credential{
		OperatorFile: enroll.OperatorFile{Controllers: me.Controllers, Pin: me.Pin, Credential: who.Text()},
		Role:         in.Role, Org: in.Org,
	}
	if file == "" {
		err = keep(cmd, args[0], cred)
	} else if text, e := yaml.Marshal(cred); e != nil {
		err = e
	} else if err = writeSecret(file, text); err == nil {
		cli.Notef(cmd, "credential of %s written to %s; it is a secret", made.ID, file)
	}
	if err == nil {
		return nil
	}
	// A credential that nobody holds is worse than none.
	_, undo := ask[struct{}](cmd, "DELETE", path("operators", made.ID), nil)
	return errors.Join(err, undo)
}

// free reports whether a credential can be written, before one is made.
func free(file, name string) error {
	if file == "" {
		dir, err := contextsDir()
		if err != nil {
			return err
		}
		file = dir.file(name)
	}
	if _, err := os.Lstat(file); err == nil {
		return mesh.WithHint(fmt.Errorf("%s: it exists already", file), "choose another name, or remove it first")
	}
	return nil
}

// contextInfo is a context as listed: everything but the secret.
type contextInfo struct {
	Name        string   `json:"name"`
	InUse       bool     `json:"in_use"`
	ID          string   `json:"id"`
	Role        string   `json:"role"`
	Org         string   `json:"org,omitempty"`
	Controllers []string `json:"controllers"`
	Pin         string   `json:"pin"`
	File        string   `json:"file"`
}

func infoOf(name string, inUse bool, c credential) contextInfo {
	return contextInfo{name, inUse, c.who.ID, cmp.Or(c.Role, mesh.RoleOperator), c.Org, c.Controllers, c.Pin, c.path}
}

func contextTable(list ...contextInfo) cli.Table {
	t := cli.Table{Header: []string{"NAME", "IN USE", "YOU ARE", "ROLE", "ORG", "CONTROLLERS"}}
	for _, c := range list {
		inUse := ""
		if c.InUse {
			inUse = "*"
		}
		t.Rows = append(t.Rows, []string{c.Name, inUse, c.ID, c.Role, c.Org, strings.Join(c.Controllers, ",")})
	}
	return t
}

func contextList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the contexts kept here", Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := contextsDir()
			if err != nil {
				return err
			}
			names, err := dir.names()
			if err != nil {
				return err
			}
			list := []contextInfo{}
			for _, name := range names {
				cred, err := dir.read(cmd, name)
				if err != nil {
					return err
				}
				list = append(list, infoOf(name, name == dir.current(), cred))
			}
			return cli.Print(cmd, list, contextTable(list...))
		},
	}
}

func contextUse() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Use a context from now on", Args: cli.Args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := contextsDir()
			if err != nil {
				return err
			}
			if _, err := dir.read(cmd, args[0]); err != nil {
				return err
			}
			return dir.use(args[0])
		},
	}
}

func contextShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [NAME]", Short: "Show a context, without its secret", Args: cli.Args("[NAME]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := contextsDir()
			if err != nil {
				return err
			}
			var cred credential
			name := strings.Join(args, "")
			if name != "" {
				cred, err = dir.read(cmd, name)
			} else {
				cred, err = inUse(cmd)
				name = nameOf(cred.path)
			}
			if err != nil {
				return err
			}
			info := infoOf(name, name == dir.current(), cred)
			return cli.Print(cmd, info, contextTable(info))
		},
	}
}

func nameOf(path string) string {
	base := path[strings.LastIndexByte(path, '/')+1:]
	return strings.TrimSuffix(base, ".yaml")
}

func contextRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Forget a context", Args: cli.Args("NAME"),
		Long: "Forget a context: its file is removed here. Copies of it stay good; see \"weft context revoke\".",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := contextsDir()
			if err != nil {
				return err
			}
			if err := named("context", args[0]); err != nil {
				return err
			}
			err = os.Remove(dir.file(args[0]))
			if errors.Is(err, fs.ErrNotExist) {
				return dir.unknown(args[0])
			}
			if err != nil {
				return fmt.Errorf("context %s: %w", args[0], err)
			}
			cli.Notef(cmd, "context %s removed", args[0])
			if dir.current() == args[0] {
				return dir.forget()
			}
			return nil
		},
	}
	return cmd
}

// operators are the credentials as the controller knows them.
func operators() resource[api.Operator] {
	return resource[api.Operator]{kind: "operator", arg: "ID", table: func(list ...api.Operator) cli.Table {
		t := cli.Table{Header: []string{"ID", "ROLE", "ORG"}}
		for _, o := range list {
			t.Rows = append(t.Rows, []string{o.ID, o.Role, o.Org})
		}
		return t
	}}
}

func contextOperators() *cobra.Command {
	cmd := operators().listCommand()
	cmd.Use, cmd.Aliases, cmd.Short = "operators", nil, "List who has a credential, as the controller knows them"
	return cmd
}

func contextRevoke() *cobra.Command {
	cmd := operators().removeCommand()
	cmd.Use, cmd.Aliases, cmd.Short = "revoke ID", nil, "Make an operator's credential worthless, wherever its file is"
	return cmd
}

// forget leaves no context in use.
func (c contexts) forget() error {
	err := os.Remove(c.dir + "/current")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
