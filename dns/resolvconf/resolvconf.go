// Package resolvconf points a laptop's resolver at the mesh, for the mesh's domains
// and nothing else, and puts it back: when asked, after a crash, and after a crash
// that nobody came back from.
//
// There are several ways; the first that this system has is taken:
//
//	Linux    systemd-resolved   the link gets a server and routing-only domains, over D-Bus
//	         resolvconf         a record of a loopback nameserver, which takes precedence
//	         resolv.conf        /etc/resolv.conf is made to name that nameserver
//	macOS    /etc/resolver      a file for each domain
//	         scutil             a supplemental resolver, where files cannot be written
//	Windows  NRPT               a rule of the name resolution policy, in the registry
//
// The loopback nameserver is a stub that the caller runs (see dns.Stub) and that
// splits: C libraries cannot. All others split by themselves, and no stub is needed.
//
// Out of scope: hosts (their resolver is never changed), the stub itself, and
// whoever rewrites files while we are up: Set, called again, follows them.
package resolvconf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config says what to set, and where.
type Config struct {
	Link    string     // the mesh's link, such as weft0
	Index   int        // its number; 0: looked up by name
	Server  netip.Addr // the network's resolver, <network>::3
	Domains []string   // what goes to Server: internal. and the reverse zones

	// StateDir keeps what is needed to put everything back. It must survive a
	// reboot, because /etc/resolv.conf does.
	StateDir string
	// Owner tells one run of the caller from another, so that the guard of a run
	// that died late does not undo what a newer run has set. Any text; it may be empty.
	Owner string
	// Stub starts a resolver on loopback, port 53, that sends Domains to Server and
	// everything else to the nameservers in the file original, which may change
	// while it runs. It is called, each time, before anything points at it. It may be
	// nil where systemd-resolved is sure to run.
	Stub func(original string) (netip.AddrPort, error)

	Root string       // in front of every path; "": /
	Bus  string       // D-Bus address of the system bus; "": the usual one under Root
	Log  *slog.Logger // nil: nothing is logged

	// Resolvconf is the program of that name; "": as a shell would find it, and none
	// if there is a Root.
	Resolvconf string

	command  runner   // runs programs; nil: as they are
	registry registry // Windows'; nil: this machine's
}

// Restore puts back what Set changed. See Recover.
type Restore func(context.Context) (note string, err error)

// Names of the ways, as Set returns them.
const (
	ByResolved    = "systemd-resolved"
	ByResolvconf  = "resolvconf"
	ByFile        = "resolv.conf"
	ByResolverDir = "/etc/resolver"
	ByScutil      = "scutil"
	ByNRPT        = "NRPT"
)

// ErrNoStub says that names have to be split but Config.Stub is nil.
var ErrNoStub = errors.New("this system needs a local stub resolver, and none was given")

// errRefused is a way that is there but does not take what it is given: the next
// one is tried.
var errRefused = errors.New("not taken")

// backend is one way of splitting.
type backend interface {
	// set brings about what cfg says; st is what is on disk, from an earlier set by
	// the same backend, or new. It saves st before it changes anything.
	set(ctx context.Context, cfg Config, st *state) error
	// revert undoes it. note is a sentence where there was a choice.
	revert(ctx context.Context, cfg Config, st *state) (note string, err error)
}

func backendFor(how string) (backend, error) {
	if b, ok := backends()[how]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("state of an unknown way %q", how)
}

// Set makes the system's resolver ask the mesh for cfg.Domains. It is idempotent:
// called again it changes only what has to be changed, and follows a file that
// somebody else has rewritten in between. how is one of the constants By….
func Set(ctx context.Context, cfg Config) (restore Restore, how string, err error) {
	if err := cfg.check(); err != nil {
		return nil, "", err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o755); err != nil {
		return nil, "", fmt.Errorf("set the resolver: %w", err)
	}
	unlock, err := cfg.lock(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("set the resolver: %w", err)
	}
	defer unlock()
	st, err := cfg.load()
	if err != nil {
		return nil, "", fmt.Errorf("set the resolver: %w", err)
	}
	var refused []string
	if st != nil {
		refused = st.Refused
	}
	for _, how = range ways(ctx, cfg, st) {
		if slices.Contains(refused, how) {
			continue
		}
		err = cfg.setBy(ctx, how, st, refused)
		if !errors.Is(err, errRefused) {
			break
		}
		cfg.log().Info("resolver not set", "by", how, "err", err)
		st, refused = nil, append(refused, how)
	}
	if err != nil {
		return nil, "", err
	}
	return func(ctx context.Context) (string, error) { return Recover(ctx, cfg) }, how, nil
}

// setBy sets the resolver in one way. st is what is on disk, by whatever way. What
// was begun in vain is undone.
func (cfg Config) setBy(ctx context.Context, how string, st *state, refused []string) error {
	if st != nil && st.How != how {
		if _, err := cfg.revertLocked(ctx, st); err != nil {
			return fmt.Errorf("set the resolver: %w", err)
		}
		st = nil
	}
	if st == nil {
		st = &state{How: how}
	}
	st.Owner, st.Refused = cfg.Owner, refused
	b, err := backendFor(how)
	if err == nil {
		err = b.set(ctx, cfg, st)
	}
	if err != nil {
		_, undo := cfg.revertLocked(ctx, st)
		return fmt.Errorf("set the resolver by %s: %w", how, errors.Join(err, undo))
	}
	return nil
}

