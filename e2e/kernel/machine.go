package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// machine is one run of a program in a virtual machine.
type machine struct {
	dir            string // what pack left
	job            job
	stdout, stderr io.Writer
}

// memory of the machine, in MB. It is taken from the host as it is used.
const memory = 2048

// run returns the program's exit code. When it returns, all that it started has
// ended; should this process be killed, that ends too.
func (m machine) run(ctx context.Context) (code int, err error) {
	// Whoever is told of our death is told of this thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir, err := filepath.Abs(m.dir)
	if err != nil {
		return 0, err
	}
	scratch, err := os.MkdirTemp("", "weft-vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch)
	order, err := json.Marshal(m.job)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(scratch, "job"), order, 0o600); err != nil {
		return 0, err
	}
	var log strings.Builder
	files, err := startFiles(ctx, dir, scratch, &log)
	if err != nil {
		return 0, err
	}
	defer files.end()
	qemu, said, err := startQEMU(ctx, dir, scratch, &log)
	if err != nil {
		return 0, err
	}
	defer qemu.end()
	code, err = hear(said, m.stdout, m.stderr)
	if err == nil {
		return code, nil
	}
	qemu.end()
	files.end()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	} else if errors.Is(err, io.EOF) {
		err = errors.New("the machine ended before the program")
	}
	console, _ := os.ReadFile(filepath.Join(scratch, "console"))
	return 0, fmt.Errorf("%w\n%s%s", err, log.String(), tail(console, 4000))
}

func tail(b []byte, n int) string {
	return strings.ReplaceAll(string(b[max(0, len(b)-n):]), "\r", "")
}

// child is a process that dies with this one.
type child struct{ cmd *exec.Cmd }

func start(cmd *exec.Cmd, dir string) (child, error) {
	root := filepath.Join(dir, "root")
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join([]string{
		root + "/usr/lib/x86_64-linux-gnu", root + "/lib/x86_64-linux-gnu", root + "/usr/lib/x86_64-linux-gnu/pulseaudio",
	}, ":"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return child{}, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	return child{cmd}, nil
}

// end kills it, unless it has ended, and waits. It may be called twice.
func (c child) end() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// startFiles starts the server of this machine's files. It is given its socket open,
// so nobody has to wait for it.
func startFiles(ctx context.Context, dir, scratch string, log io.Writer) (child, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(scratch, "files")})
	if err != nil {
		return child{}, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	socket, err := l.File()
	if err != nil {
		return child{}, err
	}
	defer socket.Close()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "root/usr/lib/qemu/virtiofsd"),
		"--fd=3", "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot", "-o", "log_level=err")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stdout, cmd.Stderr = log, log
	return start(cmd, dir)
}

// startQEMU starts the machine itself. What it says comes from the reader.
func startQEMU(ctx context.Context, dir, scratch string, log io.Writer) (child, io.Reader, error) {
	self, err := os.Executable()
	if err != nil {
		return child{}, nil, err
	}
	size := fmt.Sprint(memory, "M")
	share := filepath.Join(dir, "root/usr/share")
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "root/usr/bin/qemu-system-x86_64"),
		"-L", filepath.Join(share, "qemu"), "-L", filepath.Join(share, "seabios"),
		"-M", "q35", "-accel", "tcg,tb-size=512", "-cpu", cpu, "-smp", "1", "-m", size,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-object", "memory-backend-memfd,id=mem,share=on,size="+size, "-machine", "memory-backend=mem",
		"-kernel", filepath.Join(dir, kernelFile), "-initrd", filepath.Join(dir, initrdFile),
		"-serial", "file:"+filepath.Join(scratch, "console"),
		"-chardev", "socket,id=files,path="+filepath.Join(scratch, "files"), "-device", "vhost-user-fs-pci,chardev=files,tag=host",
		"-chardev", "file,id=says,path=/dev/stdout", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=says,name=says",
		"-device", "virtio-rng-pci",
		"-append", fmt.Sprintf("console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off nokaslr random.trust_cpu=on weft.dir=%s weft.self=%s weft.job=%s", dir, self, filepath.Join(scratch, "job")))
	cmd.Stderr = log
	said, err := cmd.StdoutPipe()
	if err != nil {
		return child{}, nil, err
	}
	c, err := start(cmd, dir)
	return c, said, err
}

// cpu has all that QEMU can do but one instruction, which the kernel does without:
// CMPXCHG16B in the per-CPU form was seen to spoil the flags (QEMU 7.2, a double fault
// in kmem_cache_alloc while booting).
//
// There is one of it: with two, a jump label that one changes can be an int3 to the
// other for good (an oops in __alloc_skb, seen in one of two runs).
const cpu = "max,cx16=off"
