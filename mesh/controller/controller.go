// Package controller is the server between etcd and everyone else: it makes the
// mesh at its first start, serves the HTTP API, enrols nodes, and streams to each
// what it may know. Where things are kept is mesh/store's business; what a node
// does with its view is mesh/agent's.
package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/store"
)

// Config is what a controller needs. Store and DataDir are required.
type Config struct {
	Store   *store.Store // Run runs it, too
	DataDir string       // made with mode 0700 if it is not there

	SealKeyFile   string       // default DataDir/seal.key; made for a new mesh only
	Listen        string       // HOST:PORT of the API; default ":7443"
	Advertise     []string     // base URLs at which nodes reach the API; default: this machine's addresses
	MetricsListen string       // HOST:PORT for metrics and health, without TLS; "" is off
	Prefix        netip.Prefix // of a new mesh; zero: one is drawn

	CertLifetime time.Duration // of nodes' certificates; default 24 h
	PingEvery    time.Duration // on view streams, at least twice in the time that nodes wait; default 1 s
	WriteTimeout time.Duration // after which a stream that takes nothing is cut; default 10 s
	FenceAfter   time.Duration // how long a stream may take to prove that it lives when its key comes twice; default 5 s

	Name    string                   // of this controller among those of the mesh, a label; default: made of the first of Advertise
	Etcd    func() []store.Condition // how etcd is, of each member; nil: nobody tells
	Version string                   // of the program
	Log     *slog.Logger             // default: discard
	// Ready is called once, when requests are answered, with the address of the API.
	Ready func(netip.AddrPort)
}

const (
	startGrace = 5 * time.Second // after which waiting for the store is worth a line in the log
	stopGrace  = 5 * time.Second // for what is still being answered
)

// Run serves a mesh until ctx ends; it then returns nil. It listens only once it
// can answer, and on its way out ends the streams, gives up the presence of their
// hosts, and stops the store.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Store == nil {
		return errors.New("controller: no store given")
	}
	if err := cfg.complete(); err != nil {
		return err
	}
	api, private, err := cfg.reserve()
	if err != nil {
		return err
	}
	defer api.Close()
	defer private.Close()
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if len(cfg.Advertise) == 0 {
		if cfg.Advertise, err = ownURLs(api.addr); err != nil {
			return err
		}
	}
	cfg.Name = cmp.Or(cfg.Name, nameOf(cfg.Advertise[0]))
	cas, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	s, err := newServer(cfg, cas[0], cas)
	if err != nil {
		return err
	}
	return s.run(ctx, api, private)
}

func (c *Config) complete() error {
	if c.DataDir == "" {
		return errors.New("controller: no data directory given")
	}
	c.SealKeyFile = cmp.Or(c.SealKeyFile, filepath.Join(c.DataDir, sealFile))
	c.Listen = cmp.Or(c.Listen, ":7443")
	c.CertLifetime = cmp.Or(c.CertLifetime, 24*time.Hour)
	c.PingEvery = cmp.Or(c.PingEvery, time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 10*time.Second)
	c.FenceAfter = cmp.Or(c.FenceAfter, 5*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Name != "" {
		if err := mesh.CheckName("controller", c.Name); err != nil {
			return mesh.WithHint(err, "for example --name eu-1; or leave --name out")
		}
	}
	if min(c.CertLifetime, c.PingEvery, c.WriteTimeout, c.FenceAfter) < 0 {
		return errors.New("controller: a duration is negative")
	}
	for _, a := range c.Advertise {
		if u, err := url.Parse(a); err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" {
			return mesh.WithHint(fmt.Errorf("advertised address %q: want https://HOST:PORT", a), "--advertise https://192.0.2.1:7443")
		}
	}
	if c.Prefix.IsValid() {
		if _, err := newPlan(c.Prefix); err != nil {
			return err
		}
	}
	return nil
}

// place is where to listen: found to be free, but not listened on before there is
// somebody to answer.
type place struct {
	what     string
	addr     string       // "" is nowhere
	listener net.Listener // of a port that the kernel chose: it cannot be given back
}

// reserve finds out whether the ports are free, before anything is made.
func (c *Config) reserve() (api, private *place, err error) {
	if api, err = reserve("API", c.Listen); err != nil {
		return nil, nil, err
	}
	if private, err = reserve("metrics", c.MetricsListen); err != nil {
		api.Close()
		return nil, nil, err
	}
	return api, private, nil
}

func reserve(what, addr string) (*place, error) {
	p := &place{what: what, addr: addr}
	if addr == "" {
		return p, nil
	}
	l, err := p.open()
	if err != nil {
		return nil, err
	}
	p.addr = l.Addr().String()
	if _, port, _ := net.SplitHostPort(addr); port == "0" {
		p.listener = l
		return p, nil
	}
	return p, l.Close()
}

func (p *place) open() (net.Listener, error) {
	config := net.ListenConfig{Control: listenControl(deadAfter), KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadAfter, Interval: deadAfter / 2, Count: 2}}
	l, err := config.Listen(context.Background(), "tcp", p.addr)
	if err == nil {
		return l, nil
	}
	err = fmt.Errorf("listen for the %s: %w", p.what, err)
	if errors.Is(err, syscall.EADDRINUSE) {
		flag := map[string]string{"API": "--listen", "metrics": "--metrics"}[p.what]
		return nil, mesh.WithHint(err, "another program has the port (a second controller?); choose another one with %s", flag)
	}
	return nil, err
}

