package lab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// HostConfig says what a host is like. The zero value is a host with an IPv4
// address and no way out of the lab's network.
type HostConfig struct {
	IPv6       bool         // an address of 2001:db8::/64 too; not behind a router
	MTU        int          // of eth0; 0: 1500
	Gateway    *Host        // default route; a host behind a router has it as gateway
	Resolvers  []netip.Addr // of the host's own resolv.conf; none: it is empty
	PrivateEtc bool         // a writable /etc of its own, in memory
	Env        []string     // for all its processes, NAME=VALUE; see Host.Start for the others
	// Daemons are starts of command lines, without the program's directory, that may
	// outlive who started them, each once: Close ends them. Everything else that is left
	// is an error.
	Daemons []string
}

// Host is a machine of the lab: network, mount, host name and process namespaces
// of its own, with eth0 as its link to the others. Methods are for any goroutine.
type Host struct {
	lab    *Lab
	cfg    HostConfig
	name   string
	dir    string // scratch: logs, home
	index  int    // of its addresses
	router *Router
	port   *port // on the switch; the router's if behind one

	addr, addr6 netip.Addr

	mu    sync.Mutex
	boot  *boot // nil while it is down
	veths int
	slow  []*SlowDisk // of this boot
}

// boot is what a reboot replaces.
type boot struct {
	thread     *thread
	namespaces *namespaces
	netns      *netns.Handle
	init       *exec.Cmd // process 1 of the host
	initDone   chan struct{}
}

// initScript is process 1 of a host. It mounts the host's /proc, says so, and then
// does what every process 1 must: reap orphans, which a shell does while it waits
// for a child, so it always has one. All processes of the host end with process 1,
// wherever they moved to, and it ends with the thread that started it.
const (
	initScript = `mount -n -t proc -o nosuid,nodev,noexec proc /proc || exit 1
echo up >&3
exec 3>&-
while true; do ` + initChild + ` & wait; done`
	initChild = "sleep 2147483646"
)

// start makes the host's namespaces, and its processes' ancestor in them.
func (h *Host) start() error {
	b := &boot{thread: newThread(), initDone: make(chan struct{})}
	err := b.thread.do(func() error { return b.unshare(h) })
	if err == nil {
		err = b.startInit(h)
	}
	if err == nil {
		err = h.plug(b)
	}
	if err != nil {
		b.end()
		return fmt.Errorf("host %s: %w", h.name, err)
	}
	h.mu.Lock()
	h.boot = b
	h.mu.Unlock()
	if !h.behind() {
		return nil
	}
	err = errors.Join(h.awaitLink("eth0"), h.router.awaitInside(h))
	if err != nil {
		h.stop()
		return fmt.Errorf("host %s: %w", h.name, err)
	}
	return nil
}

