package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/e2e/history"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// soakClient is one client. It asks one controller at a time.
type soakClient struct {
	*soak
	n    int
	r    *rand.Rand
	only *int // the controller that it asks; nil: any
}

func (c *soakClient) pick(names ...string) string { return names[c.r.IntN(len(names))] }

func (c *soakClient) fresh(prefix string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names++
	return fmt.Sprint(prefix, c.names)
}

func (c *soakClient) step(ctx context.Context) {
	switch x := c.r.IntN(100); {
	case x < 25:
		c.createMachine(ctx, c.pick("a", "ab"), c.fresh("m"), c.pick("h0", "h1"))
	case x < 35:
		c.createMachine(ctx, c.pick("a", "ab"), c.pick("s0", "s1"), c.pick("h0", "h1"))
	case x < 50:
		c.removeMachine(ctx)
	case x < 55:
		c.createToken(ctx)
	case x < 68:
		c.mu.Lock()
		token := c.token
		c.mu.Unlock()
		if token.id != "" {
			c.join(ctx, c.pick("x0", "x1", "x2"), token)
		}
	case x < 74:
		c.do(ctx, history.Operation{Action: history.Remove, Key: "hosts/" + c.pick("x0", "x1", "x2")}, c.admins, "DELETE", "", nil, nil)
	case x < 80:
		c.createClient(ctx, c.pick("a", "ab"), c.pick("p0", "p1", "p2"))
	case x < 85:
		org, name := c.pick("a", "ab"), c.pick("p0", "p1", "p2")
		c.do(ctx, history.Operation{Action: history.Remove, Key: "clients/" + org + "/" + name}, c.admins, "DELETE", "", nil, nil)
	case x < 88:
		c.createOrg(ctx, c.pick("o0", "o1"))
	case x < 90:
		c.do(ctx, history.Operation{Action: history.Remove, Key: "orgs/" + c.pick("o0", "o1")}, c.admins, "DELETE", "", nil, nil)
	default:
		c.read(ctx, soakLists[c.r.IntN(len(soakLists))], false)
	}
}

// objectPath is where the object of a key is.
func objectPath(key string) string {
	kind, rest, _ := strings.Cut(key, "/")
	if org, name, two := strings.Cut(rest, "/"); two {
		return "/v1/orgs/" + org + "/" + kind + "/" + name
	}
	return "/v1/" + key
}

// do asks one controller, and records it. at is "" for the path of the key.
func (c *soakClient) do(ctx context.Context, op history.Operation, clients []*api.Client, method, at string, in, out any, fill ...func(*history.Operation)) history.Operation {
	i := c.r.IntN(len(clients))
	if c.only != nil {
		i = *c.only
	}
	op.Client, op.Server = c.n, c.w.Controllers[i].Name()
	if at == "" {
		at = objectPath(op.Key)
	}
	return c.rec.Do(op, func(op *history.Operation) {
		err := clients[i].Do(context.WithoutCancel(ctx), method, at, in, out)
		op.Result = soakResult(*op, err)
		if op.Result == "" {
			c.t.Errorf("%s %s: %v", method, at, err)
			op.Result = history.Unknown
		}
		if err == nil {
			for _, f := range fill {
				f(op)
			}
		}
	})
}

