package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPrivate gives the calling thread's new mount namespace what a host has to
// itself: /run, /sys as its network namespace shows it, /etc/resolv.conf, and all
// of /etc if asked. The rest of the file system is the machine's. /proc comes later,
// from the first process of the host's pid namespace.
func mountPrivate(scratch string, privateEtc bool, resolvers []netip.Addr) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mountRun(); err != nil {
		return err
	}
	if err := mountSys(); err != nil {
		return err
	}
	target, err := resolvConf()
	if err != nil {
		return err
	}
	// /run is ours to make the file in. Elsewhere it would be left on the machine:
	// then /etc has to be a copy.
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) && !strings.HasPrefix(target, "/run/") && !strings.HasPrefix(target, "/var/run/") {
		privateEtc = true
	}
	var content strings.Builder
	for _, r := range resolvers {
		fmt.Fprintf(&content, "nameserver %s\n", r)
	}
	if privateEtc {
		return mountEtc(scratch, content.String())
	}
	own := filepath.Join(scratch, "resolv.conf")
	if err := os.WriteFile(own, []byte(content.String()), 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := ensureFile(target); err != nil {
		return err
	}
	return mount(own, target, "", unix.MS_BIND, "")
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype+source, target, err)
	}
	return nil
}

// mountRun mounts an empty /run with the directories that programs take for
// granted, also as /var/run where that is not a link to it.
func mountRun() error {
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"/run/netns", "/run/lock"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	// As on Debian: anybody may lock.
	if err := os.Chmod("/run/lock", 0o777|os.ModeSticky); err != nil {
		return err
	}
	run, errRun := os.Stat("/run")
	varRun, err := os.Stat("/var/run")
	if errors.Is(err, os.ErrNotExist) || errRun == nil && os.SameFile(run, varRun) {
		return errRun
	}
	return mount("/run", "/var/run", "", unix.MS_BIND|unix.MS_REC, "")
}

// mountSys mounts a /sys that shows the links of this network namespace, and puts
// the control groups back into it.
func mountSys() error {
	cgroup, err := os.Open("/sys/fs/cgroup")
	if err == nil {
		defer cgroup.Close()
	}
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if cgroup == nil {
		return nil
	}
	return mount(fmt.Sprintf("/proc/self/fd/%d", cgroup.Fd()), "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, "")
}

// resolvConf follows /etc/resolv.conf to the file that it names. The file need not
// exist; systemd-resolved's is in /run, which is new.
func resolvConf() (string, error) {
	path := "/etc/resolv.conf"
	for range 8 {
		link, err := os.Readlink(path)
		if err != nil {
			return path, nil // not a link, or nothing at all
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		path = link
	}
	return "", errors.New("/etc/resolv.conf is a chain of too many links")
}

func ensureFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// mountEtc makes /etc writable for this host alone: what is written stays in
// memory. resolv.conf becomes a plain file, so that programs may replace it.
func mountEtc(scratch, resolv string) error {
	// The upper layer may not lie on an overlay, as /tmp in a container would.
	layers := filepath.Join(scratch, "etc")
	upper, work := filepath.Join(layers, "upper"), filepath.Join(layers, "work")
	if err := os.Mkdir(layers, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := mount("tmpfs", layers, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return err
	}
	if err := mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return err
	}
	if err := os.Remove("/etc/resolv.conf"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile("/etc/resolv.conf", []byte(resolv), 0o644)
}
