package store

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/weftmesh/weft/ipam"
	"github.com/weftmesh/weft/mesh"
)

// ClientSpec describes a new client. With EnrollClient, Org may be empty: the
// token's org counts.
type ClientSpec struct {
	Org     string
	Name    string
	Key     mesh.Key
	TLSKey  string // "" for a client that follows no view
	Gateway string // host; "": one is chosen
	// TTL is how long it lasts, whole seconds; 0: for ever, or with EnrollClient as
	// long as the token says.
	TTL time.Duration
}

// maxClientTTL bounds the time of a client that has one.
const maxClientTTL = 10 * 366 * 24 * time.Hour

// EnrollClient creates a client and spends one use of its token, in one
// transaction; otherwise as EnrollHost.
func (s *Store) EnrollClient(ctx context.Context, spec ClientSpec, use TokenUse) (client mesh.Client, rev int64, err error) {
	if spec.TLSKey == "" {
		return client, 0, invalid(fmt.Errorf("client %s: it has no TLS key", spec.Name))
	}
	if err := checkClient(spec); err != nil {
		return client, 0, invalid(err)
	}
	rev, err = s.createClient(ctx, "token/"+use.ID, func(ctx context.Context, t *tx, plan ipam.Plan) error {
		if err := t.alone(ctx, tokenKey(use.ID)); err != nil {
			return err
		}
		token, err := t.presented(ctx, use, mesh.KindClient)
		if err != nil {
			return err
		}
		if spec.Org != "" && spec.Org != token.Org {
			return fmt.Errorf("%w: token %s is not for org %s", ErrToken, token.ID, spec.Org)
		}
		spec := spec
		spec.Org = token.Org
		if token.ClientTTL != "" {
			if spec.TTL, err = time.ParseDuration(token.ClientTTL); err != nil {
				return fmt.Errorf("token %s: %w: client_ttl %q", token.ID, ErrInvalid, token.ClientTTL)
			}
		}
		var there bool
		client, there, err = get[mesh.Client](ctx, t, clientKey(spec.Org, spec.Name))
		if err != nil || there && client.Key == spec.Key && client.TLSKey == spec.TLSKey {
			return err
		}
		if err := t.spend(token); err != nil {
			return err
		}
		client, err = t.newClient(ctx, plan, spec, "client.enroll")
		return err
	})
	return result(client, rev, err, "enroll client %s", spec.Name)
}

// CreateClient creates a client without a token, on an administrator's word.
func (s *Store) CreateClient(ctx context.Context, actor string, spec ClientSpec) (client mesh.Client, rev int64, err error) {
	if err := checkClient(spec); err != nil {
		return client, 0, invalid(err)
	}
	rev, err = s.createClient(ctx, actor, func(ctx context.Context, t *tx, plan ipam.Plan) error {
		client, err = t.newClient(ctx, plan, spec, "client.create")
		return err
	})
	return result(client, rev, err, "create client %s/%s", spec.Org, spec.Name)
}

func (s *Store) createClient(ctx context.Context, actor string, create func(context.Context, *tx, ipam.Plan) error) (int64, error) {
	plan, err := s.needPlan(ctx)
	if err != nil {
		return 0, err
	}
	return s.change(ctx, actor, func(ctx context.Context, t *tx) error { return create(ctx, t, plan) })
}

func checkClient(spec ClientSpec) error {
	if err := mesh.CheckName("client", spec.Name); err != nil {
		return err
	}
	if spec.Key == (mesh.Key{}) {
		return fmt.Errorf("client %s: it has no WireGuard key", spec.Name)
	}
	return checkClientTTL(spec.TTL)
}

func checkClientTTL(ttl time.Duration) error {
	if ttl != 0 && (ttl < time.Second || ttl > maxClientTTL) {
		return fmt.Errorf("a client cannot last %s: want 1s to %s", ttl, maxClientTTL)
	}
	return nil
}

