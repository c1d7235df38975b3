// Package lab is a network of hosts on one Linux machine, to try real programs in.
//
// A host is a set of namespaces without names: network, mount (with its own /run
// and resolv.conf), host name, processes. Hosts are joined by a switch in this
// process that delays, loses, caps and cuts what passes; routers put hosts behind
// NAT; plain veth links are there for throughput:
//
//	laptop ─┐
//	phone  ─┴ router (NAT) ──┐
//	                         ├── Switch ──┬── ams
//	                 fra ────┘            └── nrt
//	                  └──────── veth ──────────┘
//
// Processes are real ones. They and all else end with the lab's process, also when
// that is killed: namespaces, TAPs and mounts have no other owner, and each host's
// process 1 dies with the thread that started it. Outside, nothing is ever made but
// a scratch directory.
//
// What the programs are and what they must do is not this package's business: see
// e2e/world. It needs root, a Linux of 5.8 or later, /dev/net/tun, and mount, sh and
// sleep; for PrivateEtc overlayfs, for routers nftables.
package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says where a lab is. The zero value works.
type Config struct {
	// Dir is where the lab makes its scratch directory. In the end it removes that,
	// and Dir if it is empty then. What a lab that was killed left goes when the next
	// one is made in the same Dir. "": weft-lab in the directory for temporary files.
	Dir   string
	Log   *slog.Logger  // one line per effect; nil: none
	Seed  uint64        // of the losses; 0: a random one, see Lab.Seed
	Grace time.Duration // how long Stop and Close wait for a process; 0: 15 s
}

// Lab is a set of hosts and what is between them. Methods are for any goroutine.
type Lab struct {
	cfg     Config
	log     *slog.Logger
	scratch *scratch
	sw      *Switch

	mu        sync.Mutex
	hosts     []*Host
	processes []*Process // in the order of their starts
	addresses int        // given out of 192.0.2.0/24
	veths     int
	keep      bool
	closed    bool
}

// Check returns nil if a lab can be made here, or else a sentence that says what it
// lacks, for a test to skip with.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab makes network namespaces, which needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("the lab's hosts are joined by TAPs: %w", err)
	}
	return nil
}

// New makes an empty lab. Close it.
func New(cfg Config) (*Lab, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(os.TempDir(), "weft-lab")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
	}
	if cfg.Grace == 0 {
		cfg.Grace = 15 * time.Second
	}
	scratch, err := newScratch(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Log.Info("lab made", "dir", scratch.dir, "seed", cfg.Seed)
	return &Lab{cfg: cfg, log: cfg.Log, scratch: scratch, sw: newSwitch(cfg.Seed)}, nil
}

// Dir is the lab's scratch directory: in it are the hosts' directories with their
// logs, and callers may put their own things there.
func (l *Lab) Dir() string { return l.scratch.dir }

// Seed is what the switch's losses come from: the same seed and the same packets
// give the same losses.
func (l *Lab) Seed() uint64 { return l.cfg.Seed }

// Switch is what the hosts are plugged into.
func (l *Lab) Switch() *Switch { return l.sw }

// KeepDir lets Close leave the scratch directory, for its logs. The next lab in the
// same place removes it.
func (l *Lab) KeepDir() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep = true
}

