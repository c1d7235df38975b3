// Package store keeps the State of a mesh in etcd: its keys, the transactions
// that change it, and a mirror of it in memory. Running an etcd server is
// mesh/etcd's; who may ask for a change is decided in mesh/controller.
package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// What a change was refused for; compare with errors.Is. The text of an error
// says what, on what and why.
var (
	ErrInvalid     = errors.New("not valid")                // a name, a number or a field that cannot be
	ErrExists      = errors.New("exists already")           // the name, the key or the id is taken
	ErrNotFound    = errors.New("not found")                // no such object
	ErrConflict    = errors.New("not possible")             // something else stands in the way: in use, being removed, not allowed there
	ErrFull        = errors.New("none left")                // a number space is used up
	ErrLimit       = errors.New("limit reached")            // an org has as much as it may have
	ErrToken       = errors.New("token refused")            // unknown, wrong, spent, expired or of another kind
	ErrUnavailable = errors.New("no answer from the store") // not reachable, no leader, timeout, no space; may pass
	ErrFormat      = errors.New("newer than this program")  // the mesh is stored in a format that this program does not know
	ErrUnsure      = errors.New("perhaps done")             // with ErrUnavailable: the change was sent, and the answer is missing
)

// Config is what a Store needs. Client is required, the rest has defaults.
type Config struct {
	Client *clientv3.Client
	Root   string           // prefix of all keys, ending in "/"; default "/weft/"
	Log    *slog.Logger     // default: discard
	Now    func() time.Time // default time.Now
	Rand   io.Reader        // cryptographic source of ids; default crypto/rand

	Timeout       time.Duration // of one request to etcd, but for a list of everything; default 4 s
	PresenceTTL   time.Duration // how long presence outlives its controller; whole seconds, default 15 s
	ProgressEvery time.Duration // how often the mirror asks whether it is current; default 2 s
	SlotRest      time.Duration // how long a freed address rests; default 1 h
	HostRest      time.Duration // how long a removed host's number rests; default 30 days
	AddressRest   time.Duration // how long the address of a stable machine or a client that is gone is kept for it; default 30 days
	AuditAge      time.Duration // audit entries older than this are removed; default 90 days
	AuditSize     int64         // and the oldest beyond this number; default 20000

	Schema int // newest stored format to know; default Schema. Tests make older programs with it
}

// Store is a mesh's state in etcd. Any number of them, in one process or many, can
// work on the same etcd. Its methods may be called concurrently; changes need no
// Run, but Presence and State do.
type Store struct {
	config Config
	client *clientv3.Client
	root   string
	log    *slog.Logger

	locks     locks
	recall    recall
	gathering gathering
	batches   sync.Pool                 // that were, see newBatch
	newest    atomic.Int64              // revision that etcd last told of
	waiting   waiting                   // moves that are prepared
	mesh      atomic.Pointer[mesh.Mesh] // as read; the plan in it never changes
	mirror    mirror
	presence  presence
	placed    placed
	running   atomic.Bool
	elected   atomic.Bool // this one does the periodic jobs

	registration registration
	renumbered   placed        // hosts that got another endpoint
	cleaning     chan struct{} // wakes the clean-up
}

// New returns a Store. It does not talk to etcd yet.
func New(c Config) (*Store, error) {
	if c.Client == nil {
		return nil, errors.New("store: no etcd client given")
	}
	c.Root = cmp.Or(c.Root, "/weft/")
	if !strings.HasSuffix(c.Root, "/") {
		return nil, fmt.Errorf("store: root %q does not end in /", c.Root)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	c.Timeout = cmp.Or(c.Timeout, 4*time.Second)
	c.PresenceTTL = cmp.Or(c.PresenceTTL, 15*time.Second)
	c.ProgressEvery = cmp.Or(c.ProgressEvery, 2*time.Second)
	c.SlotRest = cmp.Or(c.SlotRest, time.Hour)
	c.HostRest = cmp.Or(c.HostRest, 30*24*time.Hour)
	c.AddressRest = cmp.Or(c.AddressRest, 30*24*time.Hour)
	c.AuditAge = cmp.Or(c.AuditAge, 90*24*time.Hour)
	c.AuditSize = cmp.Or(c.AuditSize, 20000)
	c.Schema = cmp.Or(c.Schema, Schema)
	return &Store{
		config: c, client: c.Client, root: c.Root, log: c.Log,
		locks:     locks{held: map[string]*namedLock{}},
		recall:    recall{known: map[string]remembered{}},
		mirror:    newMirror(),
		gathering: gathering{wake: make(chan struct{}, 1)},
		presence:  presence{hosts: map[string]*present{}, wake: make(chan struct{}, 1)},
		cleaning:  make(chan struct{}, 1),
	}, nil
}

// Run keeps the mirror, this controller's presence and its registration, completes
// removals that were interrupted, and does the periodic jobs when this controller
// is elected, until ctx ends; it returns the context's error. Trouble with etcd does
// not end it; a mesh whose format was raised past this program does (ErrFormat). It
// runs once.
func (s *Store) Run(ctx context.Context) error {
	if s.running.Swap(true) {
		return errors.New("store: Run was called before")
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var loops sync.WaitGroup
	loops.Go(func() { s.keepMirror(ctx) })
	loops.Go(func() {
		if err := s.keepPresence(ctx); err != nil {
			stop(err)
		}
	})
	loops.Go(func() { s.keepClean(ctx) })
	loops.Go(func() { s.keepJobs(ctx) })
	loops.Wait()
	return context.Cause(ctx)
}

func (s *Store) now() time.Time { return s.config.Now().UTC() }

// plan returns the address plan, invalid before the mesh was read.
func (s *Store) plan() ipam.Plan {
	if m := s.mesh.Load(); m != nil {
		return m.Plan
	}
	return ipam.Plan{}
}

// needPlan returns the address plan, reading the mesh first if need be.
func (s *Store) needPlan(ctx context.Context) (ipam.Plan, error) {
	if p := s.plan(); p.IsValid() {
		return p, nil
	}
	_, _, found, err := s.Load(ctx)
	if err == nil && !found {
		err = fmt.Errorf("mesh at %s: %w", s.root, ErrNotFound)
	}
	return s.plan(), err
}

func invalid(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}
