package peerstest

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/peers"
)

func TestFake(t *testing.T) {
	t.Parallel()
	Run(t, func(*testing.T) peers.Device { return NewFake() })
}

func TestFakePrints(t *testing.T) {
	t.Parallel()
	ctx, f := t.Context(), NewFake()
	want := peers.Config{ListenPort: 51820, Peers: []peers.Peer{owns(1, home(1)), owns(2, home(2))}}
	if err := f.Apply(ctx, peers.Diff(peers.Config{}, want)); err != nil {
		t.Fatal(err)
	}
	const changes = `set-device port=51820
add AAAAAgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= +fd12::1:0:0/96
add AAAAAwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= +fd12::2:0:0/96
`
	if diff := cmp.Diff(changes, f.Changes()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if got := f.Changes(); got != "" {
		t.Errorf("changes are told twice:\n%s", got)
	}

	roamed := netip.MustParseAddrPort("198.51.100.7:4500")
	f.Heard(peers.Stats{Key: num(1), Endpoint: roamed, LastHandshake: time.Unix(1, 0), Rx: 2, Tx: 3})
	f.Heard(peers.Stats{Key: num(9), Rx: 1})
	stats, err := f.Stats(ctx)
	if err != nil || len(stats) != 2 || stats[0].Rx != 2 || stats[0].Endpoint != roamed || stats[1].Rx != 0 {
		t.Errorf("stats = %v, %v", stats, err)
	}
	f.Close()
	const state = `port 51820
peer AAAAAgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= endpoint=198.51.100.7:4500
  fd12::1:0:0/96
peer AAAAAwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
  fd12::2:0:0/96
closed
`
	if diff := cmp.Diff(state, f.String()); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
}

func TestFakeFails(t *testing.T) {
	t.Parallel()
	ctx, f, broken := t.Context(), NewFake(), errors.New("broken")
	f.Fail(func(c peers.Change) error {
		if c.Peer.Key == num(2) {
			return broken
		}
		return nil
	})
	changes := []peers.Change{add(owns(1)), add(owns(2)), add(owns(3))}
	if err := f.Apply(ctx, changes); !errors.Is(err, broken) {
		t.Fatalf("Apply = %v, want %v", err, broken)
	}
	if c, _ := f.Config(ctx); len(c.Peers) != 1 || c.Peers[0].Key != num(1) {
		t.Errorf("made before the failure:\n%s", c)
	}
	f.Fail(nil)
	if err := f.Apply(ctx, changes); err != nil {
		t.Fatal(err)
	}
	if c, _ := f.Config(ctx); len(c.Peers) != 3 {
		t.Errorf("healed:\n%s", c)
	}
}
