package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/backup"
)

func backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backup [--file FILE]", Short: "Take a backup of the mesh, while it runs", Args: cli.Args(),
		Long: `Take a backup of everything that the mesh's etcd holds, as of one moment, while the
mesh goes on. It is text, one object a line, and ends in a checksum: what was cut off
or changed is noticed. With a FILE that ends in .gz it is compressed.

The file holds hashes of credentials and the sealed key of the certificate authority:
keep it as you keep secrets. To be of use it needs the seal.key from a controller's
data directory, which is not in it.

"weft-controller restore" puts it back. Tokens do not come back, for they may have
been used since; and what was removed since does: hosts, clients, operators.`,
		Example: `  weft backup --file mesh.backup.gz
  weft backup | ssh elsewhere 'cat > mesh.backup'
  weft backup verify mesh.backup.gz`,
		RunE: takeBackup,
	}
	f := cmd.Flags()
	f.String("file", "", "write to this `FILE`, which must not exist; - is standard output (default: standard output, unless it is a terminal)")
	f.Bool("force", false, "replace FILE, and what an interrupted backup has left beside it")
	cmd.AddCommand(&cobra.Command{
		Use: "verify FILE", Short: "Check that a backup is whole and as it was taken", Args: cli.Args("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return verifyBackup(cmd, args[0]) },
	})
	return cmd
}

func takeBackup(cmd *cobra.Command, _ []string) error {
	file, _ := cmd.Flags().GetString("file")
	force, _ := cmd.Flags().GetBool("force")
	out, ok := cmd.OutOrStdout().(*os.File)
	if file == "" && ok && term.IsTerminal(int(out.Fd())) {
		return mesh.WithHint(cli.Usagef("backup: standard output is a terminal"), "weft backup --file mesh.backup.gz")
	}
	var to sink = &standard{cmd.OutOrStdout()}
	if file != "" && file != "-" {
		to = &kept{path: file, force: force}
	}
	if err := to.open(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	summary, err := download(cmd, to)
	if err = to.close(err); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	h := summary.Header
	cli.Notef(cmd, "mesh %s at revision %d.%d: %d keys (%s)", h.Prefix, h.Epoch, h.At, summary.Keys, kinds(summary))
	if path := cmd.Flag("file").Value.String(); path != "" && path != "-" {
		cli.Notef(cmd, "%s is whole; keep it where the controller is not, with a copy of the controller's seal.key", path)
		if cli.IsJSON(cmd) {
			return cli.PrintJSON(cmd, summary)
		}
	}
	return nil
}

// download copies a backup into to and checks it on the way.
func download(cmd *cobra.Command, to io.Writer) (backup.Summary, error) {
	cred, err := inUse(cmd)
	if err != nil {
		return backup.Summary{}, err
	}
	client, err := cred.client(nil)
	if err != nil {
		return backup.Summary{}, err
	}
	defer client.Close()
	body, err := client.Backup(cmd.Context())
	if err != nil {
		return backup.Summary{}, advise(cmd, cred, err)
	}
	defer body.Close()
	out := &counted{w: to}
	summary, err := backup.Verify(io.TeeReader(body, out))
	switch {
	case out.err != nil:
		return summary, out.err
	case err != nil && cmd.Context().Err() != nil:
		return summary, cmd.Context().Err()
	case err != nil:
		return summary, mesh.WithHint(err, "the connection broke, or the controller ended: its log says more; take the backup again")
	}
	return summary, nil
}

// counted keeps the error of writing apart from those of reading.
type counted struct {
	w   io.Writer
	err error
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	if err != nil {
		c.err = err
	}
	return n, err
}

// sink is where a backup goes. close is given what went wrong, and returns it.
type sink interface {
	io.Writer
	open() error
	close(error) error
}

type standard struct{ io.Writer }

func (s *standard) open() error { return nil }
func (s *standard) close(err error) error {
	if err != nil {
		return mesh.WithHint(fmt.Errorf("%w (what was written is not a backup)", err), "%s", mesh.HintOf(err))
	}
	return nil
}

// kept is a file that is there only when it is whole.
type kept struct {
	path  string
	force bool
	file  *os.File
	zip   *gzip.Writer // nil: not compressed
}

func (k *kept) part() string { return k.path + ".part" }

func (k *kept) free() error {
	if _, err := os.Lstat(k.path); !k.force && err == nil {
		return mesh.WithHint(fmt.Errorf("%s: %w", k.path, fs.ErrExist), "give another --file, or --force to replace it")
	}
	return nil
}

func (k *kept) open() error {
	if err := k.free(); err != nil {
		return err
	}
	if k.force {
		if err := os.Remove(k.part()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	var err error
	k.file, err = os.OpenFile(k.part(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return mesh.WithHint(err, "another backup to the same file is under way; if not, an earlier one was interrupted: give --force")
	}
	if err == nil && strings.HasSuffix(k.path, ".gz") {
		k.zip = gzip.NewWriter(k.file)
	}
	return err
}

func (k *kept) Write(p []byte) (int, error) {
	if k.zip != nil {
		return k.zip.Write(p)
	}
	return k.file.Write(p)
}

func (k *kept) close(err error) error {
	if err == nil && k.zip != nil {
		err = k.zip.Close()
	}
	if err == nil {
		err = k.file.Sync()
	}
	if closeErr := k.file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = k.free() // it took a while
	}
	if err == nil {
		err = os.Rename(k.part(), k.path)
	}
	if err != nil {
		os.Remove(k.part())
		return err
	}
	return syncDir(filepath.Dir(k.path))
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func verifyBackup(cmd *cobra.Command, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return cli.Missing(err, path)
	}
	defer f.Close()
	summary, err := backup.Verify(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	h := summary.Header
	var cas []string
	for _, ca := range h.CAs {
		cas = append(cas, ca.Pin)
	}
	return cli.Print(cmd, summary, cli.Table{Rows: [][]string{
		{"mesh", h.Prefix}, {"pin", strings.Join(cas, ",")}, {"taken", cli.Time(h.Taken)},
		{"revision", fmt.Sprintf("%d.%d", h.Epoch, h.At)}, {"keys", strconv.Itoa(summary.Keys)}, {"of", kinds(summary)},
		{"sha256", summary.SHA256},
	}})
}

// kinds counts what a reader asks for: how many of what.
func kinds(s backup.Summary) string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(s.Kinds)) {
		switch kind {
		case "orgs", "apps", "regions", "hosts", "machines", "clients", "operators":
			out = append(out, fmt.Sprintf("%d %s", s.Kinds[kind], kind))
		}
	}
	return strings.Join(out, ", ")
}
