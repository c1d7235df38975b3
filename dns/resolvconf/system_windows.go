package resolvconf

import (
	"errors"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

// tryLock takes a lock on f that other processes respect. ok is false while one of
// them holds it.
func tryLock(f *os.File) (ok bool, err error) {
	const whole = 1
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, whole, 0, new(windows.Overlapped))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
		return false, nil
	}
	return err == nil, err
}

// keepOwner does nothing: a file in a directory of ours inherits what it needs.
func keepOwner(*os.File, os.FileInfo) {}

// syncDir does nothing: directories cannot be synced here.
func syncDir(string) error { return nil }

// detach lets cmd outlive the console of this process.
func detach(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.CreationFlags |= windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS
}
