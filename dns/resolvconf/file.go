//go:build linux

package resolvconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/weftmesh/weft/dns"
)

// file is the way by /etc/resolv.conf.
type file struct{}

const resolvConf = "/etc/resolv.conf"

func (file) set(_ context.Context, cfg Config, st *state) error {
	if cfg.Stub == nil {
		return ErrNoStub
	}
	target, err := follow(cfg, resolvConf)
	if err != nil {
		return err
	}
	current, mode, absent, err := readFile(target)
	if err != nil {
		return err
	}
	if st.File != target || !slices.Contains(st.Wrote, string(current)) {
		// The first time, or somebody has rewritten it: what is there now is what
		// goes back in the end. A text of ours without a state is still not it.
		if original, ours := embedded(current); ours {
			current = original
		}
		if err := replaceFile(cfg.originalPath(), current, 0o600); err != nil {
			return err
		}
		st.File, st.Mode, st.Absent, st.Wrote = target, mode, absent, nil
	}
	original, err := os.ReadFile(cfg.originalPath())
	if err != nil {
		return err
	}
	at, err := cfg.Stub(cfg.originalPath())
	if err != nil {
		return err
	}
	if at.Port() != 53 {
		return fmt.Errorf("stub at %s: a resolv.conf can only name port 53", at)
	}
	text := render(cfg, at.Addr().String(), original)
	if !slices.Contains(st.Wrote, text) {
		st.Wrote = append(st.Wrote, text)
	}
	if err := cfg.save(st); err != nil {
		return err
	}
	if string(current) == text {
		return nil
	}
	if err := replaceFile(target, []byte(text), st.Mode); err != nil {
		return err
	}
	cfg.log().Info("resolver set", "file", target, "addr", at.Addr())
	return nil
}

func (file) revert(_ context.Context, cfg Config, st *state) (note string, err error) {
	if st.File == "" { // nothing was begun
		return "", nil
	}
	current, _, absent, err := readFile(st.File)
	if err != nil {
		return "", err
	}
	original, err := os.ReadFile(cfg.originalPath())
	if errors.Is(err, os.ErrNotExist) {
		if o, ours := embedded(current); ours {
			original, err = o, nil
		}
	}
	switch {
	case absent && st.Absent || err == nil && bytes.Equal(current, original):
		return "", nil
	case !slices.Contains(st.Wrote, string(current)):
		return fmt.Sprintf("%s was changed by another program in the meantime and is left as it is", st.File), nil
	case err != nil:
		return "", err
	case st.Absent:
		err = os.Remove(st.File)
	default:
		err = replaceFile(st.File, original, st.Mode)
	}
	if err != nil {
		return "", err
	}
	cfg.log().Info("resolver restored", "file", st.File)
	return "", nil
}

// revertWithoutState is for a file of ours whose state was lost: the text holds
// the original.
func (file) revertWithoutState(cfg Config) (note string, err error) {
	target, err := follow(cfg, resolvConf)
	if err != nil {
		return "", nil // there is none, so none of ours
	}
	current, mode, _, err := readFile(target)
	if err != nil {
		return "", err
	}
	original, ours := embedded(current)
	if !ours {
		return "", nil
	}
	if err := replaceFile(target, original, mode); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s was restored from its own comments: nothing was found in %s", target, cfg.StateDir), nil
}

const (
	// kept marks a line of the original; noNewline, that its last line had none.
	kept      = "#| "
	noNewline = "#|\n"
)

// render returns the text that points at the stub. Search lists and options stay.
// The original is in it as comments, so that the file can be put back by itself.
func render(cfg Config, stub string, original []byte) string {
	var b strings.Builder
	domains := make([]string, len(cfg.Domains))
	for i, d := range cfg.Domains {
		domains[i] = bare(d)
	}
	fmt.Fprintf(&b, "%sA resolver on this machine sends %s\n", header, strings.Join(domains, ", "))
	fmt.Fprintf(&b, "# into the mesh over %s, and all other names to the nameservers that were here.\n", cfg.Link)
	b.WriteString("# `weft down` puts this file back as it was, which is:\n")
	for line := range strings.Lines(string(original)) {
		b.WriteString(kept + strings.TrimSuffix(line, "\n") + "\n")
	}
	if n := len(original); n > 0 && original[n-1] != '\n' {
		b.WriteString(noNewline)
	}
	fmt.Fprintf(&b, "nameserver %s\n", stub)
	conf := dns.ParseResolvConf(original)
	if len(conf.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(conf.Search, " "))
	}
	if len(conf.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(conf.Options, " "))
	}
	return b.String()
}

// embedded returns the original out of a text of ours.
func embedded(text []byte) (original []byte, ours bool) {
	if !bytes.HasPrefix(text, []byte(header)) {
		return nil, false
	}
	original = []byte{}
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte(kept)); ok {
			original = append(original, rest...)
		} else if string(line) == noNewline {
			original = bytes.TrimSuffix(original, []byte("\n"))
		}
	}
	return original, true
}

// maxLinks bounds a chain of symbolic links, as the kernel does.
const maxLinks = 40

// follow returns the file that p means, through symbolic links, all under Root. The
// links themselves are never changed. The file need not exist, its directory must.
func follow(cfg Config, p string) (string, error) {
	for range maxLinks {
		full := cfg.path(p)
		to, err := os.Readlink(full)
		switch {
		case errors.Is(err, syscall.EINVAL) || errors.Is(err, os.ErrNotExist): // no link
			if _, err := os.Stat(filepath.Dir(full)); err != nil {
				return "", fmt.Errorf("%s leads to %s: %w", resolvConf, p, err)
			}
			return full, nil
		case err != nil:
			return "", err
		case filepath.IsAbs(to):
			p = to
		default:
			p = filepath.Join(filepath.Dir(p), to)
		}
	}
	return "", fmt.Errorf("%s: %w", resolvConf, syscall.ELOOP)
}
