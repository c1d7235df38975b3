package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What a host has to itself, and what it shares with the machine.
func TestHostIsItsOwn(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ip")
	resolver := netip.MustParseAddr("192.0.2.53")
	a := newHost(t, l, "a", HostConfig{IPv6: true, MTU: 1400, Resolvers: []netip.Addr{resolver}, Env: []string{"COLOUR=red"}})
	b := newHost(t, l, "b", HostConfig{Gateway: a})
	type facts map[string]string
	ask := func(h *Host) facts {
		return facts{
			"links":     sh(t, h, "ls /sys/class/net | xargs"),
			"host name": sh(t, h, "hostname"),
			"run":       sh(t, h, "ls /run /var/run | xargs"),
			"resolv":    sh(t, h, "cat /etc/resolv.conf"),
			"first":     sh(t, h, "tr '\\0' ' ' </proc/1/cmdline | grep -o 'lab-host-.*'"),
			"mtu":       sh(t, h, "cat /sys/class/net/eth0/mtu"),
			"default":   sh(t, h, "ip route show default"),
			"addresses": sh(t, h, "ip -o addr show scope global | awk '{print $4}' | xargs"),
			"colour":    sh(t, h, "echo $COLOUR"),
			"cgroups":   sh(t, h, "ls -A /sys/fs/cgroup | wc -l"),
			"etc":       sh(t, h, "ls -A /etc | wc -l"),
		}
	}
	entries := func(dir string) string {
		list, _ := os.ReadDir(dir)
		return strconv.Itoa(len(list))
	}
	common := facts{"run": "/run: lock netns /var/run: lock netns", "links": "eth0 lo", "cgroups": entries("/sys/fs/cgroup"), "etc": entries("/etc")}
	for _, tt := range []struct {
		host *Host
		want facts
	}{
		{a, facts{"host name": "a", "resolv": "nameserver 192.0.2.53", "first": "lab-host-a", "mtu": "1400", "default": "", "addresses": "192.0.2.1/24 2001:db8::1/64", "colour": "red"}},
		{b, facts{"host name": "b", "resolv": "", "first": "lab-host-b", "mtu": "1500", "default": "default via 192.0.2.1 dev eth0", "addresses": "192.0.2.2/24", "colour": ""}},
	} {
		for k, v := range common {
			tt.want[k] = v
		}
		if diff := cmp.Diff(tt.want, ask(tt.host)); diff != "" {
			t.Errorf("host %s (-want +got):\n%s", tt.host.Name(), diff)
		}
	}
}

