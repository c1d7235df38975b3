package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/dns"
	"github.com/weftmesh/weft/dns/resolvconf"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/peers/link"
)

// laptopNames points the laptop's resolver at the mesh, for the mesh's names, and
// puts it back.
type laptopNames struct {
	cfg   LaptopConfig
	owner string // tells this run from others
	log   *slog.Logger
	text  atomic.Pointer[string] // how it was done

	// Of the loop, and of RunLaptop after it has ended.
	restore resolvconf.Restore
	release func() error // ends the guard
	stub    *running
	at      netip.AddrPort // of the stub
}

func newLaptopNames(cfg LaptopConfig) *laptopNames {
	return &laptopNames{cfg: cfg, log: cfg.Log, owner: rand.Text()}
}

func (n *laptopNames) how() string {
	if s := n.text.Load(); s != nil {
		return *s
	}
	return ""
}

// set is idempotent, and follows whoever rewrites the resolver's file.
func (n *laptopNames) set(ctx context.Context, v *mesh.View) error {
	if n.cfg.NoDNS || len(v.Orgs) == 0 {
		return nil
	}
	if n.release == nil && n.cfg.Guard != nil {
		release, err := resolvconf.StartGuard(n.cfg.Guard(n.owner))
		if err != nil {
			return err
		}
		n.release = release
	}
	network := v.Orgs[0].Network
	c := resolvconf.Config{
		Link: n.cfg.Link, Server: v.Plan.Resolver(network), StateDir: n.cfg.StateDir, Owner: n.owner, Log: n.log,
		Domains: []string{"internal.", reverseZone(v.Plan.Network(network)) + ".", reverseZone(v.Plan.Network(0)) + "."},
	}
	c.Stub = func(original string) (netip.AddrPort, error) { return n.startStub(original, c, v.Plan.Prefix()) }
	restore, how, err := resolvconf.Set(ctx, c)
	if err != nil {
		return err
	}
	n.restore = restore
	if n.how() != how {
		n.log.Info("resolver set", "by", how, "server", c.Server.String())
		n.text.Store(&how)
	}
	return nil
}

// startStub runs a resolver on loopback that splits: where the system's own cannot.
func (n *laptopNames) startStub(original string, c resolvconf.Config, prefix netip.Prefix) (netip.AddrPort, error) {
	if n.stub != nil && !n.stub.ended() {
		return n.at, nil
	}
	rules := map[string][]netip.AddrPort{}
	for _, d := range c.Domains {
		rules[d] = []netip.AddrPort{netip.AddrPortFrom(c.Server, dnsPort)}
	}
	stub, err := dns.NewStub(dns.StubConfig{Forward: dns.ForwarderConfig{Upstreams: dns.Upstreams(original), Rules: rules, Mesh: prefix, Log: n.log}})
	if err != nil {
		return netip.AddrPort{}, err
	}
	n.at = stub.Addr()
	n.stub = goRun(func(ctx context.Context) {
		if err := stub.Run(ctx); err != nil {
			n.log.Error("local resolver ended", "addr", n.at.String(), "err", err)
		}
	})
	return n.at, nil
}

// close puts the resolver back, and ends the stub only then: nobody may ask one
// that is not there.
func (n *laptopNames) close(leave bool) error {
	var err error
	if n.restore != nil && !leave {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var note string
		if note, err = n.restore(ctx); note != "" {
			n.log.Warn(note)
		}
		if err == nil {
			n.log.Info("resolver put back")
		}
	}
	if n.stub != nil {
		n.stub.stop()
	}
	if n.release != nil && !leave {
		err = errors.Join(err, n.release())
	}
	return err
}

// RecoverLaptop puts back what an earlier RunLaptop with this configuration left
// in the system because it was killed: the resolver, the route that refuses the
// mesh. It does nothing while another one runs.
func RecoverLaptop(ctx context.Context, cfg LaptopConfig) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(cfg.StateDir, "lock"), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("state directory %s: another process uses it", cfg.StateDir)
	}
	return recoverLaptop(ctx, cfg)
}

// recoverLaptop is RecoverLaptop for who holds the lock.
func recoverLaptop(ctx context.Context, cfg LaptopConfig) error {
	note, err := resolvconf.Recover(ctx, resolvconf.Config{StateDir: cfg.StateDir, Log: cfg.Log})
	if note != "" {
		cfg.Log.Warn(note)
	}
	b, readErr := os.ReadFile(filepath.Join(cfg.StateDir, cacheFile))
	if readErr != nil {
		return err
	}
	if v, _, _, decodeErr := decodeView(b, mesh.Node{}); decodeErr == nil {
		_, routeErr := link.Remove(nil, link.Config{Link: cfg.Link, Unreachable: v.Plan.Prefix()})
		err = errors.Join(err, routeErr)
	}
	return err
}

// GuardLaptop is what the helper process does that LaptopConfig.Guard starts: it
// waits on parent, its standard input, until the process that runs RunLaptop has
// ended, however that went, and then does what RecoverLaptop does. owner is the
// text that Guard was given.
func GuardLaptop(ctx context.Context, parent io.Reader, cfg LaptopConfig, owner string) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	note, err := resolvconf.Guard(ctx, parent, resolvconf.Config{StateDir: cfg.StateDir, Owner: owner, Log: cfg.Log})
	if note != "" {
		cfg.Log.Warn(note)
	}
	if recoverErr := RecoverLaptop(ctx, cfg); err == nil && recoverErr != nil {
		cfg.Log.Debug("left to the one that runs now", "err", recoverErr)
	}
	return err
}

// reverseZone is the domain of a prefix's reverse names, without a final dot. The
// prefix ends on a nibble.
func reverseZone(p netip.Prefix) string {
	const hex = "0123456789abcdef"
	a := p.Addr().As16()
	var b strings.Builder
	for i := p.Bits()/4 - 1; i >= 0; i-- {
		nibble := a[i/2] >> 4
		if i%2 == 1 {
			nibble = a[i/2] & 15
		}
		b.WriteByte(hex[nibble])
		b.WriteByte('.')
	}
	return b.String() + "ip6.arpa"
}
