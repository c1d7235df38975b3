package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/backup"
	"github.com/weftmesh/weft/mesh/controller"
	"github.com/weftmesh/weft/mesh/store"
)

// restoring are the flags of `restore`.
type restoring struct {
	file, dataDir, sealKey string
	unreadable             bool
	etcd                   etcdFlags
	log                    *cli.Log
}

func restoreCommand() *cobra.Command {
	var r restoring
	cmd := &cobra.Command{
		Use: "restore --file FILE", Short: "Put a backup back, where there is no mesh", Args: cli.Args(),
		Long: `Put a backup back: to a new data directory, with etcd inside, or to an etcd cluster
that holds no mesh. The backup is checked to its end before anything is changed. An
interrupted restore is begun again by the same command.

The backup is of the past, and nothing that was given since is given twice:

  * numbers (networks, hosts, addresses) go on from beyond a margin;
  * tokens do not come back: some may have been used since. Make new ones;
  * the mesh gets a new epoch, so that every host and client takes its whole view anew.

Machines that were started since are registered again, by their hosts, with the
addresses that they have. Hosts and clients that joined since are not known: they
join again. What was removed since is back: look through "weft host list", "weft
client list" and "weft operator list", and remove it again.

The key of the certificate authority is sealed in the backup: "weft-controller run"
needs the mesh's seal.key, in the data directory or by --seal-key-file.`,
		Example: `  weft-controller restore --file mesh.backup --data-dir /var/lib/weft-controller
  weft-controller restore --file mesh.backup.gz --etcd https://198.51.100.1:2379,https://198.51.100.2:2379 --etcd-ca ca.crt --etcd-cert controller.crt --etcd-key controller.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(cli.Required(cmd, "file"), r.etcd.check(cmd.Flags())); err != nil {
				return err
			}
			return r.run(cmd)
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&r.file, "file", "", "the `FILE` that \"weft backup\" wrote")
	f.StringVar(&r.dataDir, "data-dir", "/var/lib/weft-controller", "of the controller that will serve the mesh: `DIR`")
	f.StringVar(&r.sealKey, "seal-key-file", "", "the `FILE` with the key that opens the certificate authority (default: seal.key in the data directory)")
	f.BoolVar(&r.unreadable, "keep-unreadable", false, "put back, as they are, values that this version cannot read")
	r.etcd.addCluster(f)
	r.etcd.addInside(f)
	r.log = cli.AddLog(f)
	return cmd
}

func (r *restoring) run(cmd *cobra.Command) error {
	f, err := os.Open(r.file)
	if err != nil {
		return cli.Missing(err, r.file)
	}
	defer f.Close()
	b, missing, err := r.check(f)
	if err != nil {
		return fmt.Errorf("%s: %w", r.file, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out, err := r.restore(cmd, b, f)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "mesh %s of %s is restored: %d keys, epoch %d\n", out.Mesh.Plan, cli.Time(b.Header.Taken), out.Keys, out.Mesh.Epoch)
	r.next(cmd, out, missing)
	return nil
}

// check refuses what cannot be restored, before anything is changed. missing is the
// path of the seal key if it is not there.
func (r *restoring) check(f *os.File) (b *store.Restorable, missing string, err error) {
	b, err = store.CheckBackup(f)
	if errors.Is(err, backup.ErrDamaged) {
		err = mesh.WithHint(err, "nothing was changed; use another backup")
	}
	if err != nil {
		return nil, "", err
	}
	if n := len(b.Unreadable); n > 0 && !r.unreadable {
		return nil, "", mesh.WithHint(fmt.Errorf("this version cannot read %d value(s): %s", n, strings.Join(b.Unreadable[:min(n, 3)], ", ")),
			"use the version of weft-controller that last ran there; or put them back as they are with --keep-unreadable")
	}
	missing, err = controller.CheckRestore(r.dataDir, r.sealKey, b.CAs)
	return b, missing, err
}

func (r *restoring) restore(cmd *cobra.Command, b *store.Restorable, f *os.File) (out store.Restored, err error) {
	under, err := r.etcd.open(cmd.Context(), r.dataDir, r.log.Logger(cmd.ErrOrStderr()))
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, under.close()) }()
	s, err := store.New(under.store)
	if err != nil {
		return out, err
	}
	return s.Restore(cmd.Context(), b, f)
}

// next says what to do now.
func (r *restoring) next(cmd *cobra.Command, out store.Restored, missing string) {
	if out.Tokens > 0 {
		cli.Notef(cmd, "%d token(s) were left out: they may have been used since; make new ones with: weft token create", out.Tokens)
	}
	cli.Notef(cmd, "hosts, clients and operators that were removed since the backup are back; remove them again")
	if missing != "" {
		cli.Notef(cmd, "first, copy seal.key of this mesh to %s (mode 0600): without it no controller can serve the mesh", missing)
	}
	line := "weft-controller run --data-dir " + r.dataDir
	if r.sealKey != "" && filepath.Clean(r.sealKey) != filepath.Join(r.dataDir, "seal.key") {
		line += " --seal-key-file " + r.sealKey
	}
	if urls := strings.Join(r.etcd.cluster.Endpoints, ","); urls != "" {
		line += " --etcd " + urls
	}
	if root := cmp.Or(r.etcd.root, "/weft/"); root != "/weft/" {
		line += " --etcd-root " + root
	}
	cli.Notef(cmd, "next, with the other flags that the controller had:")
	cli.Notef(cmd, "  %s", line)
}
