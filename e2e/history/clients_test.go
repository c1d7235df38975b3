package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/store"
)

// crowd is what the clients share: names to fight over, and what is there to end.
type crowd struct {
	b     *bench
	names atomic.Int64 // for what has to be new

	mu       sync.Mutex        // guards what follows
	machines []string          // org/id, to be removed by somebody
	few      []string          // those of the org that may have few
	tokens   []string          // of hosts
	joining  []string          // tokens of clients
	orgs     map[string]string // of those, by token
}

func (c *crowd) fresh(prefix string) string { return fmt.Sprint(prefix, c.names.Add(1)) }

func (c *crowd) leave(list *[]string, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*list = append(*list, name)
}

// take takes one out of a list; keep leaves it there. "" if there is none.
func (c *crowd) take(r *rand.Rand, list *[]string, keep bool) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(*list) == 0 {
		return ""
	}
	i := r.IntN(len(*list))
	name := (*list)[i]
	if !keep {
		*list = append((*list)[:i], (*list)[i+1:]...)
	}
	return name
}

// worker is one client.
type worker struct {
	*crowd
	n    int
	r    *rand.Rand
	only *controller // that it asks; nil: any
}

func (w *worker) pick(names ...string) string { return names[w.r.IntN(len(names))] }

func (w *worker) at() *store.Store {
	if w.only != nil {
		return w.only.get()
	}
	return w.b.controllers[w.r.IntN(len(w.b.controllers))].get()
}

// settle makes what is there from the beginning: two orgs and two hosts, which stay.
func (w *worker) settle() {
	for _, org := range []string{"a", "ab"} {
		w.createOrg(org)
	}
	w.createOrg("few")
	if _, _, err := w.at().UpdateOrg(context.Background(), "test", "few", mesh.Limits{Machines: rules.Machines["orgs/few"]}); err != nil {
		w.b.t.Error(err)
	}
	for range 2 {
		w.createToken(mesh.KindHost, 2, 24*365)
	}
	for i, host := range []string{"h0", "h1"} {
		w.joinHost(host, w.tokens[i])
	}
}

// step does one thing or another.
func (w *worker) step() {
	switch x := w.r.IntN(105); {
	case x < 15:
		w.createMachine(w.pick("a", "ab"), w.fresh("m"), w.pick("h0", "h1"), false)
	case x < 21:
		w.createMachine("few", w.fresh("m"), w.pick("h0", "h1"), false)
	case x < 25:
		w.createMachine(w.pick("a", "ab"), w.pick("s0", "s1", "s2"), w.pick("h0", "h1"), true)
	case x < 28:
		w.removeMachine(w.pick("a", "ab") + "/" + w.pick("s0", "s1", "s2"))
	case x < 30:
		w.move(w.pick("a", "ab"), w.pick("s0", "s1", "s2"), w.pick("h0", "h1"))
	case x < 46:
		if name := w.take(w.r, &w.machines, w.r.IntN(8) == 0); name != "" {
			w.removeMachine(name)
		}
		if w.r.IntN(4) == 0 {
			if name := w.take(w.r, &w.few, false); name != "" {
				w.removeMachine(name)
			}
		}
	case x < 50:
		w.createMachine(w.pick("o0", "o1"), w.fresh("m"), w.pick("h0", "x0", "x1"), false)
	case x < 54:
		w.createOrg(w.pick("o0", "o1"))
	case x < 57:
		w.removeOrg(w.pick("o0", "o1"))
	case x < 60:
		w.createToken(mesh.KindHost, 1+w.r.IntN(3), 1+w.r.IntN(3))
	case x < 62:
		w.createToken(mesh.KindClient, 1+w.r.IntN(3), 1+w.r.IntN(3))
	case x < 72:
		if token := w.take(w.r, &w.tokens, w.r.IntN(4) != 0); token != "" {
			w.joinHost(w.pick("x0", "x1", "x2", "x3"), token)
		}
	case x < 77:
		w.removeHost(w.pick("x0", "x1", "x2", "x3"))
	case x < 81:
		if token := w.take(w.r, &w.joining, w.r.IntN(4) != 0); token != "" {
			w.joinClient(w.fresh("c"), token)
		}
	case x < 87:
		w.createClient(w.pick("a", "ab"), w.pick("p0", "p1"), w.pick("shared0", "shared1", "shared2"))
	case x < 91:
		w.removeClient(w.pick("a", "ab"), w.pick("p0", "p1"))
	case x < 92:
		if token := w.take(w.r, &w.tokens, true); token != "" {
			w.removeToken(token)
		}
	case x >= 100:
		w.rush()
	default:
		w.b.read(w.n, w.at(), false)
	}
}

