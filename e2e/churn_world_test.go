package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/churn"
	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/prober"
	"github.com/weftmesh/weft/e2e/world"
)

// churned is a mesh under churn: what it is told to be (state), who lives in it, and
// what was seen.
type churned struct {
	t       *testing.T
	w       *world.World
	etcd    *world.Etcd            // nil: it is in the controller
	dir     string                 // of the probers' sockets, with a short name
	routers map[string]*lab.Router // of laptops, by key
	seed    uint64
	r       *rand.Rand
	grants  bool // the programs know them

	rules map[churn.Grant]string // ids of the grants

	mu        sync.Mutex // guards what follows; the watch reads it
	state     churn.State
	changing  []churn.Grant // since the last quiet moment
	scene     churn.Scene   // as of the last look
	lives     []*life
	addresses map[string][]netip.Addr   // all that an endpoint ever had
	where     map[string]churn.Endpoint // last seen
	was       map[string]string         // where machines were that have moved since the last quiet moment
	windows   []churn.Window
	apps      map[string][]string
	did       []string
	started   int
	findings  []churn.Finding // of things that must never be
	tried     int             // questions that were answered
}

// life is a process that bears a prober: a machine's, a laptop's, a host's.
type life struct {
	key, app string
	host     *lab.Host
	process  *lab.Process // its own, or `weft run`
	up       *lab.Process // a laptop's `weft up`
	args     []string     // of that
	gateway  string       // the host that is nearest to a laptop
	self     prober.Client
	plane    bool // a prober in a data plane
}

// churnSize is how much there is.
type churnSize struct {
	hosts       []string
	machines    []string      // "<org>/<app>-<n> <host>"
	laptops     []string      // "<org>/<name>"
	nat         lab.NATConfig // of the laptops' routers
	controllers int
	disable     []string
}

var smallChurn = churnSize{
	hosts: []string{"fra1", "fra2", "ams1", "nrt1"},
	machines: []string{
		"acme/web-1 fra1", "acme/web-2 ams1", "acme/db-1 nrt1", "acme/db-2 fra2",
		"globex/web-1 fra1", "globex/shop-1 fra2",
		"initech/web-1 ams1", "initech/tps-1 nrt1",
	},
	laptops:     []string{"acme/laptop"},
	controllers: 1,
}

// churnOrgs are the hosts that each org's machines may be on: partly the same.
var churnOrgs = map[string]string{"acme": "fra1 fra2 fra3 ams1 ams2 nrt1", "globex": "fra1 fra2 fra3 ams1", "initech": "ams1 ams2 nrt1 fra3"}

func churnSeed(t *testing.T, round uint64) uint64 {
	t.Helper()
	seed := rand.Uint64N(1_000_000)
	if text := os.Getenv("WEFT_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("WEFT_SEED: %v", err)
		}
	}
	return seed + round
}

// newChurned makes the mesh and all that is in it at the beginning.
func newChurned(t *testing.T, size churnSize, seed uint64) *churned {
	t.Helper()
	c := &churned{t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 0)), rules: map[churn.Grant]string{}, routers: map[string]*lab.Router{},
		addresses: map[string][]netip.Addr{}, where: map[string]churn.Endpoint{}, was: map[string]string{}, apps: map[string][]string{},
		state: churn.State{Regions: map[string]string{}, Orgs: map[string][]string{}, Machines: map[string]churn.Machine{}, Laptops: map[string]churn.Laptop{},
			Agents: map[string]bool{}, Controllers: map[string]bool{}, Members: map[string]bool{}, Harmed: map[churn.Pair]bool{}}}
	t.Logf("seed %d (WEFT_SEED=%d repeats what is drawn, though not who is faster)", seed, seed)
	var err error
	// The path of a unix socket has at most 107 bytes.
	if c.dir, err = os.MkdirTemp("", "weft-churn"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(c.dir) })
	cfg := world.Config{Lab: newLab(t), Bin: bin(t), Disable: size.disable, Controllers: size.controllers}
	if size.controllers > 1 {
		c.etcd = newEtcd(t, cfg.Lab)
		cfg.Etcd = c.etcd
		for _, m := range c.etcd.Members {
			c.state.Members[m.Name()] = true
		}
	}
	if c.w, err = world.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for _, x := range c.w.Controllers {
		c.state.Controllers[x.Name()] = true
	}
	_, err = c.w.Weft(t.Context(), "grant", "list")
	c.grants = err == nil
	c.populate(size)
	return c
}

