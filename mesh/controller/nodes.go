package controller

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/store"
)

// defaultPort is WireGuard's, for a host that says neither endpoint nor port.
const defaultPort = 51820

// enroll lets a node join with a token. The token is spent in the transaction that
// creates the node, and is never looked at again.
func (s *server) enroll(ctx context.Context, c caller, in *struct{ Body api.EnrollRequest }) (*answer[api.EnrollResponse], error) {
	req := in.Body
	token, err := enroll.ParseToken(req.Token)
	if err != nil {
		return nil, refuse(api.ErrToken, mesh.HintOf(err), "%s", err)
	}
	if token.Pin != s.ca.Pin() {
		return nil, refuse(api.ErrToken, "make one of this mesh with: weft token create", "token %s: it is of another mesh", token.ID)
	}
	key, err := parseKey(req.Key)
	if err != nil {
		return nil, err
	}
	pub, err := enroll.ParsePublicKey(req.TLSKey)
	if err != nil {
		return nil, refuse(api.ErrInvalid, "", "%s", err)
	}
	use := store.TokenUse{ID: token.ID, Hash: token.Hash()}
	var node mesh.Node
	var rev int64
	switch token.Kind {
	case mesh.KindHost:
		spec := store.HostSpec{Name: req.Name, Region: req.Region, Key: key, TLSKey: enroll.KeyHash(pub), NAT: req.NAT, Fixed: req.Endpoint != "" && !req.NAT}
		if spec.Endpoints, err = endpointsOf(req, c.addr, s.store.State().Mesh.Plan.Prefix()); err != nil {
			return nil, err
		}
		var h mesh.Host
		h, rev, err = s.store.EnrollHost(ctx, spec, use)
		node = mesh.Node{Kind: mesh.KindHost, Name: h.Name}
	case mesh.KindClient:
		var cl mesh.Client
		cl, rev, err = s.store.EnrollClient(ctx, store.ClientSpec{Name: req.Name, Key: key, TLSKey: enroll.KeyHash(pub)}, use)
		node = mesh.Node{Kind: mesh.KindClient, Org: cl.Org, Name: cl.Name}
	}
	if err != nil {
		return nil, explainEnroll(err, token.Kind)
	}
	certificate, err := s.ca.SignNode(pub, node, s.cfg.CertLifetime, time.Now())
	if err != nil {
		return nil, err
	}
	s.settle(ctx, rev)
	s.log.Info(node.Kind+" enrolled", "node", node.String(), "token", token.ID, "addr", c.addr, "rev", rev)
	return &answer[api.EnrollResponse]{api.EnrollResponse{
		Node: node.String(), Certificate: certificate, Roots: s.deployment.Roots, Controllers: mesh.Controllers(s.deployment.Controllers, s.store.State()),
	}}, nil
}

// endpointsOf says where a host's WireGuard can be reached: never within the mesh, for
// a tunnel that leads into itself goes round. It is where the host says, or the
// address that the request came from.
func endpointsOf(req api.EnrollRequest, seen netip.Addr, inside netip.Prefix) ([]netip.AddrPort, error) {
	const hint = "say where others reach this host: --endpoint IP:PORT (or --nat if nobody can)"
	switch {
	case req.NAT:
		return nil, nil
	case req.Endpoint != "":
		e, err := netip.ParseAddrPort(req.Endpoint)
		if err != nil || e.Port() == 0 {
			return nil, refuse(api.ErrInvalid, hint, "endpoint %q: want IP:PORT", req.Endpoint)
		}
		e = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
		if a := e.Addr(); a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Zone() != "" {
			return nil, refuse(api.ErrInvalid, hint, "endpoint %s: other hosts cannot reach such an address", e)
		}
		if inside.Contains(e.Addr()) {
			return nil, refuse(api.ErrInvalid, hint, "endpoint %s: it lies in the mesh %s itself; the tunnels need a way below it", e, inside)
		}
		return []netip.AddrPort{e}, nil
	case inside.Contains(seen):
		return nil, refuse(api.ErrInvalid, hint, "host %s: the controller saw it at %s, in the mesh %s itself; the tunnels need a way below it", req.Name, seen, inside)
	case !seen.IsValid() || !seen.IsGlobalUnicast():
		return nil, refuse(api.ErrInvalid, hint, "host %s: the controller saw it at %s, where other hosts cannot reach it", req.Name, seen)
	}
	port := req.Port
	if port == 0 {
		port = defaultPort
	}
	return []netip.AddrPort{netip.AddrPortFrom(seen.WithZone(""), port)}, nil
}

