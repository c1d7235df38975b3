package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/enroll"
)

// news is what came in force since the disk was told last.
type news struct {
	mu    sync.Mutex // guards all
	view  *version   // nil: nothing
	whole bool       // it is all that the controllers said
	anew  bool       // steps do not lead to it from what was taken last
	steps []mesh.Delta
}

// add notes the view in force. step is all that leads there from the one before; nil:
// it is another one.
func (n *news) add(v *version, whole bool, step *mesh.Delta) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.view, n.whole = v, whole
	switch {
	case step == nil || !whole:
		n.anew, n.steps = true, nil
	case !n.anew:
		n.steps = append(n.steps, *step)
	}
	if len(n.steps) >= mostSteps {
		n.steps = []mesh.Delta{mesh.MergeDeltas(n.steps)}
	}
}

// wholly reports whether there is something, and no steps lead to it.
func (n *news) wholly() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.view != nil && n.anew
}

// take returns what there is and forgets it.
func (n *news) take() (view *version, whole, anew bool, steps []mesh.Delta) {
	n.mu.Lock()
	defer n.mu.Unlock()
	view, whole, anew, steps = n.view, n.whole, n.anew, n.steps
	n.view, n.anew, n.steps = nil, false, nil
	return view, whole, anew, steps
}

// keeper writes views to disk: a base, and then what changes.
type keeper struct {
	dir   string
	log   *os.File // nil: the next view is a base
	base  int      // size
	size  int      // of the log
	last  sum
	names bool // the log's name is on the disk
	// rested is when there may be another base, unless there is none: a base costs what
	// the view is large, a change costs little.
	rested time.Time
}

// baseShare is how many times as long as the last base took to make (not: to reach the
// disk, which may be slow) the keeper waits before it makes the next one.
const baseShare = 20

// leastLog is how large a log may get beside a small base.
const leastLog = 64 << 10

// keep writes a view. After an error the next one is written as a whole.
func (k *keeper) keep(v *version, whole, anew bool, steps []mesh.Delta) (err error) {
	defer func() {
		if err != nil {
			k.close()
			err = fmt.Errorf("keep the view in %s: %w", k.dir, err)
		}
	}()
	if anew || !whole || k.log == nil || k.size > max(k.base/2, leastLog) && !time.Now().Before(k.rested) {
		return k.rebase(v, whole)
	}
	return k.append(v, steps)
}

// rebase writes a view as a whole, and takes the log of the one before away. The new
// log is made with its first record.
func (k *keeper) rebase(v *version, whole bool) error {
	began := time.Now()
	b, own, err := encodeBase(v.View(), whole, began)
	if err != nil {
		return err
	}
	k.rested = time.Now().Add(baseShare * time.Since(began))
	k.close()
	if err := enroll.WriteFile(filepath.Join(k.dir, cacheFile), b); err != nil {
		return err
	}
	path := filepath.Join(k.dir, logFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	header := logHeader(own)
	k.base, k.size, k.names = len(b), len(header), false
	copy(k.last[:], header[headerSize-len(k.last):])
	k.log, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err == nil {
		_, err = k.log.Write(header)
	}
	return err
}

// append writes what leads to v as one record, and waits until it is on the disk.
func (k *keeper) append(v *version, steps []mesh.Delta) error {
	record, after, err := appendLogged(nil, k.last, logged{
		Saved: time.Now().UTC(), Format: v.head.Format, Delta: mesh.MergeDeltas(steps),
	})
	if err != nil {
		return err
	}
	if _, err := k.log.Write(record); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(k.log.Fd())); err != nil {
		return err
	}
	if !k.names {
		if err := syncDir(k.dir); err != nil {
			return err
		}
		k.names = true
	}
	k.size, k.last = k.size+len(record), after
	return nil
}

func (k *keeper) close() {
	if k.log != nil {
		k.log.Close() // what counts has been synced
		k.log = nil
	}
}

// syncDir makes what was made in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// keepAgain is how long after a failure a view is written once more.
const keepAgain = 5 * time.Second

// keepView writes the views that it is woken for, at once after a pause and otherwise
// not more often than pace, until ctx ends; then once more if something is new. The disk
// has half of the time for itself, however slow it is, so that what is on it is never
// older than three writes take; bases rest longer. wrote is told of each.
func keepView(ctx context.Context, dir string, pace time.Duration, wake <-chan struct{}, n *news, wrote func(*version, error)) {
	k := &keeper{dir: dir}
	defer k.close()
	var failed *version // is still to be written
	failedWhole := false
	write := func() {
		v, whole, anew, steps := n.take()
		if v == nil {
			if failed == nil {
				return
			}
			v, whole, anew = failed, failedWhole, true
		}
		err := k.keep(v, whole, anew, steps)
		failed = nil
		if err != nil {
			failed, failedWhole = v, whole
		}
		wrote(v, err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var again <-chan time.Time
		if failed != nil {
			again = time.After(keepAgain)
		}
		select {
		case <-ctx.Done():
			write()
			return
		case <-again:
		case <-wake:
		}
		select {
		case <-ctx.Done():
			write()
			return
		case <-timer.C:
		}
		if n.wholly() {
			select {
			case <-ctx.Done():
				write()
				return
			case <-time.After(time.Until(k.rested)):
			}
		}
		began := time.Now()
		write()
		timer.Reset(max(pace, time.Since(began)))
	}
}
