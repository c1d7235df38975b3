package controller

import (
	"context"
	"time"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

type inID struct {
	ID string `path:"id"`
}

type tokenCreate struct{ Body api.CreateToken }

// orgOf: a host's token is the mesh's.
func (t *tokenCreate) orgOf() (string, bool) { return t.Body.Org, t.Body.Kind == mesh.KindClient }

type operatorCreate struct{ Body api.CreateOperator }

func (o *operatorCreate) orgOf() (string, bool) {
	return o.Body.Org, o.Body.Role != mesh.RoleOperator
}

const (
	defaultTokenTTL = time.Hour
	maxTokenTTL     = 366 * 24 * time.Hour
)

func (s *server) accessRoutes(r *router) {
	showToken := func(c caller) func(mesh.Token) (api.Token, bool) {
		return func(t mesh.Token) (api.Token, bool) {
			return api.Token{ID: t.ID, Kind: t.Kind, Org: t.Org, Orgs: t.Orgs, Region: t.Region, Uses: t.Uses, Expires: t.Expires, ClientTTL: t.ClientTTL}, c.sees(t.Org)
		}
	}
	showOperator := func(c caller) func(mesh.Operator) (api.Operator, bool) {
		return func(o mesh.Operator) (api.Operator, bool) {
			return api.Operator{ID: o.ID, Role: o.Role, Org: o.Org}, c.sees(o.Org)
		}
	}
	route(r, "token-list", func(_ context.Context, c caller, _ *nothing) (*answer[[]api.Token], error) {
		return collect(s.store.State().Tokens.All(), showToken(c)), nil
	})
	route(r, "token-show", func(_ context.Context, c caller, in *inID) (*answer[api.Token], error) {
		return find(s.store.State().Tokens, "token", in.ID, showToken(c))
	})
	route(r, "token-create", s.tokenCreate)
	route(r, "token-remove", func(ctx context.Context, c caller, in *inID) (*none, error) {
		rev, err := s.store.RemoveToken(ctx, c.actor(), in.ID)
		return s.removed(ctx, c, rev, err, "token removed", "token", in.ID)
	})
	route(r, "operator-list", func(_ context.Context, c caller, _ *nothing) (*answer[[]api.Operator], error) {
		return collect(s.store.State().Operators.All(), showOperator(c)), nil
	})
	route(r, "operator-show", func(_ context.Context, c caller, in *inID) (*answer[api.Operator], error) {
		return find(s.store.State().Operators, "operator", in.ID, showOperator(c))
	})
	route(r, "operator-create", s.operatorCreate)
	route(r, "operator-remove", func(ctx context.Context, c caller, in *inID) (*none, error) {
		rev, err := s.store.RemoveOperator(ctx, c.actor(), in.ID)
		return s.removed(ctx, c, rev, err, "operator removed", "operator", in.ID)
	})
}

func (s *server) tokenCreate(ctx context.Context, c caller, in *tokenCreate) (*answer[api.CreatedToken], error) {
	ttl := defaultTokenTTL
	if in.Body.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(in.Body.TTL); err != nil || ttl <= 0 || ttl > maxTokenTTL {
			return nil, refuse(api.ErrInvalid, "", "token: ttl %q: want a duration of up to a year, for example 24h or 30m", in.Body.TTL)
		}
	}
	if in.Body.Uses < 0 {
		return nil, refuse(api.ErrInvalid, "", "token: uses %d: want 1 or more", in.Body.Uses)
	}
	token, err := enroll.NewToken(in.Body.Kind, s.ca.Pin())
	if err != nil {
		return nil, refuse(api.ErrInvalid, "", "%s", err)
	}
	stored, rev, err := s.store.CreateToken(ctx, c.actor(), mesh.Token{
		ID: token.ID, Hash: token.Hash(), Kind: in.Body.Kind, Org: in.Body.Org, Orgs: in.Body.Orgs, Region: in.Body.Region,
		Uses: max(in.Body.Uses, 1), Expires: time.Now().Add(ttl).UTC().Truncate(time.Second),
		ClientTTL: in.Body.ClientTTL,
	})
	if err != nil {
		return nil, err
	}
	s.done(ctx, c, rev, "token created", "token", stored.ID)
	return &answer[api.CreatedToken]{api.CreatedToken{ID: stored.ID, Token: token.Text(), Expires: stored.Expires}}, nil
}

func (s *server) operatorCreate(ctx context.Context, c caller, in *operatorCreate) (*answer[api.CreatedOperator], error) {
	credential, err := enroll.NewCredential(in.Body.ID)
	if err != nil {
		return nil, refuse(api.ErrInvalid, "", "%s", err)
	}
	stored, rev, err := s.store.CreateOperator(ctx, c.actor(), mesh.Operator{
		ID: in.Body.ID, Hash: credential.Secret.Hash(), Role: in.Body.Role, Org: in.Body.Org,
	})
	if err != nil {
		return nil, err
	}
	s.done(ctx, c, rev, "operator created", "operator", stored.ID)
	return &answer[api.CreatedOperator]{api.CreatedOperator{ID: stored.ID, Secret: credential.Secret.Reveal()}}, nil
}
