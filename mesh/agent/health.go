package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/check"
	"github.com/weftmesh/weft/mesh/agent/local"
	"github.com/weftmesh/weft/mesh/api"
)

// A machine's host looks at it, and is the first to know whether it works: its own
// names follow at once (mask), the controllers are told (unreported), and through
// them everybody else.

// watch looks at a machine as long as ctx lasts, if it is to be looked at.
func (h *host) watch(ctx context.Context, s *stay, r local.AttachRequest) {
	if len(r.Checks) == 0 {
		return
	}
	start, before := time.Now(), check.Unknown
	if r.Held != nil && !s.record.Created.IsZero() {
		start = s.record.Created
	}
	earlier := r.Held != nil || s.coming
	if earlier {
		// It was running before this agent looked, or runs elsewhere and comes here.
		before = verdictOf(h.ready.Load().follower.View(), s.key)
	}
	w := check.New(check.Config{
		Checks: r.Checks, Addr: s.record.Address(), Start: start, Before: before, Changed: func() { h.machines.beat(s) },
		Dial: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = h.plane.ns.Do(func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	})
	h.machines.watched(s, w, earlier)
	w.Run(ctx)
}

// verdictOf is what a view says of a machine's health.
func verdictOf(v *mesh.View, key string) check.Verdict {
	if v == nil {
		return check.Unknown
	}
	switch seen, ok := healthIn(v, key); {
	case !ok:
		return check.Unknown
	case seen.Passing:
		return check.Passing
	}
	return check.Failing
}

// healthIn returns what a view says of a machine's health; its lists are sorted.
func healthIn(v *mesh.View, key string) (mesh.Health, bool) {
	i, ok := slices.BinarySearchFunc(v.Health, key, func(h mesh.Health, key string) int {
		return strings.Compare(h.Org+"/"+h.Machine, key)
	})
	if !ok {
		return mesh.Health{}, false
	}
	return v.Health[i], true
}

// watched notes who looks at a machine. earlier is whether its process ran before that.
func (m *machines) watched(s *stay, w *check.Watch, earlier bool) {
	m.mu.Lock()
	s.watch, s.earlier = w, earlier
	m.mu.Unlock()
	m.beat(s)
}

// beat is called when a machine's health, or whether it drains, is another one.
func (m *machines) beat(s *stay) {
	m.mu.Lock()
	m.maskOf = nil
	m.newsLocked(s.key)
	w, drains := s.watch, s.drains
	m.mu.Unlock()
	if w != nil {
		if is := w.Health(); is.Verdict != check.Unknown {
			m.log.Info("machine's checks", "machine", s.key, "state", is.Verdict.String(), "note", is.Note, "drains", drains)
		}
	}
	m.beats.fire()
	m.wake()
}

// health is what the checks of a machine say, for others; ok is false if nobody looks
// at it. One that has not passed yet does not pass.
func (s *stay) health() (is mesh.Health, ok bool) {
	if s.watch == nil {
		return is, false
	}
	org, id, _ := strings.Cut(s.key, "/")
	seen := s.watch.Health()
	is = mesh.Health{Org: org, Machine: id, Passing: seen.Verdict == check.Passing, Since: seen.Since.UTC().Truncate(time.Second), Note: seen.Note}
	if seen.Verdict == check.Unknown {
		is.Note = notPassed
	}
	return is, true
}

// looksAtAny reports whether any machine here has checks.
func (m *machines) looksAtAny() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.stays {
		if s.watch != nil {
			return true
		}
	}
	return false
}

// notPassed is the note of a machine of which nothing is known yet.
const notPassed = "it has not passed yet"

// ownHealthLocked is what this host knows better than v about its own machines: their
// health, and their records where that makes a difference to names.
func (m *machines) ownHealthLocked(v *mesh.View) (health []mesh.Health, records []mesh.Machine) {
	for key, s := range m.stays {
		org, id, _ := strings.Cut(key, "/")
		r := findSorted(v, org, id)
		if r == nil || r.Host != m.host {
			continue
		}
		said, known := healthIn(v, key)
		is, record := s.better(r, said, known)
		if is != nil {
			health = append(health, *is)
		}
		if record != nil {
			records = append(records, *record)
		}
	}
	return health, records
}

