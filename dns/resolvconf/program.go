//go:build linux

package resolvconf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/weftmesh/weft/dns"
)

// program is the way by resolvconf(8): openresolv's, or Debian's own. Both make
// /etc/resolv.conf out of records, and where one of them is a nameserver on loopback
// (lo.*, which comes first) they name that one alone, taking it for what it is: a
// local resolver that knows the others. Search lists and options of the other
// records stay. Neither tells C libraries to split, hence the stub.
//
// openresolv's private records (-p) would do without one where it feeds dnsmasq or
// unbound, but their domains get into everybody's search list; and a nameserver that
// it has set up itself stands before ours. Then we are refused, as we are while
// somebody else's record is exclusive (-x), and the file's way is taken.
type program struct{}

// generated is in the first lines of what either of them writes.
const generated = "enerated by resolvconf"

// resolvconfRules reports whether resolvconf is there and made the given text.
func resolvconfRules(cfg Config, text []byte) bool {
	if !bytes.Contains(text, []byte(generated)) {
		return false
	}
	_, err := cfg.findResolvconf()
	return err == nil
}

// findResolvconf returns the program's path. systemd's resolvectl, which answers to
// that name as well, is none: it only knows systemd-resolved, which is asked before.
func (cfg Config) findResolvconf() (string, error) {
	path := cfg.Resolvconf
	if path == "" {
		if cfg.Root != "" {
			return "", os.ErrNotExist
		}
		for _, p := range []string{"resolvconf", "/sbin/resolvconf", "/usr/sbin/resolvconf"} {
			if found, err := exec.LookPath(p); err == nil {
				path = found
				break
			}
		}
	}
	if path == "" {
		return "", os.ErrNotExist
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if filepath.Base(real) == "resolvectl" {
		return "", os.ErrNotExist
	}
	return filepath.Abs(path)
}

func (program) set(ctx context.Context, cfg Config, st *state) error {
	if cfg.Stub == nil {
		return ErrNoStub
	}
	path, err := cfg.findResolvconf()
	if err != nil {
		return err
	}
	name := "lo." + cfg.Link
	ours, others, err := records(ctx, cfg, path, name)
	if err != nil {
		return err
	}
	if kept, err := os.ReadFile(cfg.originalPath()); err != nil || string(kept) != others {
		if err := replaceFile(cfg.originalPath(), []byte(others), 0o600); err != nil {
			return err
		}
	}
	at, err := cfg.Stub(cfg.originalPath())
	if err != nil {
		return err
	}
	if at.Port() != 53 {
		return fmt.Errorf("stub at %s: a resolv.conf can only name port 53", at)
	}
	st.Program, st.Record, st.Stub = path, name, at.Addr()
	if err := cfg.save(st); err != nil {
		return err
	}
	if want := fmt.Sprintf("nameserver %s\n", at.Addr()); strings.TrimSpace(ours) != strings.TrimSpace(want) {
		if _, err := cfg.run(ctx, want, path, "-a", name); err != nil {
			return err
		}
		cfg.log().Info("resolver set", "record", name, "addr", at.Addr())
	} else if !named(cfg, at.Addr()) { // whoever wrote it meanwhile was not resolvconf
		if _, err := cfg.run(ctx, "", path, "-u"); err != nil {
			return err
		}
	}
	if !named(cfg, at.Addr()) {
		return fmt.Errorf("%s does not name %s first: %w", resolvConf, at.Addr(), errRefused)
	}
	return nil
}

// named reports whether C libraries ask a.
func named(cfg Config, a netip.Addr) bool {
	text, _ := os.ReadFile(cfg.path(resolvConf))
	servers := dns.ParseResolvConf(text).Nameservers
	return len(servers) > 0 && servers[0].Addr() == a
}

func (program) revert(ctx context.Context, cfg Config, st *state) (note string, err error) {
	if st.Record == "" { // nothing was begun
		return "", nil
	}
	if _, err := os.Stat(st.Program); errors.Is(err, os.ErrNotExist) {
		return fmt.Sprintf("%s is gone, and %s is left as it is", st.Program, resolvConf), nil
	}
	ours, _, err := records(ctx, cfg, st.Program, st.Record)
	if err != nil {
		return "", err
	}
	if ours != "" {
		if _, err := cfg.run(ctx, "", st.Program, "-d", st.Record); err != nil {
			return "", err
		}
		cfg.log().Info("resolver restored", "record", st.Record)
	} else if named(cfg, st.Stub) {
		// The machine was started anew: records are in /run, the file is not.
		if _, err := cfg.run(ctx, "", st.Program, "-u"); err != nil {
			return "", err
		}
	}
	return "", nil
}

// records returns the text of our record, "" if there is none, and those of all
// others, in order.
func records(ctx context.Context, cfg Config, path, name string) (ours, others string, err error) {
	out, err := cfg.run(ctx, "", path, "-l")
	if err != nil && strings.TrimSpace(out) == "" {
		err = nil // there are none
	}
	ours, others = splitRecords(out, name)
	return ours, others, err
}

// splitRecords reads what they list: each record after a line that names it.
func splitRecords(list, name string) (ours, others string) {
	var mine, rest strings.Builder
	to := &rest
	for line := range strings.Lines(list) {
		if from, ok := strings.CutPrefix(line, "# resolv.conf from "); ok {
			to = &rest
			if strings.TrimSpace(from) == name {
				to = &mine
			}
			continue
		}
		if strings.TrimSpace(line) != "" {
			to.WriteString(line)
		}
	}
	return mine.String(), rest.String()
}