// newClient writes a client. Its home is its first gateway, or where the address is
// homed that was kept for it.
func (t *tx) newClient(ctx context.Context, plan ipam.Plan, spec ClientSpec, action string) (c mesh.Client, err error) {
	chosen := spec.Gateway == ""
	if chosen {
		if err := t.fetch(ctx, orgKey(spec.Org)); err != nil {
			return c, err
		}
		if _, err := t.liveOrg(ctx, spec.Org); err != nil {
			return c, err
		}
		state, err := t.s.at(ctx, t.rev)
		if err != nil {
			return c, err
		}
		if spec.Gateway, err = chooseGateway(state, spec.Org, spec.Name); err != nil {
			return c, err
		}
	}
	if err := t.alone(ctx, "slots/"+spec.Org+"/"+spec.Gateway); err != nil {
		return c, err
	}
	keys := []string{
		orgKey(spec.Org), hostKey(spec.Gateway), clientKey(spec.Org, spec.Name), wireguardKey(spec.Key),
		reservationKey(spec.Org, mesh.KindClient, spec.Name),
	}
	if spec.TLSKey != "" {
		keys = append(keys, tlsKey(spec.TLSKey))
	}
	if err := t.fetch(ctx, keys...); err != nil {
		return c, err
	}
	if _, there, err := get[mesh.Client](ctx, t, clientKey(spec.Org, spec.Name)); err != nil || there {
		return c, errors.Join(err, only(there, ErrExists))
	}
	org, host, err := t.gateway(ctx, spec.Org, spec.Gateway)
	if chosen && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrConflict)) {
		return c, errAgain // it was one when it was chosen
	}
	if err != nil {
		return c, err
	}
	if err := t.room(ctx, org, kindClients); err != nil {
		return c, err
	}
	c = mesh.Client{
		Org: spec.Org, Name: spec.Name, Key: spec.Key, TLSKey: spec.TLSKey,
		Home: host.Name, Gateway: host.Name, Owner: t.actor, Created: t.s.now(),
	}
	if spec.TTL > 0 {
		c.Expires = c.Created.Add(spec.TTL).Truncate(time.Second)
	}
	if err := t.placeClient(ctx, plan, org, host, &c); err != nil {
		return c, err
	}
	return c, errors.Join(
		t.put(clientKey(c.Org, c.Name), c),
		t.claimKeys(mesh.Node{Kind: mesh.KindClient, Org: c.Org, Name: c.Name}, c.Key, c.TLSKey),
		t.event(action, c.Org+"/"+c.Name, ""))
}

// placeClient gives a client the endpoint that is kept for its name, or a new one.
func (t *tx) placeClient(ctx context.Context, plan ipam.Plan, org mesh.Org, host mesh.Host, c *mesh.Client) error {
	kept, err := t.takeBack(ctx, plan, org, mesh.KindClient, c.Name)
	if err != nil {
		return err
	}
	c.Generation = kept.Generation + 1
	if kept.Endpoint.IsValid() {
		c.Endpoint = kept.Endpoint
		parts, _ := plan.Parts(kept.Endpoint.Addr())
		c.Home = homeAt(t.s.State(), host, parts.Host)
		return nil
	}
	slot, err := t.take(ctx, slots(org.Network, host.Number))
	c.Endpoint = plan.Endpoint(org.Network, host.Position(), uint16(slot))
	return err
}

// homeAt returns the name of the host at a position: gateway's, if it is that, or
// that of a host in state; "" if there is none any more.
func homeAt(state mesh.State, gateway mesh.Host, at ipam.Host) string {
	if gateway.Position() == at {
		return gateway.Name
	}
	for name, h := range state.Hosts.All() {
		if h.Position() == at {
			return name
		}
	}
	return ""
}

