package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/mesh"
)

const resolvConf = "/etc/resolv.conf"

// hidden are the ways by which a C library asks the host to resolve names, past
// resolv.conf: the sockets of nss-resolve (systemd-resolved) and of nscd.
func hidden() []string {
	return []string{"/run/systemd/resolve", "/run/nscd", "/var/run/nscd"}
}

// furnish makes the mounts of the calling thread's namespace the machine's.
func furnish(s Settings) error {
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set host name %s: %w", s.Hostname, err)
		}
	}
	for _, dir := range hidden() {
		if err := hide(dir); err != nil {
			return err
		}
	}
	if err := mountResolvConf(s); err != nil {
		return err
	}
	return mountSys()
}

// hide lays an empty directory over dir if there is one.
func hide(dir string) error {
	st, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && !st.IsDir() {
		return nil
	}
	if err == nil {
		err = unix.Mount("none", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=64k")
	}
	if err != nil {
		return fmt.Errorf("hide %s: %w", dir, err)
	}
	return nil
}

// mountResolvConf lays the machine's own resolv.conf over the host's. Where that
// is a symbolic link (to /run/systemd/resolve/stub-resolv.conf on many a host) the
// mount goes over what it leads to; that lies in a hidden directory now and is made
// anew there.
func mountResolvConf(s Settings) error {
	target, err := followLinks(resolvConf)
	if err != nil {
		return withoutFile(err)
	}
	for _, dir := range hidden() {
		if rel, err := filepath.Rel(dir, target); err == nil && filepath.IsLocal(rel) {
			if err := os.WriteFile(target, nil, 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("make %s: %w", target, err)
			}
		}
	}
	// The name is needed for the mount alone: afterwards there is nothing to clean up,
	// whoever dies. (A file that never had one cannot be mounted.)
	f, err := os.CreateTemp("", "weft-resolv-")
	if err != nil {
		return fmt.Errorf("make the machine's resolv.conf: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(resolvConfText(s)); err != nil {
		return fmt.Errorf("write the machine's resolv.conf: %w", err)
	}
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("make the machine's resolv.conf readable: %w", err)
	}
	if err := unix.Mount(f.Name(), target, "", unix.MS_BIND, ""); err != nil {
		return withoutFile(fmt.Errorf("mount the machine's resolv.conf over %s: %w", target, err))
	}
	return nil
}

// withoutFile tells what to do about a host that has nothing to mount over: making
// the file is not ours to do.
func withoutFile(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return mesh.WithHint(err, "the host has no %s, or it is a link to nothing; make it, if only empty: touch %s", resolvConf, resolvConf)
	}
	return err
}

func resolvConfText(s Settings) string {
	text := fmt.Sprintf("nameserver %s\n", s.Resolver)
	if len(s.Search) > 0 {
		text += "search " + strings.Join(s.Search, " ") + "\n"
	}
	return text
}

// followLinks returns where path leads in the end, whether or not there is
// anything.
func followLinks(path string) (string, error) {
	start := path
	for range 40 { // the kernel's own limit
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return "", fmt.Errorf("follow %s: %w", start, err)
		}
		path = filepath.Join(dir, filepath.Base(path))
		next, err := os.Readlink(path)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, os.ErrNotExist) {
			return path, nil // no link, or nothing
		}
		if err != nil {
			return "", fmt.Errorf("follow %s: %w", start, err)
		}
		if !filepath.IsAbs(next) {
			next = filepath.Join(dir, next)
		}
		path = next
	}
	return "", fmt.Errorf("follow %s: %w", start, unix.ELOOP)
}

// mountSys lays a sysfs over /sys that shows the machine's links and not the
// host's, with the host's control groups in it.
func mountSys() error {
	const cgroups = "/sys/fs/cgroup"
	fd, err := unix.Open(cgroups, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
	}
	hasCgroups := err == nil
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the machine's /sys: %w", err)
	}
	if !hasCgroups {
		return nil
	}
	if err := unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", fd), cgroups, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount the control groups: %w", err)
	}
	return nil
}
