// Command weft-controller serves a mesh: etcd, inside the process or a cluster, the
// store on it, and the HTTP API on that, started in this order and stopped in
// reverse. It only
// turns flags into configurations; what is done with them is mesh/etcd's,
// mesh/store's and mesh/controller's.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/controller"
	"github.com/weftmesh/weft/mesh/store"
)

func main() { os.Exit(cli.Run(root())) }

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "weft-controller", Short: "Serves a weft mesh"}
	cmd.AddCommand(runCommand(), migrateCommand(), restoreCommand())
	return cmd
}

// settings are the flags of `run`.
type settings struct {
	controller.Config
	prefix string
	etcd   etcdFlags
	log    *cli.Log
}

func runCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use: "run", Short: "Serve until told to end", Args: cli.Args(),
		Long: `Serve a mesh until SIGTERM or SIGINT. The first start with an empty data directory
makes the mesh, and writes there the credential of its operator (operator.yaml) and
the key that opens its certificate authority (seal.key): keep a copy of both.

etcd runs inside, unless --etcd names the members of a cluster. Then any number of
controllers can serve the mesh, each with a data directory of its own; one that
comes later needs the seal.key of the first.

Every flag is also a variable, --data-dir being WEFT_DATA_DIR, and a key in the file
that --config names, data-dir.`,
		Example: `  weft-controller run --advertise https://203.0.113.1:7443
  weft-controller run --advertise https://203.0.113.1:7443 --etcd https://198.51.100.1:2379,https://198.51.100.2:2379,https://198.51.100.3:2379 --etcd-ca ca.crt --etcd-cert controller.crt --etcd-key controller.key
  weft-controller run --config /etc/weft/controller.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(s.complete(), s.etcd.check(cmd.Flags())); err != nil {
				return err
			}
			s.Ready = firstSteps(cmd, s.DataDir)
			s.Log = s.log.Logger(cmd.ErrOrStderr())
			return run(cmd.Context(), s)
		},
	}
	f := cmd.PersistentFlags()
	f.StringVar(&s.DataDir, "data-dir", "/var/lib/weft-controller", "where everything is kept: `DIR`")
	f.StringVar(&s.Listen, "listen", "[::]:7443", "serve the API on this `ADDRESS`")
	f.StringSliceVar(&s.Advertise, "advertise", nil, "the `URLS` or addresses at which nodes reach it (default: all addresses of this machine)")
	f.StringVar(&s.prefix, "prefix", "", "the `PREFIX` of a new mesh, in fd00::/8, /16 to /48 (default: a /48 is drawn)")
	f.DurationVar(&s.CertLifetime, "cert-lifetime", 24*time.Hour, "how `LONG` a node's certificate is valid; it is renewed at two thirds")
	f.StringVar(&s.SealKeyFile, "seal-key-file", "", "the `FILE` with the key that opens the certificate authority (default: seal.key in the data directory)")
	f.StringVar(&s.Name, "name", "", "of this controller among those of its mesh: `NAME` (default: made of the first advertised address)")
	s.etcd.addCluster(f)
	s.etcd.addInside(f)
	f.StringVar(&s.MetricsListen, "metrics", "127.0.0.1:9550", "serve /metrics, /healthz and /readyz on this `ADDRESS`; empty: do not")
	s.log = cli.AddLog(f)
	return cmd
}

// complete parses and checks what can be checked before anything is made.
func (s *settings) complete() error {
	if s.prefix != "" {
		prefix, err := netip.ParsePrefix(s.prefix)
		if err == nil {
			_, err = ipam.NewPlan(prefix)
		} else {
			err = fmt.Errorf("mesh prefix %q: want an IPv6 prefix", s.prefix)
		}
		if err != nil {
			return mesh.WithHint(cli.WithCode(err, cli.CodeUsage), "leave --prefix out and one is drawn, or give one like fd12:3456:789a::/48")
		}
		s.Prefix = prefix
	}
	if s.CertLifetime <= 0 {
		return cli.Usagef("--cert-lifetime %s: want more than 0", s.CertLifetime)
	}
	for i, a := range s.Advertise {
		url, err := advertised(a)
		if err != nil {
			return err
		}
		s.Advertise[i] = url
	}
	return errors.Join(free("listen", s.Listen), free("metrics", s.MetricsListen))
}

// advertised makes a URL of an address, and refuses what nodes could not use.
func advertised(s string) (string, error) {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	if u, err := url.Parse(s); err != nil || u.Scheme != "https" || u.Port() == "" || u.Path != "" {
		return "", mesh.WithHint(cli.Usagef("--advertise %q: want https://HOST:PORT", s), "for example --advertise https://203.0.113.1:7443")
	}
	return s, nil
}

// free reports whether one can listen on an address: a controller that cannot must
// not make a mesh.
func free(flag, addr string) error {
	if addr == "" {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return mesh.WithHint(fmt.Errorf("--%s: %w", flag, err), "another program has the port (a second controller?); give another --%s", flag)
	case errors.Is(err, fs.ErrPermission):
		return mesh.WithHint(fmt.Errorf("--%s: %w", flag, err), "ports below 1024 are root's; give another --%s", flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return mesh.WithHint(fmt.Errorf("--%s: %w", flag, err), "this machine does not have the address; see: ip address")
	case err != nil:
		return cli.Usagef("--%s %q: want ADDRESS:PORT: %w", flag, addr, err)
	}
	return l.Close()
}

// run opens etcd, the store and the controller, and stops them in reverse.
func run(ctx context.Context, s settings) error {
	under, err := s.etcd.open(ctx, s.DataDir, s.Log)
	if err != nil {
		return wanted(ctx, err)
	}
	ctx, stop := context.WithCancelCause(ctx)
	// Without etcd there is nothing to serve: whoever restarts us gets both anew.
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-under.done:
			stop(errors.New("etcd ended by itself"))
		case <-ctx.Done():
		}
	}()
	s.Etcd = under.how
	err = serve(ctx, s, under.store)
	stop(nil)
	<-watching
	return errors.Join(err, under.close())
}

// wanted is err, or nil if it only says that the operator ended the program.
func wanted(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func serve(ctx context.Context, s settings, on store.Config) error {
	var err error
	if s.Store, err = store.New(on); err != nil {
		return err
	}
	s.Version = cli.VersionText()
	err = controller.Run(ctx, s.Config)
	if errors.Is(err, controller.ErrOtherMesh) {
		return s.etcd.notMigrated(err, s.DataDir)
	}
	return err
}

// firstSteps says, when a new mesh is served for the first time, what to type next.
func firstSteps(cmd *cobra.Command, dir string) func(netip.AddrPort) {
	operator := filepath.Join(dir, controller.OperatorFile)
	_, err := os.Stat(operator)
	isNew := errors.Is(err, fs.ErrNotExist)
	return func(netip.AddrPort) {
		if _, err := os.Stat(operator); !isNew || err != nil {
			return
		}
		cli.Notef(cmd, "this is a new mesh. Its operator's credential is %s; next, here:", operator)
		cli.Notef(cmd, "  weft context add home --file %s", operator)
		cli.Notef(cmd, "keep a copy of seal.key in the same directory: without it a backup cannot be used")
	}
}
