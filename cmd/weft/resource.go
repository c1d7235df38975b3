package main

import (
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// resource is a kind of thing that the controller keeps: where it is asked for and
// how it is shown. T is what the controller answers.
type resource[T any] struct {
	kind  string // "org"
	arg   string // what names one, NAME or ID
	table func(...T) cli.Table
	// scope is the path of the list; nil: /v1/<kind>s.
	scope func(*cobra.Command) ([]string, error)
	// name checks an argument; nil: as a label, see mesh.CheckName.
	name func(string) error
	gone string // what removing one means, for help
	// left, if not nil, tells what of one that was removed is still there.
	left func(cmd *cobra.Command, name string)
}

// print writes one, or with list all of them.
func (r resource[T]) print(cmd *cobra.Command, list bool, all ...T) error {
	if !cli.IsJSON(cmd) {
		return r.table(all...).Write(cmd.OutOrStdout())
	}
	if !list {
		return cli.PrintJSON(cmd, all[0])
	}
	if all == nil {
		all = []T{}
	}
	return cli.PrintJSON(cmd, all)
}

func (r resource[T]) path(cmd *cobra.Command, name ...string) (string, error) {
	for _, n := range name {
		check := r.name
		if check == nil {
			check = func(s string) error { return named(r.kind, s) }
		}
		if err := check(n); err != nil {
			return "", err
		}
	}
	parts := []string{r.kind + "s"}
	if r.scope != nil {
		var err error
		if parts, err = r.scope(cmd); err != nil {
			return "", err
		}
	}
	return path(slices.Concat(parts, name)...), nil
}

// create sends in as a POST to the list and prints the answer.
func (r resource[T]) create(cmd *cobra.Command, name string, in any) error {
	if _, err := r.path(cmd, name); err != nil {
		return err
	}
	path, err := r.path(cmd)
	if err != nil {
		return err
	}
	made, err := ask[T](cmd, "POST", path, in)
	if err != nil {
		return err
	}
	return r.print(cmd, false, made)
}

func (r resource[T]) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the " + r.kind + "s that you may see", Args: cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := r.path(cmd)
			if err != nil {
				return err
			}
			all, err := ask[[]T](cmd, "GET", path, nil)
			if err != nil {
				return err
			}
			return r.print(cmd, true, all...)
		},
	}
}

func (r resource[T]) showCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show " + r.arg, Short: "Show one " + r.kind, Args: cli.Args(r.arg),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := r.path(cmd, args[0])
			if err != nil {
				return err
			}
			one, err := ask[T](cmd, "GET", path, nil)
			if err != nil {
				return r.lost(cmd, err)
			}
			return r.print(cmd, false, one)
		},
	}
}

func (r resource[T]) removeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove " + r.arg, Aliases: []string{"rm"}, Short: "Remove one " + r.kind, Long: r.gone, Args: cli.Args(r.arg),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := r.path(cmd, args[0])
			if err != nil {
				return err
			}
			if _, err := ask[struct{}](cmd, "DELETE", path, nil); err != nil {
				return r.lost(cmd, err)
			}
			cli.Notef(cmd, "%s %s removed", r.kind, args[0])
			if r.left != nil {
				r.left(cmd, args[0])
			}
			return nil
		},
	}
}

// lost says where to look for what was not found.
func (r resource[T]) lost(cmd *cobra.Command, err error) error {
	if !errors.Is(err, api.ErrNotFound) || mesh.HintOf(err) != "" {
		return err
	}
	of := ""
	if r.scope != nil {
		if org, orgErr := orgOf(cmd); orgErr == nil {
			of = " --org " + org
		}
	}
	return mesh.WithHint(err, "what there is: weft %s list%s", r.kind, of)
}

// ofOrg is the scope of what belongs to an org.
func ofOrg(list string) func(*cobra.Command) ([]string, error) {
	return func(cmd *cobra.Command) ([]string, error) {
		org, err := orgOf(cmd)
		return []string{"orgs", org, list}, err
	}
}