// explainEnroll adds to a refusal what the one who joins can do.
func explainEnroll(err error, kind string) error {
	switch {
	case errors.Is(err, store.ErrExists):
		return mesh.WithHint(err, "choose another name, or remove the other one first: weft %s remove", kind)
	case errors.Is(err, store.ErrNotFound) && kind == mesh.KindHost:
		return mesh.WithHint(err, "an operator makes it with: weft region create NAME --at LATITUDE,LONGITUDE")
	case errors.Is(err, store.ErrInvalid) && kind == mesh.KindHost:
		return mesh.WithHint(err, "weft token create --kind host --region NAME says it once; --region of weft-agent, too")
	}
	return err
}

// renew certifies a registered key anew. That the old certificate is out of date
// does not matter: the key is what is registered.
func (s *server) renew(_ context.Context, c caller, _ *nothing) (*answer[api.RenewResponse], error) {
	certificate, err := s.ca.SignNode(c.pub, c.node, s.cfg.CertLifetime, time.Now())
	if err != nil {
		return nil, err
	}
	s.log.Debug("certificate renewed", "node", c.node.String(), "expired", c.expired)
	return &answer[api.RenewResponse]{api.RenewResponse{Certificate: certificate, Roots: s.deployment.Roots}}, nil
}

// report keeps what a host tells about itself. Of clients nothing is kept yet.
func (s *server) report(ctx context.Context, c caller, in *struct{ Body api.Report }) (*none, error) {
	if c.role != host {
		return &none{}, nil
	}
	var errs []error
	if len(in.Body.Health) > 0 {
		rev, err := s.store.SetHealth(ctx, c.actor(), c.node.Name, in.Body.Health)
		errs = append(errs, err)
		s.settle(ctx, rev)
	}
	if p := in.Body.Coordinate; p != nil {
		_, err := s.store.SetCoordinate(ctx, c.node.Name, *p)
		errs = append(errs, err)
	}
	if r := in.Body.Reach; r != nil {
		errs = append(errs, s.renumber(ctx, c, *r))
	}
	in.Body.Health, in.Body.Coordinate, in.Body.Reach = nil, nil, nil // they are kept elsewhere
	return &none{}, errors.Join(append(errs, s.store.SaveReport(ctx, c.node.Name, in.Body))...)
}

// gateway moves the client that asks to another gateway.
func (s *server) gateway(ctx context.Context, c caller, in *struct{ Body api.GatewayRequest }) (*answer[api.ClientInfo], error) {
	moved, rev, err := s.store.SetGateway(ctx, c.actor(), c.node.Org, c.node.Name, in.Body.Gateway)
	if err != nil {
		return nil, err
	}
	s.done(ctx, c, rev, "client moved", "host", moved.Gateway)
	return &answer[api.ClientInfo]{clientInfo(moved)}, nil
}

// leave removes the node that asks.
func (s *server) leave(ctx context.Context, c caller, _ *nothing) (*none, error) {
	if c.role == host {
		rev, err := s.store.RemoveHost(ctx, c.actor(), c.node.Name)
		return s.removed(ctx, c, rev, err, "host left", "host", c.node.Name)
	}
	rev, err := s.store.RemoveClient(ctx, c.actor(), c.node.Org, c.node.Name)
	return s.removed(ctx, c, rev, err, "client left", "client", c.node.Org+"/"+c.node.Name)
}
