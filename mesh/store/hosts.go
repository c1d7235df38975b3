package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftmesh/weft/mesh"
)

// TokenUse is a token as presented: its id and the SHA-256 of its secret.
type TokenUse struct {
	ID   string
	Hash []byte
}

// HostSpec describes a host that joins. The orgs that it may carry are its token's.
type HostSpec struct {
	Name      string
	Region    string // used if the token names none
	Key       mesh.Key
	TLSKey    string // hash, see enroll.KeyHash
	Endpoints []netip.AddrPort
	NAT       bool
	Fixed     bool // Endpoints were given
}

// HostChange is what SetHost sets; nil fields stay.
type HostChange struct {
	Cordoned  *bool
	Endpoints *[]netip.AddrPort
	NAT       *bool
	Fixed     *bool
}

// maxEndpoints bounds how many ways to one host every other one is told.
const maxEndpoints = 16

// EnrollHost creates a host and spends one use of its token, in one transaction.
// It wraps ErrToken for a token that is unknown, wrong, spent, expired or not a
// host's.
//
// The same request again (name, both keys, a token whose secret is right) returns
// the host that is there and spends nothing: its answer may have been lost.
func (s *Store) EnrollHost(ctx context.Context, spec HostSpec, use TokenUse) (host mesh.Host, rev int64, err error) {
	if err := checkHost(spec); err != nil {
		return host, 0, invalid(err)
	}
	rev, err = s.change(ctx, "token/"+use.ID, func(ctx context.Context, t *tx) error {
		if err := t.alone(ctx, "hosts"); err != nil {
			return err
		}
		if err := t.fetch(ctx, tokenKey(use.ID), hostKey(spec.Name), removingKey(spec.Name), wireguardKey(spec.Key), tlsKey(spec.TLSKey)); err != nil {
			return err
		}
		token, err := t.presented(ctx, use, mesh.KindHost)
		if err != nil {
			return err
		}
		var there bool
		host, there, err = get[mesh.Host](ctx, t, hostKey(spec.Name))
		switch {
		case err != nil:
			return err
		case there && host.Key == spec.Key && host.TLSKey == spec.TLSKey:
			return nil
		case there:
			return ErrExists
		case t.seen[removingKey(spec.Name)] != nil:
			return fmt.Errorf("%w: a host of this name is still being removed; try again in a moment", ErrConflict)
		}
		if err := t.spend(token); err != nil {
			return err
		}
		host, err = t.newHost(ctx, spec, token)
		if err != nil {
			return err
		}
		return errors.Join(
			t.put(hostKey(host.Name), host),
			t.claimKeys(mesh.Node{Kind: mesh.KindHost, Name: host.Name}, host.Key, host.TLSKey),
			t.event("host.enroll", host.Name, ""))
	})
	return result(host, rev, err, "enroll host %s", spec.Name)
}

func (t *tx) newHost(ctx context.Context, spec HostSpec, token mesh.Token) (mesh.Host, error) {
	name := spec.Region
	if token.Region != "" {
		if name != "" && name != token.Region {
			return mesh.Host{}, fmt.Errorf("%w: the token is for region %s, not %s", ErrConflict, token.Region, name)
		}
		name = token.Region
	}
	if name == "" {
		return mesh.Host{}, fmt.Errorf("%w: neither the host nor its token names a region", ErrInvalid)
	}
	region, err := t.region(ctx, name)
	if err != nil {
		return mesh.Host{}, err
	}
	number, err := t.take(ctx, t.s.hostNumbers())
	if err != nil {
		return mesh.Host{}, err
	}
	return mesh.Host{
		Name: spec.Name, Number: uint32(number), Region: region.Name, RegionNumber: region.Number,
		Key: spec.Key, TLSKey: spec.TLSKey, Endpoints: spec.Endpoints, NAT: spec.NAT, Fixed: spec.Fixed,
		Orgs: slices.Clone(token.Orgs), Created: t.s.now(),
	}, nil
}

func checkHost(spec HostSpec) error {
	if err := mesh.CheckName("host", spec.Name); err != nil {
		return err
	}
	if spec.Key == (mesh.Key{}) || spec.TLSKey == "" {
		return fmt.Errorf("host %s: it has no keys", spec.Name)
	}
	return checkEndpoints(spec.Name, spec.Endpoints)
}

