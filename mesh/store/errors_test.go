package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/etcd"
)

func withPrefix() clientv3.OpOption { return clientv3.WithPrefix() }

func TestErrorsOfEtcdAreReadable(t *testing.T) {
	t.Parallel()
	ended, end := context.WithCancel(t.Context())
	end()
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		want error
		says string
	}{
		{t.Context(), rpctypes.ErrNoSpace, ErrUnavailable, "full (NOSPACE)"},
		{t.Context(), rpctypes.ErrCorrupt, ErrUnavailable, "damaged (CORRUPT)"},
		{t.Context(), rpctypes.ErrNoLeader, ErrUnavailable, "no leader"},
		{t.Context(), rpctypes.ErrLeaderChanged, ErrUnavailable, "no leader"},
		{t.Context(), rpctypes.ErrTimeout, ErrUnavailable, "in time"},
		{t.Context(), context.DeadlineExceeded, ErrUnavailable, "in time"},
		{t.Context(), status.Error(codes.DeadlineExceeded, "x"), ErrUnavailable, "in time"},
		{t.Context(), status.Error(codes.Unknown, "raft proposal dropped"), ErrUnavailable, "choosing a leader"},
		{t.Context(), rpctypes.ErrTooManyRequests, ErrUnavailable, "overloaded"},
		{t.Context(), rpctypes.ErrStopped, ErrUnavailable, "stopping"},
		{t.Context(), status.Error(codes.Unavailable, "connection refused"), ErrUnavailable, "connection refused"},
		{ended, context.Canceled, context.Canceled, "canceled"},
		{t.Context(), rpctypes.ErrRequestTooLarge, rpctypes.ErrRequestTooLarge, "too large"},
	} {
		err := unavailable(tt.ctx, tt.err)
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%v became %v, want %v that says %q", tt.err, err, tt.want, tt.says)
		}
		if out := errors.Is(tt.err, rpctypes.ErrNoSpace) || errors.Is(tt.err, rpctypes.ErrCorrupt); out != (mesh.HintOf(err) != "") {
			t.Errorf("%v: the hint is %q", tt.err, mesh.HintOf(err))
		}
	}
	if err := unavailable(t.Context(), nil); err != nil {
		t.Errorf("nothing became %v", err)
	}
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	server := ownServer(t)
	s := run(t, newMesh(t, Config{Client: server.Client(), Timeout: 200 * time.Millisecond}))
	org(t, s, "acme")
	eventually(t, s, "the org is there", func(state mesh.State) bool { return state.Orgs.Has("acme") })
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.CreateOrg(t.Context(), "", "beta")
	if !errors.Is(err, ErrUnavailable) || !strings.HasPrefix(err.Error(), "create org beta: no answer from the store: etcd ") {
		t.Errorf("with etcd gone: %v", err)
	}
	if _, _, _, err := s.Load(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("load: %v", err)
	}
	if !s.State().Orgs.Has("acme") {
		t.Error("the mirror is empty with etcd gone")
	}
}

// kops #10663: etcd is full. Changes say so in words that help, and the mirror
// goes on.
func TestFullStore(t *testing.T) {
	t.Parallel()
	c := serverConfig(t.TempDir())
	c.QuotaBytes = 2 << 20
	server, err := etcd.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	s := run(t, newMesh(t, Config{Client: server.Client()}))
	big := strings.Repeat("x", 256<<10)
	// etcd looks at the size of its file, which grows with the next commit, a tenth of
	// a second later.
	deadline := time.Now().Add(10 * time.Second)
	for i := 0; err == nil; i++ {
		_, err = server.Client().Put(t.Context(), fmt.Sprint("/big/", i), big)
		if time.Now().After(deadline) {
			t.Fatal("the quota does not hold")
		}
	}
	_, _, err = s.CreateOrg(t.Context(), "", "acme")
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "etcd is full (NOSPACE)") {
		t.Errorf("with etcd full: %v", err)
	}
}

// The outcome of a change is not known when its answer is lost. It is reported,
// never tried again blindly: one request, one machine.
func TestALostAnswerIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	org(t, s, "acme")
	host(t, s, "h")
	lost := again(t, s)
	lost.client = withKV(s.client, &faultyKV{KV: s.client.KV, after: func() error {
		if len(keysBelow(t, s, "machines/")) > 0 { // that was the change
			return context.DeadlineExceeded
		}
		return nil
	}})
	_, _, err := lost.CreateMachine(t.Context(), "", MachineSpec{Org: "acme", App: "web", Host: "h"})
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v, want ErrUnavailable", err)
	}
	if got := keysBelow(t, s, "machines/"); len(got) != 1 {
		t.Errorf("machines %q, want the one that was made", got)
	}
}

func TestACallerWhoGivesUp(t *testing.T) {
	t.Parallel()
	s := newMesh(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.CreateOrg(ctx, "", "acme"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
	if _, err := s.needPlan(t.Context()); err != nil {
		t.Fatal(err)
	}
	unlock, err := s.locks.lock(t.Context(), "networks")
	if err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := s.CreateOrg(late, "", "acme"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind a lock: %v", err)
	}
	unlock()
	org(t, s, "acme")
	if n := len(s.locks.held); n != 0 {
		t.Errorf("%d locks are kept", n)
	}
}
