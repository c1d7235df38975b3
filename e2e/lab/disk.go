package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disk is a small file system that a host has to itself, in memory, to be filled
// up. Only the host's processes see what is in it; it ends with the host's boot.
type Disk struct {
	host    *Host
	dir     string
	ballast string
}

// MountDisk mounts a file system of size bytes on dir, which is made if it is not
// there; what is in it is copied. What writes to it when it is full gets ENOSPC, as on
// a real one.
func (h *Host) MountDisk(ctx context.Context, dir string, size int64) (*Disk, error) {
	d := &Disk{host: h, dir: dir, ballast: filepath.Join(dir, ".ballast")}
	if err := d.mount(ctx, size); err != nil {
		return nil, fmt.Errorf("mount a disk on %s: %w", h.name, err)
	}
	return d, nil
}

func (d *Disk) mount(ctx context.Context, size int64) error {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	// It takes its place when it is complete.
	aside, err := os.MkdirTemp(d.host.dir, "disk-")
	if err != nil {
		return err
	}
	err = d.host.DoInside(func() error {
		return mount("tmpfs", aside, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=755,size=%d", size))
	})
	if err != nil {
		return err
	}
	if _, err := d.host.Run(ctx, "cp", "-a", d.dir+"/.", aside); err != nil {
		return err
	}
	return d.host.DoInside(func() error { return mount(aside, d.dir, "", unix.MS_MOVE, "") })
}

// Space is how many bytes of the disk are free, and how many there are.
func (d *Disk) Space() (free, size int64, err error) {
	err = d.host.DoInside(func() error {
		var s unix.Statfs_t
		if err := unix.Statfs(d.dir, &s); err != nil {
			return fmt.Errorf("disk %s of %s: %w", d.dir, d.host.name, err)
		}
		free, size = int64(s.Bavail)*s.Bsize, int64(s.Blocks)*s.Bsize
		return nil
	})
	return free, size, err
}

// Fill takes all space but leave bytes, until Free. It can be called again: what was
// freed meanwhile is taken too. Of what it leaves, others may have taken some when it
// returns.
func (d *Disk) Fill(leave int64) error {
	free, _, err := d.Space()
	if err != nil {
		return err
	}
	err = d.host.DoInside(func() error {
		f, err := os.OpenFile(d.ballast, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		zeros := make([]byte, 64<<10)
		for want := free - leave; want > 0; want -= int64(len(zeros)) {
			if _, err := f.Write(zeros[:min(want, int64(len(zeros)))]); errors.Is(err, unix.ENOSPC) {
				return nil
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("fill disk %s of %s: %w", d.dir, d.host.name, err)
	}
	return nil
}

// Free gives back what Fill took.
func (d *Disk) Free() error {
	err := d.host.DoInside(func() error { return os.Remove(d.ballast) })
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("free disk %s of %s: %w", d.dir, d.host.name, err)
	}
	return nil
}
