package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	hostRoot = "/host" // the host's files
	newRoot  = "/new"  // the same, and what is changed stays in memory
)

// guest is the machine's first process. It does not return.
func guest() {
	says, err := bootUp()
	if says != nil {
		var code int
		if err == nil {
			code, err = work(says)
		}
		if err == nil {
			say(says, sayExit, []byte{byte(code)})
		} else {
			say(says, sayFailed, []byte(err.Error()))
		}
		says.Close() // which waits until all is written
	} else {
		fmt.Println("init:", err) // to the console
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // which QEMU is told not to do
	select {}
}

type mount struct{ source, target, kind, data string } // kind "move": source is a mount

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		flags, kind := uintptr(0), m.kind
		if kind == "move" {
			flags, kind = unix.MS_MOVE, ""
		}
		if err := unix.Mount(m.source, m.target, kind, flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// bootUp makes the machine one on which programs can run. The port is nil if it
// could not even be opened.
func bootUp() (says *os.File, err error) {
	if err := mountAll([]mount{
		{"proc", "/proc", "proc", ""}, {"sys", "/sys", "sysfs", ""}, {"dev", "/dev", "devtmpfs", ""},
	}); err != nil {
		return nil, err
	}
	if says, err = openPort(); err != nil {
		return nil, err
	}
	if err := mountAll([]mount{{"host", hostRoot, "virtiofs", ""}, {"ram", "/ram", "tmpfs", ""}}); err != nil {
		return says, err
	}
	if err := modprobe(hostRoot, "overlay"); err != nil {
		return says, err
	}
	for _, d := range []string{"/ram/upper", "/ram/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return says, err
		}
	}
	mounts := []mount{{"root", newRoot, "overlay", "lowerdir=" + hostRoot + ",upperdir=/ram/upper,workdir=/ram/work"}}
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		mounts = append(mounts, mount{d, newRoot + d, "move", ""})
	}
	if err := mountAll(mounts); err != nil {
		return says, err
	}
	if err := enterRoot(); err != nil {
		return says, err
	}
	if err := mountAll([]mount{
		{"pts", "/dev/pts", "devpts", ""}, {"shm", "/dev/shm", "tmpfs", ""}, {"run", "/run", "tmpfs", ""},
		{"cgroup", "/sys/fs/cgroup", "cgroup2", ""},
	}); err != nil {
		return says, err
	}
	// Whatever the kernel misses from here on it has loaded.
	self, err := argument("weft.self")
	if err == nil {
		err = os.WriteFile("/proc/sys/kernel/modprobe", []byte(self), 0)
	}
	if err != nil {
		return says, err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err == nil {
		err = modprobe("", "tun") // /dev/net/tun is looked at before it is opened
	}
	return says, err
}

// enterRoot makes the new root the root of everything, not of this process alone: who
// enters a mount namespace comes out at its root.
func enterRoot() error {
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to the root: %w", newRoot, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// openPort waits for the port: the kernel makes it when QEMU has told it the name.
func openPort() (*os.File, error) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		names, err := filepath.Glob("/dev/vport*p1")
		if err == nil && len(names) == 1 {
			return os.OpenFile(names[0], os.O_RDWR, 0)
		}
		if time.Now().After(deadline) {
			return nil, errors.New("the port to the host does not appear")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// work does the job in the host's files.
func work(says io.Writer) (code int, err error) {
	path, err := argument("weft.job")
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var j job
	if err := json.Unmarshal(b, &j); err != nil {
		return 0, fmt.Errorf("job: %w", err)
	}
	var out sayer
	out.to = says
	cmd := exec.Command(j.Args[0], j.Args[1:]...)
	cmd.Dir, cmd.Env = j.Dir, append(j.Env, "WEFT_VM=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = out.as(sayStdout), out.as(sayStderr)
	cmd.WaitDelay = 2 * time.Second // for what it left behind and that holds its output
	err = cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		if code = exit.ExitCode(); code < 0 {
			code = 128 + int(exit.Sys().(syscall.WaitStatus).Signal())
		}
		return code, nil
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return 0, err
}

// sayer makes one stream of two.
type sayer struct {
	mu sync.Mutex
	to io.Writer
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func (s *sayer) as(what byte) io.Writer {
	return writerFunc(func(b []byte) (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for done := 0; done < len(b); {
			n := min(len(b)-done, maxSay)
			if err := say(s.to, what, b[done:done+n]); err != nil {
				return done, err
			}
			done += n
		}
		return len(b), nil
	})
}

// argument reads one of the kernel's command line.
func argument(name string) (string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	for word := range strings.FieldsSeq(string(line)) {
		if value, found := strings.CutPrefix(word, name+"="); found {
			return value, nil
		}
	}
	return "", fmt.Errorf("the kernel's command line has no %s", name)
}

// loadModule is what the kernel calls when it misses something.
func loadModule(name string) error { return modprobe("", name) }

// modprobe loads a module from the host's files, which are below root.
func modprobe(root, name string) error {
	dir, err := argument("weft.dir")
	if err != nil {
		return err
	}
	index, err := os.ReadFile(root + dir + "/" + indexFile)
	if err != nil {
		return err
	}
	files := lookup(index, name)
	if files == nil {
		files = lookup(index, moduleName(name))
	}
	if files == nil {
		return fmt.Errorf("module %s: %w", name, os.ErrNotExist)
	}
	for _, path := range files {
		f, err := os.Open(root + path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}