// names are host names that also fit a directory and a link's name.
var names = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$`)

// Host makes a host and plugs it into the switch. name is a label (RFC 1123),
// unique in the lab. Addresses are given out in order, the first host has 192.0.2.1.
func (l *Lab) Host(name string, cfg HostConfig) (*Host, error) {
	return l.add(name, cfg, nil)
}

// add makes a host, on the switch or behind a router or as one.
func (l *Lab) add(name string, cfg HostConfig, r *Router) (*Host, error) {
	h := &Host{lab: l, cfg: cfg, name: name, dir: filepath.Join(l.Dir(), name), router: r}
	if r != nil && r.self == nil {
		r.self = h
	}
	if err := l.place(h); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(h.dir, "home"), 0o755); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	if err := h.start(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	closed := l.closed
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	if closed {
		h.stop()
		return nil, fmt.Errorf("host %s: the lab is closed", name)
	}
	l.log.Info("host up", "host", name, "addr", h.addr)
	return h, nil
}

// place gives a host its addresses and its port.
func (l *Lab) place(h *Host) (err error) {
	if !names.MatchString(h.name) {
		return fmt.Errorf("host %q: a name has letters, digits and hyphens, at most 42", h.name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("host %s: the lab is closed", h.name)
	}
	if h.behind() {
		h.port = h.router.self.port
		if err := l.sw.alias(h.name, h.port); err != nil {
			return err
		}
		h.router.inside++
		h.index = h.router.inside + 1
		h.addr = nth(insideRouter, h.index)
	} else {
		if h.port, err = l.sw.add(h.name); err != nil {
			return err
		}
		l.addresses++
		h.index = l.addresses
		h.addr = nth(netip.AddrFrom4([4]byte{192, 0, 2, 0}), h.index)
		if h.cfg.IPv6 {
			h.addr6 = nth(netip.MustParseAddr("2001:db8::"), h.index)
		}
	}
	if h.index > 254 {
		return fmt.Errorf("host %s: all 254 addresses of its network are taken", h.name)
	}
	return nil
}

// nth returns the address of base's /24 or /64 that ends in i.
func nth(base netip.Addr, i int) netip.Addr {
	b := base.AsSlice()
	b[len(b)-1] = byte(i)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// started notes a process, to be ended by Close.
func (l *Lab) started(p *Process) {
	l.mu.Lock()
	l.processes = append(l.processes, p)
	l.mu.Unlock()
	l.log.Info("process started", "host", p.host.name, "name", p.name, "pid", p.Pid())
}

// environ is the environment of a host's processes.
func (l *Lab) environ(h *Host) []string {
	env := []string{
		"PATH=" + strings.Join(append([]string{os.Getenv("PATH")}, adminDirs[:]...), ":"),
		"HOME=" + filepath.Join(h.dir, "home"),
		"LANG=C.UTF-8",
	}
	for _, name := range []string{"TMPDIR", "GOCOVERDIR", "GORACE", "GOTRACEBACK", "GODEBUG"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return append(env, h.cfg.Env...)
}

// Tails returns the end of each process's log, for the report of a failure.
func (l *Lab) Tails() string {
	l.mu.Lock()
	processes := slices.Clone(l.processes)
	l.mu.Unlock()
	var b strings.Builder
	for _, p := range processes {
		lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
		if n := len(lines); n > 12 {
			lines = lines[n-12:]
		}
		state := "running"
		if p.Exited() {
			state = fmt.Sprintf("ended: %v", p.cmd.ProcessState)
		}
		fmt.Fprintf(&b, "--- %s on %s (%s)\n%s\n", p.name, p.host.name, state, strings.Join(lines, "\n"))
	}
	return b.String()
}

// Close ends the processes, the last started first, then the hosts, and removes the
// scratch directory. The error names each process that had to be killed and each
// that somebody else left running, and is no daemon of HostConfig. It is idempotent.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	processes, hosts, keep := l.processes, l.hosts, l.keep
	l.mu.Unlock()

	for _, h := range hosts {
		h.hurry()
	}
	var errs []error
	for _, p := range slices.Backward(processes) {
		if !p.Exited() {
			errs = append(errs, p.Stop())
		}
	}
	for _, h := range hosts {
		errs = append(errs, h.endDaemons(), h.checkQuiet())
	}
	for _, h := range slices.Backward(hosts) {
		h.stop()
	}
	l.sw.close()
	errs = append(errs, l.scratch.close(keep))
	err := errors.Join(errs...)
	l.log.Info("lab closed", "err", err)
	return err
}