// soakResult is what an answer means; "" for one that must not be.
func soakResult(op history.Operation, err error) history.Result {
	is := func(codes ...*api.Error) bool {
		for _, code := range codes {
			if errors.Is(err, code) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return history.OK
	case is(api.ErrToken):
		return history.Token
	case is(api.ErrNotFound) && op.Action == history.Remove:
		return history.Gone // HTTP may have asked twice: the first time it may have been there
	case is(api.ErrExists) && op.Action == history.Create && op.Node == "":
		return history.Exists
	case is(api.ErrUnavailable), errors.Is(err, api.ErrUnreachable), errors.Is(err, context.DeadlineExceeded):
		return history.Unknown
	case is(api.ErrExists, api.ErrNotFound, api.ErrConflict, api.ErrFull, api.ErrLimit):
		return history.Refused
	}
	return ""
}

func (c *soakClient) createOrg(ctx context.Context, name string) history.Result {
	var org api.OrgInfo
	return c.do(ctx, history.Operation{Action: history.Create, Key: "orgs/" + name}, c.admins, "POST", "/v1/orgs", api.CreateOrg{Name: name}, &org,
		func(op *history.Operation) { op.Object.Number = org.Network }).Result
}

func soakMachine(m mesh.Machine) history.Object {
	return history.Object{Endpoint: m.Endpoint.String(), Host: m.Host, Generation: m.Generation}
}

func (c *soakClient) createMachine(ctx context.Context, org, id, host string) {
	var m api.MachineInfo
	stable := strings.HasPrefix(id, "s")
	op := c.do(ctx, history.Operation{Action: history.Create, Key: "machines/" + org + "/" + id, Keeps: stable}, c.hosts[host],
		"POST", "/v1/orgs/"+org+"/machines", api.CreateMachine{ID: id, App: "web", Stable: &stable}, &m,
		func(op *history.Operation) { op.Object = soakMachine(m.Machine) })
	if op.Result == history.OK || op.Result == history.Unknown {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.machines = append(c.machines, org+"/"+id)
	}
}

func (c *soakClient) removeMachine(ctx context.Context) {
	c.mu.Lock()
	if len(c.machines) == 0 {
		c.mu.Unlock()
		return
	}
	i := c.r.IntN(len(c.machines))
	name := c.machines[i]
	c.machines = append(c.machines[:i], c.machines[i+1:]...)
	c.mu.Unlock()
	c.do(ctx, history.Operation{Action: history.Remove, Key: "machines/" + name}, c.admins, "DELETE", "", nil, nil)
}

// createToken makes the token that is spent from then on. One whose answer is lost
// nobody knows, so nobody spends it.
func (c *soakClient) createToken(ctx context.Context) {
	in := api.CreateToken{Kind: mesh.KindHost, Orgs: []string{mesh.AllOrgs}, Region: "fra", Uses: 2, TTL: "10h"}
	var out api.CreatedToken
	i := c.r.IntN(len(c.admins))
	op := history.Operation{Client: c.n, Action: history.Create, Uses: in.Uses, Server: c.w.Controllers[i].Name()}
	c.rec.Do(op, func(op *history.Operation) {
		if err := c.admins[i].Do(context.WithoutCancel(ctx), "POST", "/v1/tokens", in, &out); err != nil {
			op.Result = history.Refused
			return
		}
		op.Result, op.Key = history.OK, "tokens/"+out.ID
	})
	if out.ID == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.token = soakToken{out.ID, out.Token}
}

// join enrols a host with new keys, and asks again in the same words when it does
// not hear what came of it. The certificate is that of the host.
func (c *soakClient) join(ctx context.Context, name string, token soakToken) *tls.Certificate {
	keys, err := enroll.LoadOrCreateKeys(c.t.TempDir())
	if err != nil {
		c.t.Error(err)
		return nil
	}
	public, err := keys.TLSPublic()
	if err != nil {
		c.t.Error(err)
		return nil
	}
	in := api.EnrollRequest{Token: token.text, Name: name, Key: keys.WireGuard.PublicKey().String(), TLSKey: public, Endpoint: "192.0.2.1:51820"}
	op := history.Operation{Action: history.Create, Key: "hosts/" + name, Node: in.Key, Token: "tokens/" + token.id}
	for range 3 {
		var out api.EnrollResponse
		switch c.do(ctx, op, c.admins, "POST", "/v1/enroll", in, &out).Result {
		case history.Unknown:
		case history.OK:
			cert, err := keys.Certificate(out.Certificate)
			if err != nil {
				c.t.Error(err)
			}
			return cert
		default:
			return nil
		}
	}
	return nil
}

func (c *soakClient) createClient(ctx context.Context, org, name string) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		c.t.Error(err)
		return
	}
	in := api.CreateClient{Name: name, Key: key.PublicKey().String()}
	var out api.CreatedClient
	c.do(ctx, history.Operation{Action: history.Create, Key: "clients/" + org + "/" + name, Node: in.Key, Keeps: true}, c.admins,
		"POST", "/v1/orgs/"+org+"/clients", in, &out, func(op *history.Operation) { op.Object.Endpoint = out.Client.Endpoint.String() })
}

// soakLists are what is read.
var soakLists = []string{"orgs/", "hosts/", "tokens/", "machines/a/", "machines/ab/", "clients/a/", "clients/ab/"}

// read records a list as a controller shows it.
func (c *soakClient) read(ctx context.Context, what string, current bool) {
	var err error
	state := map[string]history.Object{}
	kind, org, _ := strings.Cut(strings.TrimSuffix(what, "/"), "/")
	at := "/v1/" + kind
	if org != "" {
		at = "/v1/orgs/" + org + "/" + kind
	}
	i := c.r.IntN(len(c.admins))
	if c.only != nil {
		i = *c.only
	}
	op := history.Operation{Client: c.n, Action: history.Read, Key: what, Server: c.w.Controllers[i].Name(), Current: current}
	c.rec.Do(op, func(op *history.Operation) {
		switch kind {
		case "orgs":
			err = list(ctx, c.admins[i], at, func(o api.OrgInfo) { state["orgs/"+o.Name] = history.Object{Number: o.Network, Ending: o.Tombstone} })
		case "hosts":
			err = list(ctx, c.admins[i], at, func(h api.HostInfo) { state["hosts/"+h.Name] = history.Object{Number: uint64(h.Number)} })
		case "tokens":
			err = list(ctx, c.admins[i], at, func(t api.Token) { state["tokens/"+t.ID] = history.Object{Uses: t.Uses} })
		case "machines":
			err = list(ctx, c.admins[i], at, func(m api.MachineInfo) { state["machines/"+m.Org+"/"+m.ID] = soakMachine(m.Machine) })
		case "clients":
			err = list(ctx, c.admins[i], at, func(x api.ClientInfo) {
				state["clients/"+x.Org+"/"+x.Name] = history.Object{Endpoint: x.Endpoint.String()}
			})
		}
		if op.Result = history.OK; err != nil {
			op.Result = history.Refused
			return
		}
		op.State = state
	})
}

func list[T any](ctx context.Context, c *api.Client, at string, each func(T)) error {
	var all []T
	err := c.Do(context.WithoutCancel(ctx), http.MethodGet, at, nil, &all)
	for _, v := range all {
		each(v)
	}
	return err
}