func checkEndpoints(host string, endpoints []netip.AddrPort) error {
	if len(endpoints) > maxEndpoints {
		return fmt.Errorf("host %s: it has more than %d endpoints", host, maxEndpoints)
	}
	for _, e := range endpoints {
		a := e.Addr()
		if !e.IsValid() || e.Port() == 0 || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
			return fmt.Errorf("host %s: nobody can reach endpoint %s", host, e)
		}
	}
	return nil
}

// region returns the region, which must be there.
func (t *tx) region(ctx context.Context, name string) (mesh.Region, error) {
	region, there, err := get[mesh.Region](ctx, t, regionKey(name))
	if err == nil && !there {
		err = fmt.Errorf("region %s: %w", name, ErrNotFound)
	}
	return region, err
}

// host returns the host, which must be there.
func (t *tx) host(ctx context.Context, name string) (mesh.Host, error) {
	host, there, err := get[mesh.Host](ctx, t, hostKey(name))
	if err == nil && !there {
		err = fmt.Errorf("host %s: %w", name, ErrNotFound)
	}
	return host, err
}

// claimKeys makes the keys node's own, if they are nobody's.
func (t *tx) claimKeys(node mesh.Node, key mesh.Key, tls string) error {
	claims := map[string]string{wireguardKey(key): "WireGuard key"}
	if tls != "" {
		claims[tlsKey(tls)] = "TLS key"
	}
	for k, what := range claims {
		owner, read := t.seen[k]
		if !read {
			return fmt.Errorf("%s was not read", k)
		}
		if owner != nil {
			return fmt.Errorf("%s: its %s is another node's: %w", node, what, ErrExists)
		}
		if err := t.put(k, node.String()); err != nil {
			return err
		}
	}
	return nil
}

// dropKeys gives a node's keys up.
func (t *tx) dropKeys(key mesh.Key, tls string) {
	t.delete(wireguardKey(key))
	if tls != "" {
		t.delete(tlsKey(tls))
	}
}

// SetHost changes what an operator or the host itself may change.
func (s *Store) SetHost(ctx context.Context, actor, name string, change HostChange) (host mesh.Host, rev int64, err error) {
	if change.Endpoints != nil {
		if err := checkEndpoints(name, *change.Endpoints); err != nil {
			return host, 0, invalid(err)
		}
	}
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		var there bool
		host, there, err = get[mesh.Host](ctx, t, hostKey(name))
		if err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		note, changed := "", false
		if c := change.Cordoned; c != nil && *c != host.Cordoned {
			host.Cordoned, changed = *c, true
			note = fmt.Sprintf("cordoned %t", *c)
		}
		if c := change.NAT; c != nil && *c != host.NAT {
			host.NAT, changed = *c, true
		}
		if c := change.Endpoints; c != nil && !slices.Equal(*c, host.Endpoints) {
			note = fmt.Sprintf("endpoints %v, before %v", *c, host.Endpoints)
			host.Endpoints, changed = slices.Clone(*c), true
		}
		if c := change.Fixed; c != nil && *c != host.Fixed {
			host.Fixed, changed = *c, true
		}
		if !changed {
			return nil
		}
		return errors.Join(t.put(hostKey(name), host), t.event("host.set", name, note))
	})
	return result(host, rev, err, "set host %s", name)
}

// removal is the job that is left when a host's record is gone: its machines and
// the clients that it was the gateway of.
type removal struct {
	Number uint32 `json:"number"`
}

// RemoveHost removes a host, its machines and its keys. Clients whose gateway it
// was get another one, or none if no other host may carry their org. The host is
// cut off in one transaction; then the rest is cleaned up, and if that is
// interrupted, Run goes on with it.
func (s *Store) RemoveHost(ctx context.Context, actor, name string) (rev int64, err error) {
	rev, err = s.change(ctx, actor, func(ctx context.Context, t *tx) error {
		host, there, err := get[mesh.Host](ctx, t, hostKey(name))
		if err != nil || !there {
			return errors.Join(err, only(!there, ErrNotFound))
		}
		t.delete(hostKey(name))
		t.dropKeys(host.Key, host.TLSKey)
		t.delete(presenceKey(name))
		t.delete(reportKey(name))
		t.delete(coordinateKey(name))
		return errors.Join(
			t.giveHost(host.Number),
			t.put(removingKey(name), removal{host.Number}),
			t.event("host.remove", name, ""))
	})
	if err != nil {
		return 0, fmt.Errorf("remove host %s: %w", name, err)
	}
	return s.finish(ctx, rev, "host", name, s.cleanHost), nil
}
