package controller

import (
	"context"
	"crypto"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// caller is who sent a request. The zero caller showed no credential.
type caller struct {
	role    role
	id      string           // of an operator
	org     string           // with an org role
	node    mesh.Node        // with role host or client
	host    mesh.Host        // with role host
	pub     crypto.PublicKey // the TLS key, with role host or client
	key     string           // its hash
	expired bool             // the certificate was out of date when the connection was made

	addr netip.Addr // where the request came from
}

// actor names the caller in the audit log and in messages.
func (c caller) actor() string {
	switch {
	case c.role&people != 0:
		return "operator/" + c.id
	case c.role&nodes != 0:
		return c.node.String()
	}
	return "anyone"
}

// sees reports whether things of org are to be in lists for the caller.
func (c caller) sees(org string) bool { return c.role == operator || c.org != "" && c.org == org }

// identify finds out who sent req, in the state as it is now: who was removed a
// moment ago is nobody. A credential that is shown and wrong is an error, even if
// another one is right.
func (s *server) identify(req *http.Request, st mesh.State) (caller, error) {
	if text := req.Header.Get("Authorization"); text != "" {
		return s.identifyOperator(text, st)
	}
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		return s.identifyNode(req, st)
	}
	return caller{}, nil
}

func (s *server) identifyOperator(text string, st mesh.State) (caller, error) {
	wrong := refuse(api.ErrUnauthorized, "is the context that of this mesh, and the operator still there?", "operator credential: it is wrong, or was removed")
	text, ok := strings.CutPrefix(text, "Bearer ")
	if !ok {
		return caller{}, refuse(api.ErrUnauthorized, "", "operator credential: want Authorization: Bearer <id>.<secret>")
	}
	credential, err := enroll.ParseCredential(text)
	if err != nil {
		return caller{}, wrong
	}
	// An operator who is not there is compared too: with nothing, which never
	// matches, in the same time.
	op, _ := st.Operators.Get(credential.ID)
	if !credential.Secret.Matches(op.Hash) {
		return caller{}, wrong
	}
	c := caller{id: op.ID, org: op.Org}
	switch op.Role {
	case mesh.RoleOperator:
		c.role = operator
	case mesh.RoleOrgAdmin:
		c.role = orgAdmin
	case mesh.RoleOrgMember:
		c.role = orgMember
	}
	if c.role != operator {
		if org, ok := st.Orgs.Get(op.Org); !ok || org.Tombstone || c.role == 0 {
			return caller{}, refuse(api.ErrUnauthorized, "", "operator %s: its org %s was removed", op.ID, op.Org)
		}
	}
	return c, nil
}

func (s *server) identifyNode(req *http.Request, st mesh.State) (caller, error) {
	leaf := req.TLS.PeerCertificates[0]
	if err := enroll.VerifyNode(leaf, s.roots); err != nil {
		return caller{}, refuse(api.ErrUnauthorized, "", "%s", err)
	}
	c := caller{pub: leaf.PublicKey, key: enroll.KeyHash(leaf.PublicKey)}
	var ok bool
	if c.node, ok = st.NodeByTLSKey(c.key); !ok {
		name := "the node"
		if n, ok := enroll.NodeName(leaf); ok {
			name = n.String()
		}
		return caller{}, refuse(api.ErrUnauthorized, "to join again it needs a new token", "%s: its key is not registered; it was removed", name)
	}
	switch c.node.Kind {
	case mesh.KindHost:
		c.role = host
		c.host, _ = st.Hosts.Get(c.node.Name)
	case mesh.KindClient:
		c.role, c.org = client, c.node.Org
		if org, ok := st.Orgs.Get(c.org); !ok || org.Tombstone {
			return caller{}, refuse(api.ErrUnauthorized, "", "%s: its org was removed", c.node)
		}
	}
	// Dates count when the connection is made: a certificate that was renewed
	// meanwhile would only be shown on the next one.
	at := connectedAt(req.Context(), time.Now())
	c.expired = at.Before(leaf.NotBefore) || at.After(leaf.NotAfter)
	return c, nil
}

type contextKey int

const (
	callerKey contextKey = iota
	connectionKey
)

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey, c)
}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey).(caller)
	return c
}

// remoteAddr returns the address that a request came from.
func remoteAddr(req *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

func connectedAt(ctx context.Context, otherwise time.Time) time.Time {
	if c, ok := ctx.Value(connectionKey).(connection); ok {
		return c.since
	}
	return otherwise
}
