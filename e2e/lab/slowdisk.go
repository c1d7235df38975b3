package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// SlowDisk is a directory in which a host's processes wait for fsync as long as they
// are made to: a file system of the lab's own (FUSE) between them and the directory.
// Everything else passes at once. It ends with the host's boot.
type SlowDisk struct {
	host *Host
	dir  string
	fd   int // of /dev/fuse
	done chan struct{}

	mu      sync.Mutex // guards what follows
	delay   time.Duration
	changed chan struct{} // closed and replaced when delay changes
	syncs   int
	delayed int
	waited  time.Duration
}

// CheckSlowDisk returns nil if MountSlowDisk can work here, or else a sentence that
// says what is missing.
func CheckSlowDisk() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("a slow disk is a FUSE file system: %w", err)
	}
	return f.Close()
}

// MountSlowDisk puts the slow disk on dir, as the host's processes see it from now
// on. Others, and the lab, see the same files in dir at once.
func (h *Host) MountSlowDisk(dir string) (*SlowDisk, error) {
	d := &SlowDisk{host: h, dir: dir, fd: -1, done: make(chan struct{}), changed: make(chan struct{})}
	if err := d.mount(); err != nil {
		if d.fd >= 0 {
			unix.Close(d.fd)
		}
		return nil, fmt.Errorf("mount a slow disk on %s: %w", h.name, err)
	}
	h.mu.Lock()
	h.slow = append(h.slow, d)
	h.mu.Unlock()
	return d, nil
}

func (d *SlowDisk) mount() (err error) {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	root, err := d.files()
	if err != nil {
		return err
	}
	if d.fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	err = d.host.DoInside(func() error {
		data := fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other,default_permissions", d.fd)
		return mount("lab", d.dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, data)
	})
	if err != nil {
		return err
	}
	// The kernel's caches are told nothing of changes from outside, so they are off.
	zero := time.Duration(0)
	opts := &fs.Options{EntryTimeout: &zero, AttrTimeout: &zero}
	opts.DisableXAttrs = true
	server, err := fuse.NewServer(fs.NewNodeFS(root, opts), fmt.Sprintf("/dev/fd/%d", d.fd), &opts.MountOptions)
	if err != nil {
		return err
	}
	go func() {
		defer close(d.done)
		server.Serve() // until the mount is gone
	}()
	return nil
}

// files is the directory as a FUSE file system.
func (d *SlowDisk) files() (fs.InodeEmbedder, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(d.dir, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", d.dir, err)
	}
	root := &fs.LoopbackRoot{Path: d.dir, Dev: uint64(st.Dev)}
	root.NewNode = func(r *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &slowNode{LoopbackNode: fs.LoopbackNode{RootData: r}, disk: d}
	}
	root.RootNode = root.NewNode(root, nil, "", &st)
	return root.RootNode, nil
}

// slowNode is a file or directory of a slow disk.
type slowNode struct {
	fs.LoopbackNode
	disk *SlowDisk
}

var _ fs.NodeFsyncer = (*slowNode)(nil)

// Fsync implements fs.NodeFsyncer; the kernel sends fdatasync here, too.
func (n *slowNode) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	n.disk.wait()
	if f, ok := f.(fs.FileFsyncer); ok {
		return f.Fsync(ctx, flags)
	}
	return 0 // a directory
}

// wait is what makes the disk slow.
func (d *SlowDisk) wait() {
	began := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	if d.delay > 0 {
		d.delayed++
	}
	for left := d.delay - time.Since(began); left > 0; left = d.delay - time.Since(began) {
		changed := d.changed
		d.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-changed:
		}
		timer.Stop()
		d.mu.Lock()
	}
	d.waited += time.Since(began)
}

// SetSync makes each fsync take as long as this, also those that wait already.
func (d *SlowDisk) SetSync(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = delay
	close(d.changed)
	d.changed = make(chan struct{})
}

// Syncs is how often the host's processes have waited for an fsync, how many of
// these were made to wait, and for how long altogether.
func (d *SlowDisk) Syncs() (all, delayed int, waited time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs, d.delayed, d.waited
}

// hurry makes the host's disks fast: a process that waits for one cannot be killed.
func (h *Host) hurry() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.slow {
		d.SetSync(0)
	}
}

// errStuck says that a file system did not end with the host that it was made for.
var errStuck = errors.New("a slow disk is still mounted")

// end waits until the mount has gone with its namespace.
func (d *SlowDisk) end() error {
	timer := time.NewTimer(5 * time.Second)
	defer timer.Stop()
	select {
	case <-d.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("%w: %s of %s", errStuck, d.dir, d.host.name)
	}
}
