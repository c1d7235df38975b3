package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// victimDir, set in the environment, makes the test binary a lab to be killed.
const victimDir = "LAB_TEST_VICTIM_DIR"

// victim is what such a lab tells of itself.
type victim struct {
	Before machine // before it made anything
	Pids   []int   // of all that runs in it
	Spaces []string
}

// machine is what a lab could leave in the namespaces that it was started in.
type machine struct {
	Links  []string
	Names  []string // of network namespaces
	Mounts []string
}

func look() (m machine, err error) {
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return m, err
	}
	for _, l := range links {
		m.Links = append(m.Links, l.Name())
	}
	names, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return m, err
	}
	for _, n := range names {
		m.Names = append(m.Names, n.Name())
	}
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		m.Mounts = append(m.Mounts, strings.Fields(line)[4])
	}
	return m, err
}

// beVictim makes a lab with all that a lab can have, says what it is, and waits to
// be killed. It runs in network and mount namespaces that the test made for it, so
// that nobody else changes what is compared.
func beVictim(dir string) error {
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("sysfs", "/sys", "sysfs", 0, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
	); err != nil {
		return err
	}
	var v victim
	var err error
	if v.Before, err = look(); err != nil {
		return err
	}
	l, err := New(Config{Dir: dir})
	if err != nil {
		return err
	}
	a, errA := l.Host("a", HostConfig{IPv6: true, PrivateEtc: true})
	b, errB := l.Host("b", HostConfig{})
	r, errR := l.NAT("r", NATConfig{})
	if err := errors.Join(errA, errB, errR); err != nil {
		return err
	}
	c, err := r.Host("c", HostConfig{})
	if err != nil {
		return err
	}
	if _, _, err := l.Veth(a, b); err != nil {
		return err
	}
	marker := fmt.Sprintf("1000.%d", os.Getpid())
	for _, h := range []*Host{a, b, c} {
		// One of its own, one that ignores what can be ignored, one that left for a
		// session and namespaces of its own.
		script := fmt.Sprintf("ip netns add inner; (trap '' HUP TERM; sleep %[1]s) & setsid unshare -n -p -f sleep %[1]s & ip netns exec inner sleep %[1]s", marker)
		if _, err := h.Start("sleepers", "sh", []string{"-c", script}, nil); err != nil {
			return err
		}
		v.Pids = append(v.Pids, h.Pid())
	}
	v.Pids = append(v.Pids, r.Self().Pid())
	err = Await(context.Background(), "the sleepers to sleep", 10*time.Second, func(context.Context) error {
		pids := processes(func(pid int) bool {
			line, ok := commandLine(pid)
			return ok && line == "sleep "+marker
		})
		if len(pids) != 9 {
			return fmt.Errorf("%d of 9 do", len(pids))
		}
		v.Pids = append(v.Pids, pids...)
		return nil
	})
	if err != nil {
		return err
	}
	for _, pid := range v.Pids {
		for _, kind := range []string{"net", "mnt", "pid", "uts"} {
			space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
			if err != nil {
				return err
			}
			own, err := os.Readlink("/proc/self/ns/" + kind)
			if err == nil && own != space {
				v.Spaces = append(v.Spaces, space)
			}
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		return err
	}
	_, err = os.Stdin.Read(make([]byte, 1)) // for ever
	return err
}

// processes lists the ids of the processes that match.
func processes(match func(pid int) bool) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && match(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// A lab that is killed takes all its processes along, wherever they moved to, and
// leaves no link, name, mount or namespace; its directory goes with the next lab.
func TestKilledLab(t *testing.T) {
	t.Parallel()
	need(t, "ip", "unshare")
	dir := t.TempDir()
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), victimDir+"="+dir)
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	stdin, err := child.StdinPipe()
	must(t, err)
	defer stdin.Close()
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, startPinned(t, child))
	line, err := bufio.NewReader(out).ReadString('\n')
	var v victim
	if err != nil || json.Unmarshal([]byte(line), &v) != nil {
		child.Process.Kill()
		t.Fatalf("the lab said %q: %v, %v", line, err, child.Wait())
	}
	outer := &namespaces{}
	for file, kind := range map[**os.File]string{&outer.net: "net", &outer.mnt: "mnt", &outer.uts: "uts"} {
		*file, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", child.Process.Pid, kind))
		must(t, err)
	}
	defer outer.close()
	must(t, child.Process.Kill())
	_ = child.Wait() // killed

	await(t, "the processes and namespaces of the lab to go", func() error {
		var left []string
		for _, pid := range processes(func(pid int) bool { _, alive := commandLine(pid); return alive }) {
			line, _ := commandLine(pid)
			if slices.Contains(v.Pids, pid) {
				left = append(left, fmt.Sprintf("process %d %s", pid, line))
			}
			for _, kind := range []string{"net", "mnt", "pid", "uts"} {
				if space, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); slices.Contains(v.Spaces, space) {
					left = append(left, fmt.Sprintf("%s in %s", line, space))
				}
			}
		}
		if len(left) > 0 {
			return errors.New(strings.Join(left, "\n"))
		}
		return nil
	})
	var after machine
	must(t, inside(outer, func() (err error) {
		after, err = look()
		return err
	}))
	if diff := cmp.Diff(v.Before, after); diff != "" {
		t.Errorf("left by the lab (-before +after):\n%s", diff)
	}
	checkSwept(t, dir)
}

func checkSwept(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "lab-*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("directories of the killed lab: %v, %v; want one", left, err)
	}
	l, err := New(Config{Dir: dir})
	must(t, err)
	defer l.Close()
	now, err := filepath.Glob(filepath.Join(dir, "lab-*"))
	if diff := cmp.Diff([]string{l.Dir()}, now); diff != "" || err != nil {
		t.Errorf("after the next lab's start (-want +got):\n%s%v", diff, err)
	}
	// A living lab's directory is left alone.
	other, err := New(Config{Dir: dir})
	must(t, err)
	defer other.Close()
	if _, err := os.Stat(l.Dir()); err != nil {
		t.Errorf("another lab removed that of a living one: %v", err)
	}
}

// startPinned starts a command on a thread that lives until the test ends, since
// Pdeathsig goes by the thread.
func startPinned(t *testing.T, cmd *exec.Cmd) error {
	th := newThread()
	t.Cleanup(th.close)
	return th.do(cmd.Start)
}
