package agent

import (
	"bytes"
	"context"
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
	"github.com/weftmesh/weft/mesh/enroll"
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
// "resume".
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

// encodeView returns the file for a view. whole is whether it is all that the
// controllers said.
func encodeView(v *mesh.View, whole bool, now time.Time) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	c := cached{Version: cacheVersion, Saved: now.UTC(), SHA256: hex.EncodeToString(sum[:]), View: body}
	if whole {
		c.Resume = v.Revision
	}
	return json.Marshal(c)
}

// decodeView is the inverse of encodeView. The view is one of node (the zero Node:
// of anybody), or the error wraps errDamaged.
func decodeView(b []byte, node mesh.Node) (v *mesh.View, saved time.Time, whole bool, err error) {
	var c cached
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&c); err != nil {
		return nil, time.Time{}, false, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, time.Time{}, false, fmt.Errorf("%w: something follows the end", errDamaged)
	}
	if c.Version != cacheVersion {
		return nil, time.Time{}, false, fmt.Errorf("%w: version %d, this program writes %d", errDamaged, c.Version, cacheVersion)
	}
	if sum := sha256.Sum256(c.View); hex.EncodeToString(sum[:]) != c.SHA256 {
		return nil, time.Time{}, false, fmt.Errorf("%w: the checksum is another one", errDamaged)
	}
	v = &mesh.View{}
	if err := json.Unmarshal(c.View, v); err != nil {
		return nil, time.Time{}, false, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if node == (mesh.Node{}) {
		node = v.Self
	}
	if err := checkView(v, node); err != nil {
		return nil, time.Time{}, false, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return v, c.Saved, c.Resume == v.Revision && c.Resume != (mesh.Revision{}), nil
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

// readCache returns the cached view. No file: nil without an error. A damaged one
// is put aside, so that it can be looked at and is not met again.
func readCache(dir string, node mesh.Node) (v *mesh.View, saved time.Time, whole bool, err error) {
	path := filepath.Join(dir, cacheFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, time.Time{}, false, nil
	}
	if err != nil {
		return nil, time.Time{}, false, fmt.Errorf("read the last view: %w", err)
	}
	v, saved, whole, err = decodeView(b, node)
	if err != nil {
		aside := path + ".damaged"
		if renameErr := os.Rename(path, aside); renameErr != nil {
			return nil, time.Time{}, false, fmt.Errorf("last view %s: %w (and %w)", path, err, renameErr)
		}
		return nil, time.Time{}, false, fmt.Errorf("last view %s: %w; put aside as %s", path, err, aside)
	}
	return v, saved, whole, nil
}

// keepView writes the views that it is woken for, the latest only, at once after a
// pause and otherwise not more often than pace, until ctx ends; then once more if
// something is new.
func keepView(ctx context.Context, dir string, pace time.Duration, wake <-chan struct{}, latest func() (v *mesh.View, whole bool), wrote func(*mesh.View, error)) {
	var kept *mesh.View
	write := func() {
		v, whole := latest()
		if v == nil || v == kept {
			return
		}
		b, err := encodeView(v, whole, time.Now())
		if err == nil {
			err = enroll.WriteFile(filepath.Join(dir, cacheFile), b)
		}
		if err != nil {
			wrote(nil, fmt.Errorf("keep the view in %s: %w", dir, err))
			return
		}
		kept = v
		wrote(v, nil)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			write()
			return
		case <-wake:
		}
		select {
		case <-ctx.Done():
			write()
			return
		case <-timer.C:
		}
		began := time.Now()
		write()
		timer.Reset(max(pace, 20*time.Since(began))) // a large view costs little, too
	}
}
