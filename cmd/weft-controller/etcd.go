package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/etcd"
	"github.com/weftmesh/weft/mesh/store"
)

// etcdFlags say which etcd to work on: the one inside, or a cluster.
type etcdFlags struct {
	root    string
	cluster store.ClusterConfig

	// Of the one inside.
	listen string
	quota  size
}

// addCluster adds the flags of a cluster.
func (e *etcdFlags) addCluster(f *pflag.FlagSet) {
	f.StringVar(&e.root, "etcd-root", "/weft/", "the `PREFIX` of all keys in etcd")
	f.StringSliceVar(&e.cluster.Endpoints, "etcd", nil, "work on this etcd cluster, instead of the etcd inside: the client `URLS` of its members, https://HOST:PORT")
	f.StringVar(&e.cluster.CA, "etcd-ca", "", "the `FILE` with the certificate authority of the cluster's members (default: those of this system)")
	f.StringVar(&e.cluster.Cert, "etcd-cert", "", "the `FILE` with the certificate to show to them")
	f.StringVar(&e.cluster.Key, "etcd-key", "", "the `FILE` with the key of that certificate")
	f.BoolVar(&e.cluster.Plain, "etcd-plain", false, "let http:// in --etcd go over a network, in clear text")
}

// addInside adds the flags of the etcd inside.
func (e *etcdFlags) addInside(f *pflag.FlagSet) {
	e.quota = etcd.DefaultQuota
	f.StringVar(&e.listen, "etcd-listen", "", "let etcdctl in on this socket: `unix:PATH` (default: nobody)")
	f.Var(&e.quota, "etcd-quota", "`SIZE` of the etcd inside at which it takes no more writes")
}

// check refuses flags that contradict each other.
func (e *etcdFlags) check(f *pflag.FlagSet) error {
	inside, outside := []string{"etcd-listen", "etcd-quota"}, []string{"etcd-ca", "etcd-cert", "etcd-key", "etcd-plain"}
	if len(e.cluster.Endpoints) == 0 {
		for _, name := range outside {
			if f.Changed(name) {
				return mesh.WithHint(cli.Usagef("--%s: there is no --etcd that it could be for", name), "--etcd https://192.0.2.1:2379")
			}
		}
		return nil
	}
	for _, name := range inside {
		if f.Changed(name) {
			return cli.Usagef("--%s is for the etcd inside, and --etcd is for another: give one of them", name)
		}
	}
	return nil
}

// backing is an etcd that is ready to be worked on.
type backing struct {
	store store.Config // with Client, Root and Log
	how   func() []store.Condition
	done  <-chan struct{} // closed when it has ended by itself; nil: it never does
	close func() error
}

// open starts the etcd inside, or waits for the cluster.
func (e *etcdFlags) open(ctx context.Context, dataDir string, log *slog.Logger) (*backing, error) {
	if len(e.cluster.Endpoints) == 0 {
		return e.openInside(ctx, dataDir, log)
	}
	cluster, err := e.openCluster(ctx, log)
	if err != nil {
		return nil, err
	}
	return &backing{store: store.Config{Client: cluster.Client(), Root: e.root, Log: log}, how: cluster.Conditions, close: cluster.Close}, nil
}

func (e *etcdFlags) openInside(ctx context.Context, dataDir string, log *slog.Logger) (*backing, error) {
	server, err := etcd.Start(ctx, etcd.Config{Dir: insideDir(dataDir), Listen: e.listen, QuotaBytes: int64(e.quota), Log: log})
	if err != nil {
		return nil, dataDirHint(movedHint(err, dataDir))
	}
	how := func() []store.Condition {
		size := server.Size()
		return []store.Condition{{Size: size.File, InUse: size.InUse, Quota: size.Quota, Alarms: server.Alarms()}}
	}
	return &backing{store: store.Config{Client: server.Client(), Root: e.root, Log: log}, how: how, done: server.Done(), close: server.Close}, nil
}

// openCluster connects to the cluster and waits until it answers.
func (e *etcdFlags) openCluster(ctx context.Context, log *slog.Logger) (*store.Cluster, error) {
	config := e.cluster
	config.Log = log
	cluster, err := store.Connect(config)
	if errors.Is(err, store.ErrEndpoint) {
		err = cli.WithCode(err, cli.CodeUsage)
	}
	if err != nil {
		return nil, err
	}
	err = cluster.Await(ctx, func(err error) { log.Warn("waiting for etcd", "err", err) })
	if err != nil {
		return nil, errors.Join(err, cluster.Close())
	}
	return cluster, nil
}

// insideDir is where the etcd inside keeps its data.
func insideDir(dataDir string) string { return filepath.Join(dataDir, "etcd") }

// movedHint says what to type where the data of the etcd inside has moved away.
func movedHint(err error, dataDir string) error {
	var moved *etcd.MovedError
	if !errors.As(err, &moved) {
		return err
	}
	return mesh.WithHint(err, "weft-controller run --data-dir %s --etcd %s", dataDir, moved.To)
}

func dataDirHint(err error) error {
	if errors.Is(err, fs.ErrPermission) && mesh.HintOf(err) == "" {
		return mesh.WithHint(err, "run it as root, or give a --data-dir that it may write to")
	}
	return err
}

// notMigrated says what to type where a data directory has its mesh in the etcd
// inside, and a cluster without one was given.
func (e *etcdFlags) notMigrated(err error, dataDir string) error {
	if len(e.cluster.Endpoints) == 0 {
		return err
	}
	if _, statErr := os.Stat(insideDir(dataDir)); statErr != nil {
		return err
	}
	return mesh.WithHint(err, "if the mesh is still in %s: weft-controller migrate --data-dir %s --etcd %s", insideDir(dataDir), dataDir, strings.Join(e.cluster.Endpoints, ","))
}

// size is a number of bytes as people write it: 2GB, 512MB. The units are powers
// of 1024, as etcd's own.
type size int64

var units = []struct {
	name  string
	bytes int64
}{{"TB", 1 << 40}, {"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10}, {"B", 1}, {"", 1}}

// Set implements pflag.Value.
func (s *size) Set(text string) error {
	upper := strings.ReplaceAll(strings.ToUpper(strings.TrimSpace(text)), "IB", "B")
	for _, u := range units {
		number, ok := strings.CutSuffix(upper, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n <= 0 || n > (1<<62)/u.bytes {
			break
		}
		*s = size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("%q is no size: want a number and KB, MB, GB or TB, like 4GB", text)
}

// String implements pflag.Value.
func (s *size) String() string {
	for _, u := range units {
		if n := int64(*s); n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return "0"
}

// Type implements pflag.Value.
func (s *size) Type() string { return "size" }
