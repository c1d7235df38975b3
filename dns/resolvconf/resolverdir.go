package resolvconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// resolverDir is macOS's way: a file for each domain in /etc/resolver, named after
// it (resolver(5)).
type resolverDir struct{}

const resolverFiles = "/etc/resolver"

// keptFile is one file that we wrote, and what was there before.
type keptFile struct {
	Path   string      `json:"path"`
	Absent bool        `json:"absent,omitempty"`
	Mode   os.FileMode `json:"mode,omitempty"`
	Text   []byte      `json:"text,omitempty"`
	Wrote  []string    `json:"wrote"` // every text of ours that may stand in it
}

// resolverText is what a domain's file says.
func resolverText(cfg Config) string {
	return fmt.Sprintf("%sNames below this domain are in the mesh, over %s; `weft down` removes it.\nnameserver %s\n", header, cfg.Link, cfg.Server)
}

func (resolverDir) set(_ context.Context, cfg Config, st *state) error {
	dir, text := cfg.path(resolverFiles), resolverText(cfg)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		st.NewDir = true
		if err := cfg.save(st); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return refusal(err)
		}
	}
	var todo []string
	for _, domain := range cfg.Domains {
		path := filepath.Join(dir, bare(domain))
		changed, err := st.keep(path, text)
		if err != nil {
			return err
		}
		if changed {
			todo = append(todo, path)
		}
	}
	if err := cfg.save(st); err != nil {
		return err
	}
	for _, path := range todo {
		if err := replaceFile(path, []byte(text), 0o644); err != nil {
			return refusal(err)
		}
		cfg.log().Info("resolver set", "file", path)
	}
	return nil
}

// refusal makes an error that says that a file may not be written here errRefused.
func refusal(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("%w: %w", err, errRefused)
	}
	return err
}

// keep notes what is at path before text takes its place, unless that is a text of
// ours. changed is false if text stands there already.
func (st *state) keep(path, text string) (changed bool, err error) {
	current, mode, absent, err := readFile(path)
	if err != nil {
		return false, err
	}
	at := -1
	for i, k := range st.Files {
		if k.Path == path {
			at = i
		}
	}
	if at < 0 {
		st.Files, at = append(st.Files, keptFile{Path: path}), len(st.Files)
	}
	k := &st.Files[at]
	if !k.wrote(current, absent) {
		*k = keptFile{Path: path, Absent: absent, Mode: mode, Text: current}
		if bytes.HasPrefix(current, []byte(header)) { // left by one whose state was lost
			k.Absent, k.Text = true, nil
		}
	}
	if !k.wrote([]byte(text), false) {
		k.Wrote = append(k.Wrote, text)
	}
	return absent || string(current) != text, nil
}

// wrote reports whether text is one of ours.
func (k keptFile) wrote(text []byte, absent bool) bool {
	for _, w := range k.Wrote {
		if !absent && w == string(text) {
			return true
		}
	}
	return false
}

func (resolverDir) revert(_ context.Context, cfg Config, st *state) (note string, err error) {
	var notes []string
	var errs []error
	for _, k := range st.Files {
		n, err := k.revert()
		if n != "" {
			notes = append(notes, n)
		}
		errs = append(errs, err)
	}
	if st.NewDir {
		_ = os.Remove(cfg.path(resolverFiles)) // unless somebody has put something there
	}
	return strings.Join(notes, "; "), errors.Join(errs...)
}

func (k keptFile) revert() (note string, err error) {
	current, _, absent, err := readFile(k.Path)
	if err != nil {
		return "", err
	}
	switch {
	case absent == k.Absent && bytes.Equal(current, k.Text):
		return "", nil
	case !k.wrote(current, absent):
		return fmt.Sprintf("%s was changed by another program in the meantime and is left as it is", k.Path), nil
	case k.Absent:
		return "", os.Remove(k.Path)
	}
	return "", replaceFile(k.Path, k.Text, k.Mode)
}

// revertWithoutState removes files of ours whose state was lost. What was there
// before them is lost with it.
func (resolverDir) revertWithoutState(cfg Config) (note string, err error) {
	entries, err := os.ReadDir(cfg.path(resolverFiles))
	if err != nil {
		return "", nil // there is none, so none of ours
	}
	var removed []string
	for _, e := range entries {
		path := filepath.Join(cfg.path(resolverFiles), e.Name())
		text, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(text, []byte(header)) {
			continue
		}
		if err := os.Remove(path); err != nil {
			return "", err
		}
		removed = append(removed, path)
	}
	if len(removed) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%s: removed, although nothing was found in %s", strings.Join(removed, ", "), cfg.StateDir), nil
}
