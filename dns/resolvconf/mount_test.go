package resolvconf

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A file that something is mounted on cannot be replaced, only written.
func TestBindMountedFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	cfg := config(t)
	cfg.write(t, resolvConf, "")
	cfg.write(t, "/run/net/resolv.conf", original)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends, and its mounts with it
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Errorf("make mounts private: %v", err)
			return
		}
		if err := unix.Mount(cfg.path("/run/net/resolv.conf"), cfg.path(resolvConf), "", unix.MS_BIND, ""); err != nil {
			t.Errorf("bind: %v", err)
			return
		}
		if err := os.Rename(cfg.path("/etc/resolv.conf"), cfg.path("/etc/x")); !errors.Is(err, unix.EBUSY) {
			t.Errorf("the mount does not stand in the way: %v", err)
		}
		if _, _, err := Set(t.Context(), cfg); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(cfg.path(resolvConf)); !strings.Contains(string(got), "\nnameserver 127.0.0.153\n") {
			t.Errorf("file %q", got)
		}
		if _, err := Recover(t.Context(), cfg); err != nil {
			t.Error(err)
		}
		if got, _ := os.ReadFile(cfg.path(resolvConf)); string(got) != original {
			t.Errorf("restored %q", got)
		}
	}()
	<-done
	clean(t, cfg)
}