func (w *worker) createOrg(name string) {
	w.b.ask(w.n, w.at(), Operation{Action: Create, Key: "orgs/" + name}, func(ctx context.Context, s *store.Store, op *Operation) error {
		org, rev, err := s.CreateOrg(ctx, "test", name)
		op.Object, op.Revision, op.Exact = Object{Number: org.Network}, rev, true
		return err
	})
}

func (w *worker) removeOrg(name string) {
	w.b.ask(w.n, w.at(), Operation{Action: Remove, Key: "orgs/" + name}, func(ctx context.Context, s *store.Store, op *Operation) (err error) {
		op.Revision, err = s.RemoveOrg(ctx, "test", name)
		return err
	})
}

func (w *worker) createMachine(org, id, host string, stable bool) {
	op := Operation{Action: Create, Key: "machines/" + org + "/" + id, Keeps: stable}
	op = w.b.ask(w.n, w.at(), op, func(ctx context.Context, s *store.Store, op *Operation) error {
		m, rev, err := s.CreateMachine(ctx, "test", store.MachineSpec{Org: org, App: "web", ID: id, Host: host, Stable: stable})
		// One of a name that others use too may have been there: nothing was changed.
		op.Object, op.Revision, op.Exact = machineObject(m), rev, !stable
		return err
	})
	if !stable && (op.Result == OK || op.Result == Unknown) {
		list := &w.machines
		if org == "few" {
			list = &w.few
		}
		w.leave(list, org+"/"+id)
	}
}

// move takes a stable machine to host, or makes it there.
func (w *worker) move(org, id, host string) {
	key := "machines/" + org + "/" + id
	var m mesh.Machine
	op := w.b.ask(w.n, w.at(), Operation{Action: Create, Key: key, Keeps: true}, func(ctx context.Context, s *store.Store, op *Operation) (err error) {
		m, op.Revision, err = s.CreateMachine(ctx, "test", store.MachineSpec{Org: org, App: "web", ID: id, Host: host, Stable: true, Move: true})
		op.Object = machineObject(m)
		return err
	})
	if op.Result != OK || m.Host == host {
		return
	}
	w.b.ask(w.n, w.at(), Operation{Action: Move, Key: key}, func(ctx context.Context, s *store.Store, op *Operation) error {
		m, rev, err := s.MoveMachine(ctx, "test", store.MachineRef{Org: org, ID: id}, host, m.Generation)
		op.Object, op.Revision = machineObject(m), rev
		return err
	})
}

func (w *worker) removeMachine(name string) {
	org, id, _ := strings.Cut(name, "/")
	w.b.ask(w.n, w.at(), Operation{Action: Remove, Key: "machines/" + name}, func(ctx context.Context, s *store.Store, op *Operation) (err error) {
		op.Revision, err = s.RemoveMachine(ctx, "test", store.MachineRef{Org: org, ID: id})
		op.Exact = true
		return err
	})
}

func (w *worker) createToken(of string, uses, hours int) (id string) {
	id = w.fresh("t")
	token := mesh.Token{ID: id, Hash: secret(id), Kind: of, Uses: uses, Expires: w.b.clock.Now().Add(time.Duration(hours) * time.Hour)}
	list := &w.tokens
	if of == mesh.KindHost {
		token.Orgs = []string{mesh.AllOrgs}
	} else {
		token.Org, list = w.pick("a", "ab"), &w.joining
		w.noteOrg(id, token.Org)
	}
	op := w.b.ask(w.n, w.at(), Operation{Action: Create, Key: "tokens/" + id, Uses: uses, Expires: token.Expires}, func(ctx context.Context, s *store.Store, op *Operation) error {
		_, rev, err := s.CreateToken(ctx, "test", token)
		op.Revision, op.Exact = rev, true
		return err
	})
	if op.Result == OK || op.Result == Unknown {
		w.leave(list, id)
	}
	return id
}

