package controller

import (
	"context"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// An org's own records.

func (s *server) recordRoutes(r *router) {
	type inRecord struct {
		Org    string `path:"org"`
		Record string `path:"record"`
	}
	type inType struct {
		Org    string `path:"org"`
		Record string `path:"record"`
		Type   string `path:"type"`
	}
	same := func(r mesh.Record) (mesh.Record, bool) { return r, true }
	route(r, "record-list", func(_ context.Context, _ caller, in *inOrg) (*answer[[]mesh.Record], error) {
		st := s.store.State()
		if err := liveOrg(st, in.Org); err != nil {
			return nil, err
		}
		return collect(st.Records.Prefix(in.Org+"/"), same), nil
	})
	route(r, "record-show", func(_ context.Context, _ caller, in *inRecord) (*answer[[]mesh.Record], error) {
		found := collect(s.store.State().Records.Prefix(in.Org+"/"+in.Record+"/"), same)
		if len(found.Body) == 0 {
			return nil, notFound("record " + in.Org + "/" + in.Record)
		}
		return found, nil
	})
	route(r, "record-create", func(ctx context.Context, c caller, in *struct {
		Org  string `path:"org"`
		Body api.CreateRecord
	}) (*answer[mesh.Record], error) {
		b := in.Body
		made, rev, err := s.store.CreateRecord(ctx, c.actor(), mesh.Record{Org: in.Org, Name: b.Name, Type: b.Type, TTL: b.TTL, Values: b.Values})
		return s.recorded(ctx, c, made, rev, err, "record created")
	})
	route(r, "record-set", func(ctx context.Context, c caller, in *struct {
		Org    string `path:"org"`
		Record string `path:"record"`
		Type   string `path:"type"`
		Body   api.SetRecord
	}) (*answer[mesh.Record], error) {
		b := in.Body
		made, rev, err := s.store.SetRecord(ctx, c.actor(), mesh.Record{Org: in.Org, Name: in.Record, Type: in.Type, TTL: b.TTL, Values: b.Values})
		return s.recorded(ctx, c, made, rev, err, "record set")
	})
	route(r, "record-remove", func(ctx context.Context, c caller, in *inType) (*none, error) {
		rev, err := s.store.RemoveRecord(ctx, c.actor(), in.Org, in.Record, in.Type)
		return s.removed(ctx, c, rev, err, "record removed", "record", in.Org+"/"+in.Record+"/"+in.Type)
	})
	route(r, "record-clear", func(ctx context.Context, c caller, in *inRecord) (*none, error) {
		rev, err := s.store.RemoveRecord(ctx, c.actor(), in.Org, in.Record, "")
		return s.removed(ctx, c, rev, err, "records removed", "record", in.Org+"/"+in.Record)
	})
}

func (s *server) recorded(ctx context.Context, c caller, made mesh.Record, rev int64, err error, what string) (*answer[mesh.Record], error) {
	if err != nil {
		return nil, err
	}
	s.done(ctx, c, rev, what, "record", made.Org+"/"+made.Name+"/"+made.Type)
	return &answer[mesh.Record]{made}, nil
}