// gateway returns an org that lives and a host that can be a gateway of it.
func (t *tx) gateway(ctx context.Context, org, host string) (mesh.Org, mesh.Host, error) {
	o, h, err := t.carrier(ctx, org, host)
	if err == nil && !reachable(h) {
		err = fmt.Errorf("host %s: %w: it has no endpoint that clients could reach", host, ErrConflict)
	}
	return o, h, err
}

func reachable(h mesh.Host) bool { return len(h.Endpoints) > 0 && !h.NAT }

// chooseGateway picks the gateway of a client: a host that is present rather than
// one that is not, one that is not cordoned, one that carries the org already; among
// equals, clients spread by hash. It wraps ErrConflict if no host can be one.
func chooseGateway(state mesh.State, org, client string) (string, error) {
	carries := map[string]bool{}
	for _, h := range state.HostsOf(org) {
		carries[h] = true
	}
	best, bestRank, bestDraw := "", -1, uint64(0)
	for name, h := range state.Hosts.All() {
		if !h.MayCarry(org) || !reachable(h) {
			continue
		}
		rank := 0
		if state.Presence.Has(name) {
			rank += 4
		}
		if !h.Cordoned {
			rank += 2
		}
		if carries[name] {
			rank++
		}
		draw := fnv.New64a()
		fmt.Fprintf(draw, "%s/%s at %s", org, client, name)
		if d := draw.Sum64(); rank > bestRank || rank == bestRank && d > bestDraw {
			best, bestRank, bestDraw = name, rank, d
		}
	}
	if best == "" {
		return "", fmt.Errorf("org %s: %w: no host with a public endpoint may carry it", org, ErrConflict)
	}
	return best, nil
}

// SetGateway moves a client to another gateway. Its address stays.
func (s *Store) SetGateway(ctx context.Context, actor, org, name, gateway string) (client mesh.Client, rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, orgKey(org), clientKey(org, name), hostKey(gateway)); err != nil {
			return err
		}
		var there bool
		client, there, err = get[mesh.Client](ctx, t, clientKey(org, name))
		if err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		if _, _, err := t.gateway(ctx, org, gateway); err != nil {
			return err
		}
		if client.Gateway == gateway {
			return nil
		}
		client.Gateway, client.Generation = gateway, client.Generation+1
		return errors.Join(t.put(clientKey(org, name), client), t.event("client.gateway", org+"/"+name, gateway))
	})
	return result(client, rev, err, "set gateway of client %s/%s", org, name)
}

// RemoveClient removes a client and gives up its keys. Its address is kept for its
// name for a while (Config.AddressRest).
func (s *Store) RemoveClient(ctx context.Context, actor, org, name string) (rev int64, err error) {
	plan, err := s.needPlan(ctx)
	if err != nil {
		return 0, fmt.Errorf("remove client %s/%s: %w", org, name, err)
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		if err := t.fetch(ctx, clientKey(org, name), reservationKey(org, mesh.KindClient, name)); err != nil {
			return err
		}
		client, there, err := get[mesh.Client](ctx, t, clientKey(org, name))
		if err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		return errors.Join(t.dropClient(ctx, plan, client), t.event("client.remove", org+"/"+name, ""))
	})
	return removed(rev, err, "remove client %s/%s", org, name)
}

// dropClient deletes a client's record and keeps its address for its name: for
// Config.AddressRest, and that of one with an end for no longer than it was to last
// itself, so that short-lived ones do not use up a host's addresses.
func (t *tx) dropClient(ctx context.Context, plan ipam.Plan, c mesh.Client) error {
	rest := t.s.config.AddressRest
	if !c.Expires.IsZero() {
		rest = min(rest, max(c.Expires.Sub(c.Created), 0))
	}
	t.delete(clientKey(c.Org, c.Name))
	t.dropKeys(c.Key, c.TLSKey)
	return t.keep(ctx, plan, mesh.Reservation{
		Org: c.Org, Kind: mesh.KindClient, Name: c.Name, Endpoint: c.Endpoint, Generation: c.Generation,
		Until: t.s.now().Add(rest),
	})
}
