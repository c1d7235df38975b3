package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDiskFull(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	h := newHost(t, l, "a", HostConfig{})
	dir := filepath.Join(l.Dir(), "data")
	must(t, os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "before"), []byte("kept"), 0o600))
	d, err := h.MountDisk(t.Context(), dir, 1<<20)
	must(t, err)
	if b, err := h.ReadFile(filepath.Join(dir, "before")); string(b) != "kept" || err != nil {
		t.Errorf("what was there before is %q, %v", b, err)
	}
	must(t, h.DoInside(func() error { return os.Remove(filepath.Join(dir, "before")) }))
	write := func(bytes string) string {
		r, err := h.Exec(t.Context(), Command{Path: "sh", Args: []string{"-c", "head -c " + bytes + " /dev/zero >" + dir + "/x"}})
		must(t, err)
		return r.Stderr
	}
	if said := write("500000"); said != "" {
		t.Errorf("on an empty disk: %s", said)
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
		t.Error("the lab sees what is on the host's disk")
	}
	must(t, d.Fill(0))
	if free, size, err := d.Space(); free != 0 || size != 1<<20 || err != nil {
		t.Errorf("full disk: %d of %d bytes free, %v", free, size, err)
	}
	if said := write("600000"); !strings.Contains(said, "No space left on device") {
		t.Errorf("on a full disk: %q", said)
	}
	must(t, d.Free(), d.Free())
	must(t, d.Fill(300_000))
	if free, _, err := d.Space(); free < 290_000 || free > 300_000 || err != nil {
		t.Errorf("%d bytes free, %v, want nearly 300000", free, err)
	}
	must(t, d.Free())
	if said := write("600000"); said != "" {
		t.Errorf("with space again: %s", said)
	}
}

func TestSlowDisk(t *testing.T) {
	t.Parallel()
	l := newLab(t, "python3")
	if err := CheckSlowDisk(); err != nil {
		t.Skip(err)
	}
	h := newHost(t, l, "a", HostConfig{})
	dir := filepath.Join(l.Dir(), "data")
	d, err := h.MountSlowDisk(dir)
	must(t, err)
	// What etcd does to a file: grow it, map it, write past the map, sync, lock, rename.
	const program = `
import fcntl, mmap, os, sys, time
name = sys.argv[1] + "/x"
fd = os.open(name + ".tmp", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.ftruncate(fd, 1 << 16)
os.posix_fallocate(fd, 0, 1 << 17)
m = mmap.mmap(fd, 1 << 16, mmap.MAP_SHARED, mmap.PROT_READ)
assert m[5] == 0
os.pwrite(fd, b"hello", 5)
began = time.monotonic()
os.fsync(fd); os.fdatasync(fd)
assert m[5:10] == b"hello", m[5:10]
os.rename(name + ".tmp", name)
print(time.monotonic() - began >= 0.3)
`
	for _, tt := range []struct {
		delay time.Duration
		want  string
	}{{0, "False\n"}, {150 * time.Millisecond, "True\n"}} {
		d.SetSync(tt.delay)
		out, err := h.Run(t.Context(), "python3", "-c", program, dir)
		must(t, err)
		if out != tt.want {
			t.Errorf("with a delay of %s, it was slow: %q", tt.delay, out)
		}
	}
	if all, delayed, waited := d.Syncs(); all != 4 || delayed != 2 || waited < 300*time.Millisecond {
		t.Errorf("%d syncs, %d of them delayed by %s altogether, want 4, 2 and 300ms", all, delayed, waited)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "x")); len(b) != 1<<17 || string(b[5:10]) != "hello" || err != nil {
		t.Errorf("the lab sees a file of %d bytes, %v", len(b), err)
	}
	// A process in the middle of a sync ends with the lab all the same.
	d.SetSync(time.Hour)
	_, err = h.Start("stuck", "sync", []string{filepath.Join(dir, "x")}, nil)
	must(t, err)
	await(t, "the process to wait", func() error {
		if _, delayed, _ := d.Syncs(); delayed < 3 {
			return os.ErrNotExist
		}
		return nil
	})
}

// What is stopped is seen to be.
func TestState(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	h := newHost(t, l, "a", HostConfig{})
	p, err := h.Start("p", "sleep", []string{"1000"}, nil)
	must(t, err)
	for _, tt := range []struct {
		do   func() error
		want byte
	}{{p.Pause, 'T'}, {p.Continue, 'S'}} {
		must(t, tt.do())
		await(t, "the state "+string(tt.want), func() error {
			if s, err := p.State(); err != nil || s != tt.want {
				return os.ErrNotExist
			}
			return nil
		})
	}
	must(t, p.Kill())
	if s, err := p.State(); err == nil {
		t.Errorf("a process that has ended is in state %c", s)
	}
}
