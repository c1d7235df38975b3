package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// The last view on disk. With it a node that restarts works at once, also when no
// controller does. One file, written beside itself and renamed:
//
//	{"version":1,"saved":"2026-…","sha256":"…","resume":"1.7","view":{…}}
//
// The sum is that of the bytes of "view". A file that does not hold what it says
// is refused as a whole: half a view would remove the other half. "resume" is the
// view's revision if it is all that the controllers said, and no more: changes since
// then lead on from it. While a removal is held back the view has more, and no
// "resume". What has changed since is in a log, see logFile; a program that does not
// know of it starts from this view.
const (
	cacheFile    = "view.json"
	cacheVersion = 1
)

// errDamaged says that the cached view cannot be trusted.
var errDamaged = errors.New("damaged")

type cached struct {
	Version int             `json:"version"`
	Saved   time.Time       `json:"saved"`
	SHA256  string          `json:"sha256"`
	Resume  mesh.Revision   `json:"resume,omitzero"`
	View    json.RawMessage `json:"view"`
}

// kept is what the disk has of the last view.
type kept struct {
	view  *mesh.View // nil: nothing
	saved time.Time
	whole bool // it is all that the controllers said
	// dropped is what was left out at the end of the log, and why; "": nothing.
	dropped string
}

// encodeView returns the file for a view. whole is whether it is all that the
// controllers said.
func encodeView(v *mesh.View, whole bool, now time.Time) ([]byte, error) {
	b, _, err := encodeBase(v, whole, now)
	return b, err
}

func encodeBase(v *mesh.View, whole bool, now time.Time) ([]byte, sum, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, sum{}, err
	}
	own := sha256.Sum256(body)
	c := cached{Version: cacheVersion, Saved: now.UTC(), SHA256: hex.EncodeToString(own[:]), View: body}
	if whole {
		c.Resume = v.Revision
	}
	b, err := json.Marshal(c)
	return b, own, err
}

// decodeView is the inverse of encodeView. The view is one of node (the zero Node:
// of anybody), or the error wraps errDamaged.
func decodeView(b []byte, node mesh.Node) (v *mesh.View, saved time.Time, whole bool, err error) {
	k, _, err := decodeBase(b, node)
	return k.view, k.saved, k.whole, err
}

func decodeBase(b []byte, node mesh.Node) (kept, sum, error) {
	var c cached
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&c); err != nil {
		return kept{}, sum{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return kept{}, sum{}, fmt.Errorf("%w: something follows the end", errDamaged)
	}
	if c.Version != cacheVersion {
		return kept{}, sum{}, fmt.Errorf("%w: version %d, this program writes %d", errDamaged, c.Version, cacheVersion)
	}
	own := sum(sha256.Sum256(c.View))
	if hex.EncodeToString(own[:]) != c.SHA256 {
		return kept{}, sum{}, fmt.Errorf("%w: the checksum is another one", errDamaged)
	}
	v := &mesh.View{}
	if err := json.Unmarshal(c.View, v); err != nil {
		return kept{}, sum{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if node == (mesh.Node{}) {
		node = v.Self
	}
	if err := checkView(v, node); err != nil {
		return kept{}, sum{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return kept{view: v, saved: c.Saved, whole: c.Resume == v.Revision && c.Resume != (mesh.Revision{})}, own, nil
}

// decodeKept returns the view of a base and its log, as it was in force once, or the
// error wraps errDamaged.
func decodeKept(base, log []byte, node mesh.Node) (kept, error) {
	k, own, err := decodeBase(base, node)
	if err != nil {
		return kept{}, err
	}
	changes, dropped, err := readLog(log, own)
	if err != nil {
		return kept{}, err
	}
	k.dropped = dropped
	if len(changes) == 0 {
		return k, nil
	}
	if !k.whole { // changes lead on from what the controllers said
		return kept{}, fmt.Errorf("%w: a log of a view that had more than the controllers said", errDamaged)
	}
	if k.view, err = replay(k.view, changes); err != nil {
		return kept{}, err
	}
	if err := checkView(k.view, k.view.Self); err != nil {
		return kept{}, fmt.Errorf("%w: after its log, %w", errDamaged, err)
	}
	k.saved = changes[len(changes)-1].Saved
	return k, nil
}

// checkView reports a view that is not one of node.
func checkView(v *mesh.View, node mesh.Node) error {
	switch {
	case v.Self != node:
		return fmt.Errorf("the view is for %s, this node is %s", v.Self, node)
	case !v.Plan.IsValid():
		return errors.New("the view has no mesh prefix")
	case node.Kind == mesh.KindHost && v.Host == nil, node.Kind == mesh.KindClient && v.Client == nil:
		return errors.New("the view says nothing of its node")
	}
	return v.Validate()
}

// readCache returns the cached view. No file: none, without an error. Damaged ones
// are put aside, so that they can be looked at and are not met again.
func readCache(dir string, node mesh.Node) (kept, error) {
	path := filepath.Join(dir, cacheFile)
	base, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return kept{}, nil // a log without its base is nothing
	}
	if err != nil {
		return kept{}, fmt.Errorf("read the last view: %w", err)
	}
	log, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return kept{}, fmt.Errorf("read the last view: %w", err)
	}
	k, err := decodeKept(base, log, node)
	if err != nil {
		return kept{}, refusal(dir, err)
	}
	return k, nil
}

// refusal puts the files aside and says what that means.
func refusal(dir string, why error) error {
	path := filepath.Join(dir, cacheFile)
	why = fmt.Errorf("last view %s: %w", path, why)
	aside := ""
	for _, name := range []string{cacheFile, logFile} {
		from := filepath.Join(dir, name)
		switch err := os.Rename(from, from+".damaged"); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return fmt.Errorf("%w (and %w)", why, err)
		case aside == "":
			aside = from + ".damaged"
		default:
			aside += " and " + from + ".damaged"
		}
	}
	why = fmt.Errorf("%w; put aside as %s. Until a controller answers, the tunnels, rules and links that are there stay as they are, and names are not answered", why, aside)
	return mesh.WithHint(why, "make a controller reachable: this node then gets its view anew, and weft status tells. The files that were put aside can be removed")
}