// What is written to a host's /run and, if asked, /etc is there for it alone.
func TestPrivateFiles(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := newHost(t, l, "a", HostConfig{PrivateEtc: true, Resolvers: []netip.Addr{netip.IPv6Loopback()}}), newHost(t, l, "b", HostConfig{})
	before, err := os.ReadFile("/etc/resolv.conf")
	must(t, err)
	must(t, a.WriteFile("/run/one", []byte("1"), 0o600), a.WriteFile("/etc/weft-lab-test", []byte("2"), 0o600))
	// As openresolv does: a new file takes the old one's place.
	if got := sh(t, a, "cat /etc/resolv.conf; echo nameserver 192.0.2.9 >/etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf; cat /etc/resolv.conf"); got != "nameserver ::1\nnameserver 192.0.2.9" {
		t.Errorf("resolv.conf: %q", got)
	}
	for path, want := range map[string]string{"/run/one": "1", "/etc/weft-lab-test": "2"} {
		if got, err := a.ReadFile(path); string(got) != want || err != nil {
			t.Errorf("%s on a: %q, %v", path, got, err)
		}
		if _, err := b.ReadFile(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s on b: %v, want not to exist", path, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s outside: %v, want not to exist", path, err)
		}
	}
	if after, err := os.ReadFile("/etc/resolv.conf"); string(after) != string(before) || err != nil {
		t.Errorf("the machine's own resolv.conf changed: %q, %v", after, err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	newHost(t, l, "a", HostConfig{})
	for _, tt := range []struct{ name, want string }{
		{"a", "add a to the switch: the name is taken"},
		{"", `host "": a name has letters, digits and hyphens`},
		{"../b", "a name has letters, digits and hyphens"},
		{"B", "a name has letters, digits and hyphens"},
	} {
		if _, err := l.Host(tt.name, HostConfig{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("host %q: %v, want %q in it", tt.name, err, tt.want)
		}
	}
}

// A reboot ends all that ran and empties /run; files and addresses stay, and the
// others reach the host again.
func TestReboot(t *testing.T) {
	t.Parallel()
	l := newLab(t, "ping", "pgrep")
	a, b := newHost(t, l, "a", HostConfig{}), newHost(t, l, "b", HostConfig{})
	r, err := l.NAT("r", NATConfig{})
	must(t, err)
	inside, err := r.Host("inside", HostConfig{})
	must(t, err)
	for _, h := range []*Host{a, inside} {
		p, err := h.Start("p", "sh", []string{"-c", "echo one; sleep 1000 & sleep 1000"}, nil)
		must(t, err)
		must(t, p.AwaitLog(t.Context(), "one", 5*time.Second))
		sh(t, h, "touch /run/gone $HOME/kept")
		addr, pid := h.Addr(), h.Pid()
		must(t, h.Reboot())
		if !p.Exited() {
			t.Error("a process survived the reboot")
		}
		if h.Pid() == pid || h.Addr() != addr {
			t.Errorf("after the reboot: process 1 is %d, was %d; address %s, was %s", h.Pid(), pid, h.Addr(), addr)
		}
		if got := sh(t, h, "ls /run $HOME | xargs; pgrep -c sleep"); got != "/run: lock netns "+filepath.Join(h.Dir(), "home")+": kept\n1" {
			t.Errorf("after the reboot: %q", got)
		}
		sh(t, h, "ping -c 1 -W 2 "+b.Addr().String())
	}
	sh(t, b, "ping -c 1 -W 2 "+a.Addr().String())
	if err := r.Self().Reboot(); err == nil {
		t.Error("a router was rebooted")
	}
}

// Names that were looked up on the machine would be connected to from the host.
func TestDial(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a, b := newHost(t, l, "a", HostConfig{}), newHost(t, l, "b", HostConfig{IPv6: true})
	for _, tt := range []struct {
		from            *Host
		network, listen string
	}{
		{a, "tcp", "192.0.2.2:0"}, {b, "tcp", "[2001:db8::2]:0"}, {b, "unix", "/run/test.sock"},
	} {
		ln, err := b.Listen(tt.network, tt.listen)
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		conn, err := tt.from.DialContext(ctx, tt.network, ln.Addr().String())
		if err != nil {
			t.Errorf("%s %s: %v", tt.network, tt.listen, err)
		} else {
			conn.Close()
		}
		cancel()
		ln.Close()
	}
	if _, err := a.DialContext(t.Context(), "tcp", "localhost:80"); err == nil || !strings.Contains(err.Error(), "not a literal address") {
		t.Errorf("dial a name: %v", err)
	}
}

// Everything that Close has to end.
func TestCloseReports(t *testing.T) {
	t.Parallel()
	need(t)
	l, err := New(Config{Dir: t.TempDir(), Grace: 200 * time.Millisecond})
	must(t, err)
	a := newHost(t, l, "a", HostConfig{})
	order := filepath.Join(t.TempDir(), "order")
	for _, name := range []string{"first", "second"} {
		p, err := a.Start(name, "sh", []string{"-c", "trap 'echo " + name + " >>" + order + "; exit' TERM; echo up; sleep 1000 & wait"}, nil)
		must(t, err)
		must(t, p.AwaitLog(t.Context(), "up", 5*time.Second))
	}
	paused, err := a.Start("paused", "sleep", []string{"1000"}, nil)
	must(t, err)
	must(t, paused.Pause())
	stubborn, err := a.Start("stubborn", "sh", []string{"-c", "trap '' TERM; echo up; while true; do sleep 1000; done"}, nil)
	must(t, err)
	must(t, stubborn.AwaitLog(t.Context(), "up", 5*time.Second))
	sh(t, a, "setsid sleep 1234 >/dev/null 2>&1 &")
	err = l.Close()
	for _, want := range []string{"stop stubborn on a: it did not end within 200ms and was killed", "host a: left running, and killed:", "sleep 1234"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Close: %v, want %q in it", err, want)
		}
	}
	if strings.Contains(err.Error(), "paused") {
		t.Errorf("Close had to kill what was paused: %v", err)
	}
	if got, err := os.ReadFile(order); string(got) != "second\nfirst\n" || err != nil {
		t.Errorf("ended in the order %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Dir(l.Dir())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := a.Start("late", "true", nil, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Start after Close: %v", err)
	}
	if _, err := l.Host("late", HostConfig{}); err == nil {
		t.Error("a host was made after Close")
	}
}

// Processes that may outlive who started them are ended, and two of a kind are told of.
func TestDaemons(t *testing.T) {
	t.Parallel()
	need(t)
	for _, tt := range []struct {
		starts int
		says   string // in the error of Close; "": none
	}{{0, ""}, {1, ""}, {2, `host a: 2 processes "sleep 55" at once`}} {
		l, err := New(Config{Dir: t.TempDir()})
		must(t, err)
		a := newHost(t, l, "a", HostConfig{Daemons: []string{"sleep 55"}})
		for i := range tt.starts {
			sh(t, a, fmt.Sprintf("setsid /bin/sleep 555%d >/dev/null 2>&1 &", i))
		}
		await(t, "the daemons", func() error {
			if pids, err := a.Daemons(); err != nil || len(pids) != tt.starts {
				return fmt.Errorf("%v, %v", pids, err)
			}
			return nil
		})
		if err := l.Close(); tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%d daemons: Close: %v", tt.starts, err)
		}
	}
}

func TestKeepDir(t *testing.T) {
	t.Parallel()
	need(t)
	l, err := New(Config{Dir: t.TempDir()})
	must(t, err)
	l.KeepDir()
	must(t, l.Close())
	if _, err := os.Stat(l.Dir()); err != nil {
		t.Error(err)
	}
}

// What a person is told to type works.
func TestEnter(t *testing.T) {
	t.Parallel()
	l := newLab(t, "nsenter")
	a := newHost(t, l, "a", HostConfig{})
	words := strings.Fields(a.Enter() + " hostname")
	out, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput()
	if strings.TrimSpace(string(out)) != "a" || err != nil {
		t.Errorf("%v: %q, %v", words, out, err)
	}
}
