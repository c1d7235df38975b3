package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/etcd"
	"github.com/weftmesh/weft/mesh/store"
)

func migrateCommand() *cobra.Command {
	var e etcdFlags
	var dataDir string
	var log *cli.Log
	cmd := &cobra.Command{
		Use: "migrate", Short: "Move the mesh from the etcd inside to a cluster", Args: cli.Args(),
		Long: `Move the mesh of a controller that has etcd inside, and that has been stopped, to an
etcd cluster, where --etcd-root must be empty. Everything is copied and compared;
then the data directory is marked, so that the mesh cannot be run there with etcd
inside any more. The seal key stays in it, for controllers on the cluster.

Hosts and machines go on meanwhile. An interrupted migration is repeated by the same
command.`,
		Example: `  weft-controller migrate --data-dir /var/lib/weft-controller --etcd https://198.51.100.1:2379,https://198.51.100.2:2379,https://198.51.100.3:2379 --etcd-ca ca.crt --etcd-cert controller.crt --etcd-key controller.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.Required(cmd, "etcd"); err != nil {
				return err
			}
			return migrate(cmd, e, dataDir, log)
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&dataDir, "data-dir", "/var/lib/weft-controller", "of the controller whose mesh is moved: `DIR`")
	e.addCluster(f)
	e.quota = etcd.DefaultQuota
	log = cli.AddLog(f)
	return cmd
}

func migrate(cmd *cobra.Command, e etcdFlags, dataDir string, settings *cli.Log) error {
	ctx, log := cmd.Context(), settings.Logger(cmd.ErrOrStderr())
	dir := insideDir(dataDir)
	if _, err := os.Stat(dir); err != nil {
		return mesh.WithHint(fmt.Errorf("the etcd inside: %w", err), "give the --data-dir of the controller whose mesh is to be moved")
	}
	cluster, err := e.openCluster(ctx, log)
	if err != nil {
		return err
	}
	defer cluster.Close()
	inside, err := e.openInside(ctx, dataDir, log)
	if errors.Is(err, etcd.ErrInUse) {
		err = mesh.WithHint(err, "stop the controller that runs there first")
	}
	if err != nil {
		return err
	}
	from, err := store.New(inside.store)
	var moved store.Migrated
	if err == nil {
		moved, err = from.Migrate(ctx, cluster.Client())
	}
	if err = errors.Join(err, inside.close()); err != nil {
		return err
	}
	endpoints := strings.Join(e.cluster.Endpoints, ",")
	if err := etcd.Retire(dir, endpoints); err != nil {
		return err
	}
	if moved.Already {
		fmt.Fprintf(cmd.OutOrStdout(), "mesh %s had been moved to %s already\n", moved.Mesh.Plan, endpoints)
	} else {
		fmt.Fprintf(cmd.OutOrStdout(), "mesh %s moved to %s: %d keys, epoch %d\n", moved.Mesh.Plan, endpoints, moved.Keys, moved.Mesh.Epoch)
	}
	cli.Notef(cmd, "next, with the other flags that the controller had:")
	cli.Notef(cmd, "  weft-controller run --data-dir %s --etcd %s", dataDir, endpoints)
	return nil
}