func (c *churned) populate(size churnSize) {
	for org, hosts := range churnOrgs {
		weft(c.t, c.w, "org", "create", org)
		c.state.Orgs[org] = slices.DeleteFunc(strings.Fields(hosts), func(h string) bool { return !slices.Contains(size.hosts, h) })
	}
	for _, host := range size.hosts {
		region := strings.TrimRight(host, "0123456789")
		if !slices.Contains(slicesOf(c.state.Regions), region) {
			weft(c.t, c.w, "region", "create", region)
		}
		c.must(c.w.AddHost(c.t.Context(), host, region))
		c.state.Regions[host], c.state.Agents[host] = region, true
	}
	for _, m := range size.machines {
		key, host, _ := strings.Cut(m, " ")
		app, _, _ := strings.Cut(strings.TrimPrefix(key, churn.OrgOf(key)+"/"), "-")
		c.state.Machines[key] = churn.Machine{App: app, Host: host, Home: host, Runs: true}
		c.app(churn.OrgOf(key), app)
	}
	for i, key := range size.laptops {
		c.placeLaptop(i, key, size.nat, size.hosts)
	}
	if err := c.w.AwaitHosts(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

func slicesOf[K comparable, V any](m map[K]V) (out []V) {
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

func (c *churned) must(_ any, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *churned) app(org, app string) {
	if !slices.Contains(c.apps[org], app) {
		c.apps[org] = append(c.apps[org], app)
	}
}

// placeLaptop makes a laptop behind a router of its own, with a prober on it; the
// way into the mesh is c.revive's.
func (c *churned) placeLaptop(i int, key string, nat lab.NATConfig, hosts []string) {
	c.t.Helper()
	router, err := c.w.Lab().NAT(fmt.Sprint("home", i), nat)
	c.must(nil, err)
	c.routers[key] = router
	h, err := router.Host(fmt.Sprint("laptop", i), lab.HostConfig{PrivateEtc: true})
	c.must(nil, err)
	l := &life{key: key, host: h, self: c.socket()}
	l.process, err = h.Start("prober", c.w.Echo()[0], []string{"-prober", l.self.Socket, "-name", key}, nil)
	c.must(nil, err)
	c.lives, c.state.Laptops[key] = append(c.lives, l), churn.Laptop{Up: true}
	// One gateway is nearer than the others: the same in the end as at the beginning.
	l.gateway = hosts[i%len(hosts)]
	for _, host := range hosts {
		if host != l.gateway {
			c.must(nil, c.w.Lab().Switch().SetRTT(h.Name(), host, 40*time.Millisecond))
		}
	}
}

// socket is a place for another prober's.
func (c *churned) socket() prober.Client {
	c.started++
	return prober.Client{Socket: filepath.Join(c.dir, strconv.Itoa(c.started))}
}

// join starts a laptop's `weft up`. The token counts the first time alone.
func (c *churned) join(ctx context.Context, l *life) error {
	if l.args == nil {
		org, name := churn.OrgOf(l.key), l.key[len(churn.OrgOf(l.key))+1:]
		token, err := c.w.Token(ctx, "--kind", "client", "--org", org)
		if err != nil {
			return err
		}
		l.args = []string{"up", "--controller", strings.Join(c.w.URLs(), ","), "--name", name, "--token-file", token,
			"--state-dir", filepath.Join(c.w.Lab().Dir(), "up-"+name)}
	}
	up, err := l.host.Start("up", filepath.Join(c.w.Bin(), "weft"), l.args, nil)
	if err == nil {
		l.up = up
	}
	return err
}

// launch starts a machine's process on a host and does not wait for it.
func (c *churned) launch(key, host string, move bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.state.Machines[key]
	org, id := churn.OrgOf(key), key[len(churn.OrgOf(key))+1:]
	l := &life{key: key, app: m.App, host: c.w.Hosts[host].Host, self: c.socket()}
	args := []string{"run", "--org", org, "--app", m.App, "--name", id}
	if move {
		args = append(args, "--move", "--ready-within", "5s")
	}
	args = append(args, "--", c.w.Echo()[0], "-prober", l.self.Socket, "-name", key)
	var err error
	if l.process, err = l.host.Start("run-"+org+"-"+id, filepath.Join(c.w.Bin(), "weft"), args, nil); err == nil {
		c.lives = append(c.lives, l)
	}
	return err
}

// living are the processes of a machine that have not ended.
func (c *churned) living(key string) (out []*life) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lives {
		if l.key == key && !l.process.Exited() {
			out = append(out, l)
		}
	}
	return out
}

// revive starts what is to run and does not: members of etcd, agents, controllers,
// machines, laptops' `weft up` and the hosts' probers, as supervisors would. It does
// not wait.
func (c *churned) revive(ctx context.Context) error {
	for _, m := range c.members() {
		if c.state.Members[m.Name()] && m.Process.Exited() {
			if err := m.Start(); err != nil {
				return err
			}
		}
	}
	for _, x := range c.w.Controllers {
		if c.state.Controllers[x.Name()] && x.Process.Exited() {
			if err := c.w.Run(ctx, x); err != nil {
				return err
			}
		}
	}
	for name, h := range c.w.Hosts {
		if c.state.Agents[name] && h.Agent.Exited() {
			if err := c.w.StartAgent(h); err != nil {
				return err
			}
		}
	}
	for key, m := range c.state.Machines {
		if m.Runs && c.state.Agents[m.Host] && len(c.living(key)) == 0 {
			if err := c.launch(key, m.Host, false); err != nil {
				return err
			}
		}
	}
	for _, l := range c.lives {
		if !c.state.Laptops[l.key].Up || l.up != nil && !l.up.Exited() {
			continue
		}
		if err := c.join(ctx, l); err != nil {
			return err
		}
	}
	return c.listen(ctx)
}

// members are those of etcd's cluster, if there is one.
func (c *churned) members() []*world.EtcdMember {
	if c.etcd == nil {
		return nil
	}
	return c.etcd.Members
}

// listen has a prober behind the addresses of each host, on the underlay and in the
// data plane, so that whoever comes through to them is heard.
func (c *churned) listen(ctx context.Context) error {
	for name, h := range c.w.Hosts {
		for _, plane := range []bool{false, true} {
			if slices.ContainsFunc(c.living(name), func(l *life) bool { return l.plane == plane }) {
				continue
			}
			l := &life{key: name, host: h.Host, plane: plane}
			c.mu.Lock()
			l.self = c.socket()
			c.mu.Unlock()
			command := []string{c.w.Echo()[0], "-prober", l.self.Socket, "-name", "host/" + name}
			if plane {
				if _, err := h.Run(ctx, "test", "-e", "/run/netns/weft"); err != nil {
					continue // its agent makes it
				}
				command = append([]string{"ip", "netns", "exec", "weft"}, command...)
			}
			var err error
			if l.process, err = h.Host.Start("prober", command[0], command[1:], nil); err != nil {
				return err
			}
			c.mu.Lock()
			c.lives = append(c.lives, l)
			c.mu.Unlock()
		}
	}
	return nil
}

// note adds to what is told of a failure.
func (c *churned) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.did = append(c.did, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	if len(c.did) > 200 {
		c.did = c.did[1:]
	}
}
