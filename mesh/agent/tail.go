package agent

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// An agent that is killed goes on from what was in force, however slow the disk is. So
// each change is written to a file beside the local API's socket before it is in force:
// in /run, where nothing waits for a disk, and which is gone after a reboot, as is what
// was in force. What the disk has by then is left out from time to time.
//
//	change --> tail (/run) --> in force --> log, base (disk)
//
// The file has the form of a log whose base is the state directory, and each record
// says from which revision it leads on. Records of what the disk has already are passed
// over, and one that does not lead on from what there is ends the tail: less is taken
// then, never anything wrong. A delta says how things are, not what becomes of them, so
// one that begins earlier than the view on disk leads to the same.
type tail struct {
	path  string
	owner sum
	file  *os.File // nil: to be written anew
	last  sum
	size  int // of the file
	limit int // of the file; then what the disk has is left out

	waiting []waiting // in the file
}

// waiting is a record of the tail.
type waiting struct {
	to   mesh.Revision
	body []byte
}

// mostTail bounds a tail that the disk does not catch up with.
const mostTail = 16 << 20

// tailSuffix is that of the file, in place of the socket's.
const tailSuffix = ".changes"

// newTail returns the tail of the views of a node in a state directory.
func newTail(path, dir string, node mesh.Node) *tail {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	return &tail{path: path, owner: sha256.Sum256(fmt.Appendf(nil, "%s\x00%s", node, dir)), limit: leastLog}
}

// after returns the view that the tail leads to from v, and when that was; v itself and
// no time if it leads nowhere. What it led by stays in it.
func (t *tail) after(v *mesh.View) (*mesh.View, time.Time) {
	b, err := os.ReadFile(t.path)
	if err != nil {
		return v, time.Time{}
	}
	changes, _, err := readLog(b, t.owner)
	if err != nil {
		return v, time.Time{}
	}
	changes = leadOn(changes, v.Revision)
	if len(changes) == 0 {
		return v, time.Time{}
	}
	next, err := replay(v, changes)
	if err != nil || checkView(next, v.Self) != nil {
		return v, time.Time{}
	}
	for _, c := range changes {
		if body, err := json.Marshal(c); err == nil {
			t.waiting = append(t.waiting, waiting{c.Delta.Revision, body})
		}
	}
	return next, changes[len(changes)-1].Saved
}

// leadOn returns those of changes that lead on from a revision.
func leadOn(changes []logged, at mesh.Revision) (out []logged) {
	for _, c := range changes {
		to := c.Delta.Revision
		if !earlier(at, to) {
			continue
		}
		if !follows(at, c.From) {
			break
		}
		out, at = append(out, c), to
	}
	return out
}

// note takes the change from one version to another, before that is in force. step is
// all that leads there; nil: what it leads to is for the disk to keep. kept is the
// revision on disk.
func (t *tail) note(from, to *version, step *mesh.Delta, kept mesh.Revision) error {
	if step == nil || from == nil {
		t.waiting = nil
		return t.rewrite()
	}
	body, err := json.Marshal(logged{From: from.head.Revision, Saved: time.Now().UTC(), Format: to.head.Format, Delta: *step})
	if err != nil {
		return err
	}
	t.waiting = append(t.waiting, waiting{to.head.Revision, body})
	if t.file == nil || t.size+recordHead+len(body) > t.limit {
		t.waiting = slices.DeleteFunc(t.waiting, func(w waiting) bool { return !earlier(kept, w.to) })
		return t.rewrite()
	}
	var record []byte
	record, t.last = appendRecord(nil, t.last, body)
	t.size += len(record)
	_, err = t.file.Write(record)
	return err
}

// rewrite makes the file anew, of what is waiting.
func (t *tail) rewrite() error {
	b := logHeader(t.owner)
	copy(t.last[:], b[headerSize-len(t.last):])
	for _, w := range t.waiting {
		b, t.last = appendRecord(b, t.last, w.body)
	}
	if len(b) > mostTail {
		t.waiting = nil
		return t.rewrite()
	}
	t.close()
	next := t.path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if _, err := file.Write(b); err != nil {
		return errors.Join(err, file.Close())
	}
	t.file, t.size, t.limit = file, len(b), max(leastLog, 2*len(b))
	return os.Rename(next, t.path)
}

func (t *tail) close() {
	if t.file != nil {
		t.file.Close() // it need not be on a disk
		t.file = nil
	}
}

// remove takes the file away: the disk has it all, or it cannot be written.
func (t *tail) remove() {
	t.close()
	os.Remove(t.path)
	os.Remove(t.path + ".new")
}

// keepTail writes the step to v, which is not in force yet, to the tail.
func (f *follower) keepTail(v *version, step *mesh.Delta) {
	if f.tail == nil {
		return
	}
	if v != f.current.told {
		step = nil // it is more than what the controllers say
	}
	kept := mesh.Revision{}
	if k := f.kept.Load(); k != nil {
		kept = k.head.Revision
	}
	if err := f.tail.note(f.view.Load(), v, step, kept); err != nil {
		f.log.Warn("after a kill this agent goes on from what its disk has, which may be a little older", "err", err)
		f.tail.remove()
		f.tail = nil
	}
}

// dropTail removes what an earlier agent left.
func (f *follower) dropTail() {
	if f.tail != nil {
		f.tail.remove()
	}
}

// endTail removes the tail if the disk has all.
func (f *follower) endTail() {
	if f.tail == nil {
		return
	}
	f.tail.close()
	if f.kept.Load() == f.view.Load() {
		f.tail.remove()
	}
}