// deadAfter is how long a peer may leave what it is sent unacknowledged.
const deadAfter = 10 * time.Second

// Listen returns the listener.
func (p *place) Listen() (net.Listener, error) {
	if l := p.listener; l != nil {
		p.listener = nil
		return l, nil
	}
	return p.open()
}

// Close gives up what is still reserved.
func (p *place) Close() {
	if p.listener != nil {
		p.listener.Close()
	}
}

// ownURLs are the API's addresses when nobody said how it is reached: the one it
// listens on, or all of this machine's that others could use.
func ownURLs(listen string) ([]string, error) {
	at, err := netip.ParseAddrPort(listen)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w", listen, err)
	}
	if !at.Addr().IsUnspecified() {
		return []string{"https://" + at.String()}, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("this machine's addresses: %w", err)
	}
	var out []string
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			out = append(out, "https://"+net.JoinHostPort(n.IP.String(), strconv.Itoa(int(at.Port()))))
		}
	}
	if len(out) == 0 {
		out = []string{"https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(int(at.Port())))}
	}
	return slices.Compact(out), nil
}

// run serves until ctx ends.
func (s *server) run(ctx context.Context, api, private *place) error {
	own := &ownCertificate{ca: s.ca, lifetime: ownLifetime}
	if err := own.renew(); err != nil {
		return err
	}
	// The store outlives the requests that are still being answered.
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	ctx, stop := context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer stopStore()
	defer stop(nil)
	tasks.Go(func() {
		if err := s.store.Run(storeCtx); storeCtx.Err() == nil {
			stop(fmt.Errorf("store: %w", err))
		}
	})
	tasks.Go(func() {
		own.run(ctx, func(err error) { s.log.Error("renew the controller's certificate", "err", err) })
	})
	if !s.awaitStore(ctx) {
		return causeOf(ctx)
	}
	if err := s.register(ctx, &tasks, stop); err != nil {
		if ctx.Err() != nil {
			return causeOf(ctx)
		}
		return err
	}
	tasks.Go(func() { s.hub.run(storeCtx) })
	tasks.Go(func() { s.watchAlarms(ctx) })
	servers, err := s.serve(&tasks, stop, own, api, private)
	if err != nil {
		return err
	}
	<-ctx.Done()
	s.shutDown(servers)
	return causeOf(ctx)
}

// causeOf returns why ctx ended, or nil if its owner wanted it.
func causeOf(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// awaitStore waits for the first complete list; false if ctx ends first.
func (s *server) awaitStore(ctx context.Context) bool {
	slow := time.NewTimer(startGrace)
	defer slow.Stop()
	for {
		select {
		case <-s.store.Ready():
			return true
		case <-ctx.Done():
			return false
		case <-slow.C:
			s.log.Warn("waiting for etcd to answer")
		}
	}
}

// serve begins to listen and to answer.
func (s *server) serve(tasks *sync.WaitGroup, stop context.CancelCauseFunc, own *ownCertificate, api, private *place) ([]*http.Server, error) {
	quiet := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug) // what strangers do to the port
	main := &http.Server{
		Handler: s.api, TLSConfig: enroll.ServerTLS(own.current.Load), ErrorLog: quiet, ConnContext: s.withConnection,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: deadAfter, PingTimeout: deadAfter, WriteByteTimeout: deadAfter},
	}
	servers, metrics := []*http.Server{main}, "off"
	l, err := api.Listen()
	if err != nil {
		return nil, err
	}
	tasks.Go(func() { serving(main.ServeTLS(l, "", ""), stop) })
	if private.addr != "" {
		pl, err := private.Listen()
		if err != nil {
			main.Close()
			return nil, err
		}
		second := &http.Server{Handler: s.private, ErrorLog: log.New(quiet.Writer(), "", 0), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
		servers, metrics = append(servers, second), pl.Addr().String()
		tasks.Go(func() { serving(second.Serve(pl), stop) })
	}
	addr, _ := netip.ParseAddrPort(l.Addr().String())
	s.log.Info("ready", "addr", addr.String(), "advertise", s.cfg.Advertise, "metrics", metrics, "rev", s.store.State().Revision.String())
	if s.cfg.Ready != nil {
		s.cfg.Ready(addr)
	}
	return servers, nil
}

func serving(err error, stop context.CancelCauseFunc) {
	if !errors.Is(err, http.ErrServerClosed) {
		stop(fmt.Errorf("serve: %w", err))
	}
}

// shutDown sends the nodes to the other controllers, ends the streams, lets the
// other requests finish, and waits until the hosts' presence is given up or left to
// the others.
func (s *server) shutDown(servers []*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	s.deregister(ctx)
	s.endStreams()
	var shutting sync.WaitGroup
	for _, srv := range servers {
		shutting.Go(func() { srv.Shutdown(ctx) })
	}
	// Shutdown alone would sit out a second for each HTTP/2 connection that is idle.
	s.awaitQuiet(ctx)
	for _, srv := range servers {
		srv.Close()
	}
	shutting.Wait()
	s.background.Wait() // each step in it is bounded
	s.log.Info("stopped")
}

// awaitQuiet waits until nothing is being answered and the last answers are out.
func (s *server) awaitQuiet(ctx context.Context) {
	tick := time.NewTicker(quietFor)
	defer tick.Stop()
	for quiet := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.requests.active.Load() > 0 {
			quiet = false
			continue
		}
		if quiet {
			return
		}
		quiet = true
	}
}

// quietFor is how long nothing must have been answered before connections are closed.
const quietFor = 25 * time.Millisecond
