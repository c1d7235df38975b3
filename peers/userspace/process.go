package userspace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/weftmesh/weft/peers/netns"
)

// ProcessConfig says what device a process is for.
type ProcessConfig struct {
	Name      string // of the link
	MTU       int    // as in Config
	Namespace string // of the link, by its name
	SocketDir string // "": DefaultSocketDir
	Version   string // of the program, told to who asks
	Log       *slog.Logger
	// Ready is told once whether the device is there, and closed; nil: nobody is told.
	// Whoever started the process reads it, see Attach.
	Ready *os.File
}

const (
	// watchEvery is how often a process looks whether it is still wanted.
	watchEvery = time.Second
	// unwantedFor is how often in a row it must not be: an agent gives a namespace the
	// name back that somebody took away.
	unwantedFor = 3
)

// Serve holds a device until ctx ends (nil), and is all that its process does. It
// also ends, with nil, when it is not wanted any more: its socket was taken away (as
// wg-quick does), the namespace lost its name, or the link was deleted. It is
// configured by what comes over its socket alone, and needs nobody to live.
func Serve(ctx context.Context, c ProcessConfig) error {
	d, ns, err := c.open()
	tellReady(c.Ready, err)
	if err != nil {
		return err
	}
	defer ns.Close()
	defer d.Close()
	log := c.Log.With("link", c.Name, "namespace", c.Namespace)
	log.Info("the device's process is ready", "pid", os.Getpid())
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	unwanted := 0
	for {
		select {
		case <-ctx.Done():
			log.Info("the device's process ends: it was told to")
			return nil
		case <-d.dev.Wait():
			log.Info("the device's process ends: its link is gone")
			return nil
		case <-tick.C:
			why := c.unwanted(d, ns)
			if why == "" {
				unwanted = 0
			} else if unwanted++; unwanted >= unwantedFor {
				log.Info("the device's process ends: " + why)
				return nil
			}
		}
	}
}

func (c *ProcessConfig) open() (*Device, *netns.Handle, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	ns, err := netns.Open(c.Namespace)
	if err != nil {
		return nil, nil, fmt.Errorf("make the userspace device %s: %w", c.Name, err)
	}
	plane, err := PlaneID(ns)
	if err != nil {
		ns.Close()
		return nil, nil, err
	}
	d, err := New(Config{
		Name: c.Name, MTU: c.MTU, Plane: ns, SocketDir: c.SocketDir, Log: c.Log,
		about: &About{Protocol: Protocol, Version: c.Version, Link: c.Name, Namespace: c.Namespace, Plane: plane},
	})
	if err != nil {
		ns.Close()
		return nil, nil, err
	}
	return d, ns, nil
}

// unwanted says why nobody can find this device any more; "": one can.
func (c *ProcessConfig) unwanted(d *Device, ns *netns.Handle) string {
	if now, err := os.Stat(d.path); errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(now, d.uapi.file) {
		return "its socket was taken away"
	}
	named, err := netns.Open(c.Namespace)
	if errors.Is(err, os.ErrNotExist) {
		return "its namespace was taken away"
	}
	if err != nil {
		return "" // not known: it goes on
	}
	defer named.Close()
	if same, err := ns.Same(named); err == nil && !same {
		return "its namespace's name is another's"
	}
	return ""
}

// The words of a process to who started it: one of these, and then the error's text.
var readyWords = []struct {
	word string
	kind error
}{{"exist", os.ErrExist}, {"permission", os.ErrPermission}, {"missing", os.ErrNotExist}, {"failed", nil}}

func tellReady(to *os.File, err error) {
	if to == nil {
		return
	}
	defer to.Close()
	if err == nil {
		fmt.Fprintln(to, "ready")
		return
	}
	for _, w := range readyWords {
		if w.kind == nil || errors.Is(err, w.kind) {
			fmt.Fprintln(to, w.word, oneLine(err.Error()))
			return
		}
	}
}

// socketPath is where the socket of the device name is.
func socketPath(dir, name string) string {
	if dir == "" {
		dir = DefaultSocketDir
	}
	return filepath.Join(dir, name+".sock")
}