func (cfg Config) check() error {
	switch {
	case cfg.StateDir == "":
		return errors.New("set the resolver: no state directory")
	case !cfg.Server.IsValid():
		return errors.New("set the resolver: no server")
	case len(cfg.Domains) == 0:
		return errors.New("set the resolver: no domains")
	}
	return nil
}

// Recover puts back what an earlier Set changed, if that has not been done: at the
// next start, by `down`, by a guard. Of cfg it needs StateDir, Root, Bus and Owner; with
// an Owner it leaves alone what another owner has set. What was changed by somebody else
// in the meantime is left, and note says so. Nothing to do is no error.
func Recover(ctx context.Context, cfg Config) (note string, err error) {
	if _, err := os.Stat(cfg.StateDir); err == nil {
		unlock, err := cfg.lock(ctx)
		if err != nil {
			return "", fmt.Errorf("restore the resolver: %w", err)
		}
		defer unlock()
	}
	st, err := cfg.load()
	if err != nil {
		return "", fmt.Errorf("restore the resolver: %w", err)
	}
	if st == nil && cfg.Owner == "" {
		note, err = revertWithoutState(cfg)
	} else if st != nil && (cfg.Owner == "" || cfg.Owner == st.Owner) {
		note, err = cfg.revertLocked(ctx, st)
	}
	if err != nil {
		return "", fmt.Errorf("restore the resolver: %w", err)
	}
	return note, nil
}

func (cfg Config) revertLocked(ctx context.Context, st *state) (note string, err error) {
	b, err := backendFor(st.How)
	if err != nil {
		return "", err
	}
	if note, err = b.revert(ctx, cfg, st); err != nil {
		return "", err
	}
	return note, cfg.forget()
}

// state is what Recover needs to know. It is on disk before anything is changed.
type state struct {
	How   string `json:"how"`
	Owner string `json:"owner,omitempty"`
	// Refused are the ways that did not take what they were given, until this state
	// is forgotten.
	Refused []string `json:"refused,omitempty"`

	// By file: which one, following symbolic links; how it was; and every text of
	// ours that may stand in it.
	File   string      `json:"file,omitempty"`
	Absent bool        `json:"absent,omitempty"`
	Mode   os.FileMode `json:"mode,omitempty"`
	Wrote  []string    `json:"wrote,omitempty"`

	// By systemd-resolved: which link. By scutil: whose key.
	Link  string `json:"link,omitempty"`
	Index int    `json:"index,omitempty"`

	// By resolvconf: the program, our record, and the stub that it names.
	Program string     `json:"program,omitempty"`
	Record  string     `json:"record,omitempty"`
	Stub    netip.Addr `json:"stub,omitzero"`

	// By /etc/resolver: each file, and whether the directory is ours, too.
	Files  []keptFile `json:"files,omitempty"`
	NewDir bool       `json:"newDir,omitempty"`

	// By NRPT: keys in the registry that are ours.
	Keys []string `json:"keys,omitempty"`
}

// header is how every text of ours begins.
const header = "# Written by weft. "

// originalPath is where the file's text as it was is kept.
func (cfg Config) originalPath() string { return filepath.Join(cfg.StateDir, "resolv.conf.original") }

func (cfg Config) statePath() string { return filepath.Join(cfg.StateDir, "resolver.json") }

// path puts Root in front.
func (cfg Config) path(p string) string { return filepath.Join("/", cfg.Root, p) }

// load returns the state on disk, nil if there is none.
func (cfg Config) load() (*state, error) {
	text, err := os.ReadFile(cfg.statePath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st := new(state)
	if err := json.Unmarshal(text, st); err != nil {
		return nil, fmt.Errorf("read %s: %w", cfg.statePath(), err)
	}
	return st, nil
}

func (cfg Config) save(st *state) error {
	text, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(cfg.statePath(), append(text, '\n'), 0o600)
}

// forget removes the state. The original goes last: without a state it is unused.
func (cfg Config) forget() error {
	for _, p := range []string{cfg.statePath(), cfg.originalPath()} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// lockPause is how long another process is waited for at a time.
const lockPause = 20 * time.Millisecond

// lock keeps other processes from changing the resolver at the same time.
func (cfg Config) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(cfg.StateDir, "resolver.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(lockPause)
	defer tick.Stop()
	for {
		ok, err := tryLock(f)
		if ok {
			return func() { f.Close() }, nil
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s, which another process holds: %w", f.Name(), ctx.Err())
		case <-tick.C:
		}
	}
}

func (cfg Config) log() *slog.Logger {
	if cfg.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return cfg.Log
}

// bare is a domain without its final dot, as other programs write it.
func bare(domain string) string { return strings.TrimSuffix(domain, ".") }