// findSorted is find in a view whose lists are sorted, as they come.
func findSorted(v *mesh.View, org, id string) *mesh.Machine {
	key := org + "/" + id
	i, ok := slices.BinarySearchFunc(v.Machines, key, func(r mesh.Machine, key string) int {
		return strings.Compare(machineKey(r), key)
	})
	if !ok {
		return nil
	}
	return &v.Machines[i]
}

// unreported is what the controllers do not know yet of the health of machines here,
// by what they said last: nothing is lost while they are away.
func (m *machines) unreported(v *mesh.View) []mesh.Health {
	if v == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	health, records := m.ownHealthLocked(v)
	for _, r := range records {
		// One that is not known to be started yet, though its health is.
		if is, ok := m.stays[machineKey(r)].health(); ok && r.State == mesh.StateStarted && !slices.ContainsFunc(health, func(h mesh.Health) bool { return h.Org == r.Org && h.Machine == r.ID }) {
			health = append(health, is)
		}
	}
	slices.SortFunc(health, func(a, b mesh.Health) int {
		return cmp.Or(cmp.Compare(a.Org, b.Org), cmp.Compare(a.Machine, b.Machine))
	})
	return health[:min(len(health), mostHealth)]
}

// mostHealth bounds one report; the rest comes with the next one.
const mostHealth = 1000

// attachCheck is POST /v1/attach/check.
func (h *host) attachCheck(w http.ResponseWriter, r *http.Request) {
	var q local.CheckResult
	s, err := h.ofProcess(r, &q, func() (string, string) { return q.Org, q.ID })
	if err == nil {
		err = h.machines.checked(s, q)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// checked takes what a command said that looked at a machine from inside.
func (m *machines) checked(s *stay, q local.CheckResult) error {
	m.mu.Lock()
	watch := s.watch
	m.mu.Unlock()
	var failure error
	if q.Failure != "" {
		failure = errors.New(q.Failure)
	}
	if watch == nil || !watch.Told(q.Check, failure, time.Now()) {
		return &notFound{fmt.Sprintf("machine %s: it has no check %d that is a command", s.key, q.Check)}
	}
	return nil
}

// attachDrain is POST /v1/attach/drain: the machine is out of this host's names when
// it is answered, and out of the others' as soon as the controllers have told them.
func (h *host) attachDrain(w http.ResponseWriter, r *http.Request) {
	var q local.Drain
	s, err := h.ofProcess(r, &q, func() (string, string) { return q.Org, q.ID })
	if err != nil {
		refuse(w, err)
		return
	}
	h.machines.drain(s)
	h.log.Info("machine drains", "machine", s.key)
	ctx, cancel := context.WithTimeout(r.Context(), drainTimeout)
	defer cancel()
	err = h.machines.request(ctx, http.MethodPatch, machinePath(q.Org, q.ID), api.UpdateMachine{State: new(mesh.StateDraining)}, nil)
	if err != nil {
		err = fmt.Errorf("machine %s drains on its own host only: %w", s.key, err)
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// drainTimeout bounds how long the controllers are asked.
const drainTimeout = 3 * time.Second

func (m *machines) drain(s *stay) {
	m.mu.Lock()
	s.drains = true
	m.mu.Unlock()
	m.beat(s)
}

// ofProcess reads a request about a machine, and returns the machine if the process
// that asks has attached it.
func (h *host) ofProcess(r *http.Request, into any, which func() (org, id string)) (*stay, error) {
	if err := readBody(r, into); err != nil {
		return nil, err
	}
	if h.ready.Load() == nil {
		return nil, notYet(&h.problems)
	}
	org, id := which()
	cred, ok := caller(r.Context())
	if ok {
		if s := h.machines.ofPID(org+"/"+id, cred.Pid); s != nil {
			return s, nil
		}
	}
	return nil, &notFound{fmt.Sprintf("machine %s/%s: this process has not attached it", org, id)}
}

// ofPID returns the machine if it is the process's, else nil.
func (m *machines) ofPID(key string, pid int32) *stay {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.stays[key]; s != nil && s.pid == pid {
		return s
	}
	return nil
}
