package store

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/weftmesh/weft/mesh"
)

// ClusterConfig says which etcd cluster to connect to, and as whom. Endpoints is
// required.
type ClusterConfig struct {
	Endpoints []string // the members' client URLs, https://HOST:PORT, or unix:///PATH
	CA        string   // PEM file with the authorities that sign the members' certificates; "": the system's
	Cert, Key string   // PEM files of the certificate to show, both or neither; read again for each connection
	// Plain lets http:// go over a network: whoever is on the way can read and change
	// everything. Without it http:// is for loopback addresses only.
	Plain bool

	ProbeEvery time.Duration // between looks at each member, which has twice as long to answer; default 1 s
	Log        *slog.Logger  // default: discard
}

// Cluster is a connection to the members of an etcd cluster. Requests go to those
// that are well: one that does not answer, or has no leader, is left until it is
// well again, and what it was asked meanwhile fails at once.
type Cluster struct {
	config ClusterConfig
	log    *slog.Logger
	tls    *tls.Config // nil: plain
	client *clientv3.Client
	wires  wires

	members []*member
	stop    context.CancelFunc
	probing sync.WaitGroup
}

// ErrEndpoint says that the cluster cannot be worked on as configured: waiting does
// not help.
var ErrEndpoint = errors.New("not usable")

// A peer that says nothing and takes nothing is noticed by the members' probes,
// long before these.
const (
	keepAliveTime    = 10 * time.Second // gRPC asks no sooner
	keepAliveTimeout = 3 * time.Second
	connectTimeout   = 3 * time.Second
	reconnectMax     = 2 * time.Second // between attempts to reach a member that is gone
)

// Connect returns a Cluster. It reads the files and checks what is configured, but
// does not wait for any member: see Await.
func Connect(c ClusterConfig) (*Cluster, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.ProbeEvery = cmp.Or(c.ProbeEvery, time.Second)
	c.Endpoints = slices.Clone(c.Endpoints)
	for i, e := range c.Endpoints {
		c.Endpoints[i] = strings.TrimSuffix(e, "/")
	}
	if err := checkMembers(c); err != nil {
		return nil, err
	}
	cl := &Cluster{config: c, log: c.Log, wires: wires{open: map[*wire]bool{}}}
	var err error
	if strings.HasPrefix(c.Endpoints[0], "https:") {
		if cl.tls, err = clientTLS(c); err != nil {
			return nil, err
		}
	} else if c.CA != "" || c.Cert != "" || c.Key != "" {
		return nil, mesh.WithHint(fmt.Errorf("etcd endpoint %q: %w: certificates are given, and the endpoint does not use them", c.Endpoints[0], ErrEndpoint),
			"write https://")
	}
	if cl.client, err = cl.dial(c.Endpoints...); err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	for _, e := range c.Endpoints {
		one, err := cl.dial(e)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connect to etcd at %s: %w", e, err), cl.Close())
		}
		cl.members = append(cl.members, &member{endpoint: e, client: one, well: true})
	}
	ctx, stop := context.WithCancel(context.Background())
	cl.stop = stop
	cl.probing.Go(func() { cl.probe(ctx) })
	return cl, nil
}

// Client is the client for the members that are well. It ends with Close.
func (cl *Cluster) Client() *clientv3.Client { return cl.client }

// Close ends the probes and the connections. It is idempotent.
func (cl *Cluster) Close() error {
	if cl.stop != nil {
		cl.stop()
	}
	cl.probing.Wait()
	var errs []error
	for _, c := range cl.clients() {
		// The client's own context is what it reports: that is how it ends.
		if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, fmt.Errorf("close etcd client: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (cl *Cluster) clients() []*clientv3.Client {
	out := []*clientv3.Client{cl.client}
	for _, m := range cl.members {
		out = append(out, m.client)
	}
	return out
}

func (cl *Cluster) dial(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, TLS: cl.tls, Logger: zap.NewNop(),
		DialKeepAliveTime: keepAliveTime, DialKeepAliveTimeout: keepAliveTimeout, PermitWithoutStream: true,
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(cl.wires.dial),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMax},
				MinConnectTimeout: connectTimeout,
			}),
		},
	})
}

// checkMembers refuses what could not work, or would not be safe.
func checkMembers(c ClusterConfig) error {
	if len(c.Endpoints) == 0 {
		return fmt.Errorf("etcd endpoints: %w: none given", ErrEndpoint)
	}
	scheme := ""
	for _, e := range c.Endpoints {
		u, err := url.Parse(e)
		if err != nil {
			return mesh.WithHint(fmt.Errorf("etcd endpoint %q: %w: %w", e, ErrEndpoint, err), "for example https://192.0.2.1:2379")
		}
		if scheme == "" {
			scheme = u.Scheme
		}
		if reason := endpointTrouble(u, c.Plain); reason != "" {
			return mesh.WithHint(fmt.Errorf("etcd endpoint %q: %w: %s", e, ErrEndpoint, reason), "for example https://192.0.2.1:2379")
		}
		if u.Scheme != scheme {
			return fmt.Errorf("etcd endpoint %q: %w: all endpoints have the same scheme, and the first has %s", e, ErrEndpoint, scheme)
		}
	}
	if (c.Cert == "") != (c.Key == "") {
		return fmt.Errorf("etcd client certificate: %w: a certificate and its key come together", ErrEndpoint)
	}
	return nil
}

// endpointTrouble says what is wrong with an endpoint, or "".
func endpointTrouble(u *url.URL, plain bool) string {
	switch {
	case u.Scheme == "unix":
		if u.Host != "" || u.Path == "" {
			return "want unix:///PATH"
		}
	case u.Scheme != "https" && u.Scheme != "http":
		return "want https://HOST:PORT"
	case u.Hostname() == "" || u.Port() == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "want https://HOST:PORT and no more"
	case u.Scheme == "http" && !plain && !isLoopback(u.Hostname()):
		return "http:// would send everything in clear text, and whoever answers would be believed"
	}
	return ""
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// clientTLS is the configuration of all connections.
func clientTLS(c ClusterConfig) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		text, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("etcd's certificate authority: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("etcd's certificate authority: %w: %s holds no certificate in PEM", ErrEndpoint, c.CA)
		}
	}
	if c.Cert == "" {
		return out, nil
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("etcd client certificate %s: %w", c.Cert, err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	// Read again each time: it can be renewed without a restart.
	out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return out, nil
}

// wires are the open connections, so that one can be cut. mu guards open.
type wires struct {
	mu   sync.Mutex
	open map[*wire]bool
}

// wire is a connection to a member.
type wire struct {
	net.Conn
	addr string // as the dialer was given it
	gone func()
}

func (w *wire) Close() error {
	w.gone()
	return w.Conn.Close()
}

// connect makes a connection to an address as gRPC gives it to a dialer.
func connect(ctx context.Context, addr string) (net.Conn, error) {
	network, where := "tcp", addr
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		network, where = "unix", path
	}
	return (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, network, where)
}

// dial is gRPC's dialer.
func (ws *wires) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: conn, addr: addr}
	w.gone = func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		delete(ws.open, w)
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.open[w] = true
	return w, nil
}

// cut closes the connections to addr.
func (ws *wires) cut(addr string) {
	ws.mu.Lock()
	var found []*wire
	for w := range ws.open {
		if w.addr == addr {
			found = append(found, w)
		}
	}
	ws.mu.Unlock()
	for _, w := range found {
		w.Close()
	}
}