func (c *crowd) noteOrg(token, org string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orgs[token] = org
}

func (c *crowd) orgOf(token string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.orgs[token]
}

func (w *worker) removeToken(id string) {
	w.b.ask(w.n, w.at(), Operation{Action: Remove, Key: "tokens/" + id}, func(ctx context.Context, s *store.Store, op *Operation) (err error) {
		op.Revision, err = s.RemoveToken(ctx, "test", id)
		op.Exact = true
		return err
	})
}

// joinHost enrols a host with a new key, and asks again, in the same words, when it
// does not hear what came of it.
func (w *worker) joinHost(name, token string) {
	as := w.fresh(name + "-key")
	spec := store.HostSpec{
		Name: name, Region: "fra", Key: w.wireguard(as), TLSKey: "tls of " + as,
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")},
	}
	w.persist(Operation{Action: Create, Key: "hosts/" + name, Node: as, Token: "tokens/" + token}, func(ctx context.Context, s *store.Store, op *Operation) error {
		h, rev, err := s.EnrollHost(ctx, spec, store.TokenUse{ID: token, Hash: secret(token)})
		op.Object, op.Revision = Object{Number: uint64(h.Number)}, rev
		return err
	})
}

func (w *worker) joinClient(name, token string) {
	as := w.fresh(name + "-key")
	spec := store.ClientSpec{Name: name, Key: w.wireguard(as), TLSKey: "tls of " + as}
	// The name is used in one org only, so it does not matter which one the token is of.
	op := Operation{Action: Create, Key: "clients/" + w.orgOf(token) + "/" + name, Node: as, Token: "tokens/" + token, Keeps: true}
	w.persist(op, func(ctx context.Context, s *store.Store, op *Operation) error {
		c, rev, err := s.EnrollClient(ctx, spec, store.TokenUse{ID: token, Hash: secret(token)})
		op.Object, op.Revision = clientObject(c), rev
		return err
	})
}

// persist asks up to three times. Only the first answer of a revision is exact: a
// repetition may be answered with what was there before.
func (w *worker) persist(op Operation, run func(context.Context, *store.Store, *Operation) error) {
	for i := range 3 {
		op := w.b.ask(w.n, w.at(), op, func(ctx context.Context, s *store.Store, op *Operation) error {
			op.Exact = i == 0
			return run(ctx, s, op)
		})
		if op.Result != Unknown {
			return
		}
	}
}

func (w *worker) removeHost(name string) {
	w.b.ask(w.n, w.at(), Operation{Action: Remove, Key: "hosts/" + name}, func(ctx context.Context, s *store.Store, op *Operation) (err error) {
		op.Revision, err = s.RemoveHost(ctx, "test", name)
		return err
	})
}

func (w *worker) createClient(org, name, as string) {
	op := Operation{Action: Create, Key: "clients/" + org + "/" + name, Node: as, Keeps: true}
	w.b.ask(w.n, w.at(), op, func(ctx context.Context, s *store.Store, op *Operation) error {
		c, rev, err := s.CreateClient(ctx, "test", store.ClientSpec{Org: org, Name: name, Key: w.wireguard(as), Gateway: w.pick("h0", "h1")})
		op.Object, op.Revision, op.Exact = clientObject(c), rev, true
		return err
	})
}

func (w *worker) removeClient(org, name string) {
	w.b.ask(w.n, w.at(), Operation{Action: Remove, Key: "clients/" + org + "/" + name}, func(ctx context.Context, s *store.Store, op *Operation) (err error) {
		op.Revision, err = s.RemoveClient(ctx, "test", org, name)
		op.Exact = true
		return err
	})
}

func (w *worker) wireguard(as string) mesh.Key {
	k, err := wgtypes.NewKey(secret(as))
	if err != nil {
		w.b.t.Error(errors.Join(errors.New("make a key"), err))
	}
	return mesh.Key(k)
}