// unshare moves the calling thread into new namespaces.
func (b *boot) unshare(h *Host) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if b.namespaces, err = current(); err != nil {
		return err
	}
	if b.netns, err = netns.Current(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(h.name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	for _, s := range h.sysctls() {
		if err := os.WriteFile("/proc/sys/"+s[0], []byte(s[1]), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return mountPrivate(h.dir, h.cfg.PrivateEtc, h.cfg.Resolvers)
}

// sysctls keep the network quiet and its addresses usable at once. Files that do
// not exist are passed over: IPv6 may be off.
func (h *Host) sysctls() [][2]string {
	forward := "0"
	if h.router != nil && h.router.self == h {
		forward = "1"
	}
	s := [][2]string{{"net/ipv4/ip_forward", forward}}
	for _, conf := range []string{"all", "default"} {
		p := "net/ipv6/conf/" + conf
		s = append(s, [2]string{p + "/accept_dad", "0"}, [2]string{p + "/accept_ra", "0"}, [2]string{p + "/router_solicitations", "0"})
	}
	return s
}

// startInit starts the host's process 1 in a process namespace of its own, waits
// until it has mounted /proc, and lets the thread's next children be born there.
func (b *boot) startInit(h *Host) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	var complaint strings.Builder
	b.init = exec.Command("/bin/sh", "-c", initScript, "lab-host-"+h.name)
	b.init.ExtraFiles = []*os.File{w}
	b.init.Env = h.lab.environ(h)
	b.init.Dir = "/"
	b.init.Stderr = &complaint
	b.init.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL, Cloneflags: unix.CLONE_NEWPID}
	err = b.thread.do(b.init.Start)
	w.Close()
	if err != nil {
		b.init = nil
		return fmt.Errorf("start its first process: %w", err)
	}
	go func() {
		defer close(b.initDone)
		_ = b.init.Wait() // it is killed, or has said why it ended
	}()
	if up, err := io.ReadAll(r); err != nil || len(up) == 0 {
		_ = b.init.Process.Kill() // it has ended, or ought to
		<-b.initDone
		return fmt.Errorf("its first process ended: %s", strings.TrimSpace(complaint.String()))
	}
	pids, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", b.init.Process.Pid))
	if err != nil {
		return fmt.Errorf("open its process namespace: %w", err)
	}
	defer pids.Close()
	err = b.thread.do(func() error { return unix.Setns(int(pids.Fd()), unix.CLONE_NEWPID) })
	if err != nil {
		return fmt.Errorf("enter its process namespace: %w", err)
	}
	return nil
}

// end takes down everything of the host. The kernel ends what runs in the process
// namespace with its process 1, and removes the other namespaces after that.
func (b *boot) end() {
	if b.init != nil {
		_ = b.init.Process.Kill() // it may have ended already
		<-b.initDone
	}
	b.thread.close()
	if b.namespaces != nil {
		b.namespaces.close()
	}
	b.netns.Close()
}

// running returns the host's boot.
func (h *Host) running() (*boot, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.boot == nil {
		return nil, fmt.Errorf("host %s is down: %w", h.name, os.ErrClosed)
	}
	return h.boot, nil
}

// stop ends the host.
func (h *Host) stop() {
	h.hurry()
	h.mu.Lock()
	b, slow := h.boot, h.slow
	h.boot, h.slow = nil, nil
	h.mu.Unlock()
	if b == nil {
		return
	}
	b.end()
	for _, d := range slow {
		if err := d.end(); err != nil {
			h.lab.log.Error("host down", "host", h.name, "err", err)
		}
	}
	if !h.behind() {
		h.port.detach()
	}
}

// Name is the host's name, in the lab and as its own host name.
func (h *Host) Name() string { return h.name }

// Addr is the host's IPv4 address: of 192.0.2.0/24, behind a router of
// 198.51.100.0/24.
func (h *Host) Addr() netip.Addr { return h.addr }

// Addr6 is the host's IPv6 address, invalid if it has none.
func (h *Host) Addr6() netip.Addr { return h.addr6 }

// Dir is the host's scratch directory, which it shares with the rest of the
// machine. It outlives reboots and ends with the lab.
func (h *Host) Dir() string { return h.dir }

// Pid is the id, outside, of the host's process 1.
func (h *Host) Pid() int {
	b, err := h.running()
	if err != nil {
		return 0
	}
	return b.init.Process.Pid
}

// Enter is the start of a command line by which a person enters the host.
func (h *Host) Enter() string { return fmt.Sprintf("nsenter -t %d -n -m -u -p", h.Pid()) }

// NetnsPath is a file by which the host's network namespace can be opened.
func (h *Host) NetnsPath() string { return fmt.Sprintf("/proc/%d/ns/net", h.Pid()) }

// Do calls fn on a thread in the host's network namespace; the file system is the
// machine's. See netns.Handle.Do.
func (h *Host) Do(fn func() error) error {
	b, err := h.running()
	if err != nil {
		return err
	}
	return b.netns.Do(fn)
}

// DoInside calls fn on a thread in the host's network, mount and host name
// namespaces. There /proc shows the host's processes, which the thread is not one
// of, so /proc/self leads nowhere; relative paths start at the root.
func (h *Host) DoInside(fn func() error) error {
	b, err := h.running()
	if err != nil {
		return err
	}
	return inside(b.namespaces, fn)
}

// Netns opens the host's network namespace. The caller closes it.
func (h *Host) Netns() (*netns.Handle, error) { return netns.OpenPath(h.NetnsPath()) }

// ReadFile reads a file as the host's processes see it.
func (h *Host) ReadFile(path string) (content []byte, err error) {
	err = h.DoInside(func() (err error) {
		content, err = os.ReadFile(path)
		return err
	})
	return content, err
}

// WriteFile writes a file where the host's processes see it. Outside /run, and
// /etc with PrivateEtc, that is the machine's own file system.
func (h *Host) WriteFile(path string, content []byte, mode os.FileMode) error {
	return h.DoInside(func() error { return os.WriteFile(path, content, mode) })
}

// leftover is a process of the host that is not one of the lab's own helpers.
type leftover struct {
	pid  int // on the host
	line string
}

func (l leftover) String() string { return fmt.Sprintf("%d %s", l.pid, l.line) }

// leftovers lists the processes of the host that are not the lab's own helpers.
func (h *Host) leftovers() (list []leftover, err error) {
	err = h.DoInside(func() error {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == 1 {
				continue
			}
			if line, ok := commandLine(pid); ok && line != initChild {
				list = append(list, leftover{pid, line})
			}
		}
		return nil
	})
	return list, err
}

// commandLine is a process's command as /proc shows it; ok is false for one that
// has ended.
func commandLine(pid int) (line string, ok bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return "", false
	}
	// The state follows the name, which is in parentheses and may hold some.
	_, state, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
	if strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X") {
		return "", false
	}
	f, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", false
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " ")), err == nil
}
