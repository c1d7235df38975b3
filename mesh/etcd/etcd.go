// Package etcd runs an etcd server inside the process: one member, one data
// directory, by default no network listener, and the upkeep that a server left to
// itself needs (compaction, quota, defragmentation). What is kept in it is
// mesh/store's business; clusters of several members are run with etcd's own
// programs.
package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// Defaults of Config.
const (
	DefaultQuota     = 2 << 30 // bytes
	DefaultRetention = time.Hour
)

// maxTxnOps is the most operations that one transaction may hold; package store
// counts on it.
const maxTxnOps = 128

// A single member has nobody to elect against and no heartbeat to miss, so its
// election timeout only delays the start. Much shorter ones cost idle CPU. An
// election timeout is also the least time-to-live of a lease, rounded up to a second.
const (
	tickMs, electionMs         = 25, 250
	fastTickMs, fastElectionMs = 10, 100
)

// Config says where and how to run. Dir is required.
type Config struct {
	Dir                 string        // data directory; created with mode 0700
	Listen              string        // "" (nobody else can connect) or unix:PATH, a socket for etcdctl, mode 0600
	QuotaBytes          int64         // size at which writes are refused; default DefaultQuota
	CompactionRetention time.Duration // how much history is kept; default DefaultRetention
	UpkeepEvery         time.Duration // between looks at size and alarms; default a minute
	Log                 *slog.Logger  // default: discard

	// For tests.
	Fast          bool  // shorter ticks: starts sooner, costs idle CPU
	UnsafeNoFsync bool  // a crash of the machine loses data
	WALSegment    int64 // bytes preallocated for the log, default 64 MB; one value per process
}

// Server is a running etcd server.
type Server struct {
	config  Config
	log     *slog.Logger
	claim   *claim
	etcd    *embed.Etcd
	client  *clientv3.Client
	logging *logging
	disk    *disk

	stop   context.CancelFunc // ends upkeep
	upkeep sync.WaitGroup
	close  sync.Once
}

// segmentSize guards wal.SegmentSizeBytes, which the library keeps as a global.
var segmentSize sync.Mutex

// Start runs a server on the directory and returns when it takes requests. A
// directory that another process uses, that holds something else, or that belongs
// to another user is refused and left as it was. ctx bounds only the start.
func Start(ctx context.Context, c Config) (*Server, error) {
	c.QuotaBytes = cmp.Or(c.QuotaBytes, DefaultQuota)
	c.CompactionRetention = cmp.Or(c.CompactionRetention, DefaultRetention)
	c.UpkeepEvery = cmp.Or(c.UpkeepEvery, time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	logging := &logging{log: c.Log}
	ec, err := embedConfig(c, logging)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	claim, err := claimDir(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	if err := freeSocket(c.Listen); err != nil {
		claim.release()
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	if c.WALSegment > 0 {
		segmentSize.Lock()
		if wal.SegmentSizeBytes != c.WALSegment {
			wal.SegmentSizeBytes = c.WALSegment
		}
		segmentSize.Unlock()
	}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		claim.release()
		return nil, fmt.Errorf("start etcd in %s: %w", c.Dir, err)
	}
	s := &Server{config: c, log: c.Log, claim: claim, etcd: e, logging: logging, stop: func() {}, disk: &disk{dir: c.Dir}}
	if err := s.ready(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("start etcd in %s: %w", c.Dir, err)
	}
	s.client = v3client.New(e.Server)
	s.client.KV = guardedKV{s.client.KV, s.disk}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.upkeep.Go(func() { s.keepUp(run) })
	s.upkeep.Go(func() { s.watchDisk(run) })
	return s, nil
}

func embedConfig(c Config, logging *logging) (*embed.Config, error) {
	if c.Dir == "" {
		return nil, errors.New("no data directory given")
	}
	ec := embed.NewConfig()
	ec.Dir = c.Dir
	ec.Name = "weft"
	// The peer address is an identity in the member list; nothing listens there.
	identity := url.URL{Scheme: "http", Host: "weft.invalid:2380"}
	ec.AdvertisePeerUrls = []url.URL{identity}
	ec.InitialCluster = ec.Name + "=" + identity.String()
	ec.ListenPeerUrls, ec.ListenClientUrls, ec.AdvertiseClientUrls = nil, nil, nil
	if c.Listen != "" {
		path, ok := strings.CutPrefix(c.Listen, "unix:")
		if !ok || !strings.HasPrefix(path, "/") {
			return nil, fmt.Errorf("listen address %q: want unix:/PATH", c.Listen)
		}
		u := url.URL{Scheme: "unix", Path: path}
		ec.ListenClientUrls, ec.AdvertiseClientUrls = []url.URL{u}, []url.URL{u}
	}
	ec.EnableGRPCGateway = false
	ec.TickMs, ec.ElectionMs = tickMs, electionMs
	if c.Fast {
		ec.TickMs, ec.ElectionMs = fastTickMs, fastElectionMs
	}
	ec.AutoCompactionMode = embed.CompactorModePeriodic
	ec.AutoCompactionRetention = c.CompactionRetention.String()
	ec.QuotaBackendBytes = c.QuotaBytes
	ec.MaxTxnOps = maxTxnOps
	ec.UnsafeNoFsync = c.UnsafeNoFsync
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logging.zap())
	return ec, nil
}

// freeSocket removes what a crash left at the socket's path: a socket, never a
// file of another kind. The data directory's lock is held, so nobody listens.
func freeSocket(listen string) error {
	path, ok := strings.CutPrefix(listen, "unix:")
	if !ok {
		return nil
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("listen on %s: %w", path, err)
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("listen on %s: there is a file that is not a socket", path)
	}
	return os.Remove(path)
}

func (s *Server) ready(ctx context.Context) error {
	select {
	case <-s.etcd.Server.ReadyNotify():
	case <-s.etcd.Server.StopNotify():
		return errors.New("it stopped at once")
	case err := <-s.etcd.Err():
		return err
	case <-ctx.Done():
		return fmt.Errorf("not ready: %w", ctx.Err())
	}
	if path, ok := strings.CutPrefix(s.config.Listen, "unix:"); ok {
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
	}
	return s.claim.keep()
}

// Client returns the client that calls the server within the process. It ends
// with Close.
func (s *Server) Client() *clientv3.Client { return s.client }

// Done is closed when the server has stopped, by Close or by itself.
func (s *Server) Done() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Close ends upkeep, the client and the server, in this order, and lets go of the
// directory. It is idempotent.
func (s *Server) Close() error {
	var err error
	s.close.Do(func() {
		s.stop()
		s.upkeep.Wait()
		s.logging.closing.Store(true)
		if s.client != nil {
			// The client's own context is what it reports: that is how it ends.
			if e := s.client.Close(); e != nil && !errors.Is(e, context.Canceled) {
				err = fmt.Errorf("close etcd client: %w", e)
			}
		}
		s.etcd.Close()
		err = errors.Join(err, s.claim.release())
	})
	return err
}

var _ io.Closer = (*Server)(nil)
