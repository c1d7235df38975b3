package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

func key(n byte) wgtypes.Key { return wgtypes.Key{n} }

func many(n int) (out []netip.Prefix) {
	for i := range n {
		a := [16]byte{0: 0xfd}
		binary.BigEndian.PutUint16(a[12:], uint16(i))
		out = append(out, netip.PrefixFrom(netip.AddrFrom16(a), 112))
	}
	return out
}

// messages prints what would be sent, a line for each message.
func messages(t *testing.T, changes []peers.Change) string {
	t.Helper()
	var b strings.Builder
	for run := range runs(changes) {
		for batch := range batches(run) {
			m, err := encode(batch)
			if err != nil {
				t.Fatal(err)
			}
			if m.ReplacePeers {
				t.Error("peers are replaced")
			}
			b.WriteString("set")
			if m.PrivateKey != nil {
				fmt.Fprintf(&b, " key=%d", m.PrivateKey[0])
			}
			if m.ListenPort != nil {
				fmt.Fprintf(&b, " port=%d", *m.ListenPort)
			}
			names := map[wgtypes.Key]string{}
			for _, p := range m.Peers {
				if p.ReplaceAllowedIPs {
					t.Error("the prefixes of a peer are replaced")
				}
				name := fmt.Sprint(p.PublicKey[0])
				if !slices.Equal(p.PublicKey[1:], make([]byte, 31)) {
					name = "sink"
				}
				names[p.PublicKey] = name
				fmt.Fprintf(&b, " [%s", name)
				if p.UpdateOnly {
					b.WriteString(" known")
				}
				if p.Remove {
					b.WriteString(" remove")
				}
				if p.Endpoint != nil {
					fmt.Fprintf(&b, " at %s", p.Endpoint)
				}
				if p.PersistentKeepaliveInterval != nil {
					fmt.Fprintf(&b, " keepalive %s", *p.PersistentKeepaliveInterval)
				}
				if n := len(p.AllowedIPs); n > 3 {
					fmt.Fprintf(&b, " %d prefixes", n)
				} else {
					for _, ip := range p.AllowedIPs {
						fmt.Fprintf(&b, " %s", ip.String())
					}
				}
				b.WriteString("]")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func TestMessages(t *testing.T) {
	t.Parallel()
	at := netip.MustParseAddrPort("[::ffff:192.0.2.1]:51820")
	one := []netip.Prefix{netip.MustParsePrefix("fd12::1:0/112")}
	change := func(op peers.Op, n byte, ips ...netip.Prefix) peers.Change {
		return peers.Change{Op: op, Peer: peers.Peer{Key: key(n), AllowedIPs: ips}}
	}
	for _, tt := range []struct {
		name    string
		changes []peers.Change
		want    string
	}{
		{"nothing", nil, ""},
		{"a new key keeps the port", []peers.Change{{Op: peers.SetDevice, Device: peers.Config{PrivateKey: key(8)}}}, "set key=8\n"},
		{
			"a port that is refused leaves the key set, and peers too",
			[]peers.Change{{Op: peers.SetDevice, Device: peers.Config{PrivateKey: key(8), ListenPort: 7}}, change(peers.RemovePeer, 1)},
			"set key=8\nset port=7\nset [1 known remove]\n",
		},
		{
			"one message for what goes together",
			[]peers.Change{
				{Op: peers.AddPeer, Peer: peers.Peer{Key: key(1), Endpoint: at, Keepalive: time.Second, AllowedIPs: one}},
				{Op: peers.UpdatePeer, Peer: peers.Peer{Key: key(2), Endpoint: at}, SetEndpoint: true},
				{Op: peers.UpdatePeer, Peer: peers.Peer{Key: key(3), Endpoint: at}},
				change(peers.Move, 4, one...),
			},
			"set [1 at 192.0.2.1:51820 keepalive 1s fd12::1:0/112] [2 known at 192.0.2.1:51820 keepalive 0s] [3 known keepalive 0s] [4 known fd12::1:0/112]\n",
		},
		{
			"a drop is by a peer that comes and goes in one message",
			[]peers.Change{change(peers.Move, 1, one...), change(peers.Drop, 2, one...), change(peers.RemovePeer, 3)},
			"set [1 known fd12::1:0/112]\nset [sink fd12::1:0/112] [sink known remove]\nset [3 known remove]\n",
		},
		{
			"many prefixes: the peer is added once",
			[]peers.Change{{Op: peers.AddPeer, Peer: peers.Peer{Key: key(1), Keepalive: time.Second, AllowedIPs: many(600)}}, change(peers.Move, 2, one...)},
			"set [1 keepalive 1s 256 prefixes]\nset [1 known 256 prefixes]\nset [1 known 88 prefixes] [2 known fd12::1:0/112]\n",
		},
		{
			"many drops",
			[]peers.Change{change(peers.Drop, 1, many(300)...)},
			"set [sink 256 prefixes] [sink known remove]\nset [sink 44 prefixes] [sink known remove]\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, messages(t, tt.changes)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// wgctrl must not cut a message again: of a peer that stands twice it would tell only
// half.
func TestMessagesAreSmall(t *testing.T) {
	t.Parallel()
	var changes []peers.Change
	for n := range 200 {
		op := []peers.Op{peers.AddPeer, peers.Move, peers.RemovePeer, peers.Drop}[n%4]
		changes = append(changes, peers.Change{Op: op, Peer: peers.Peer{Key: key(byte(n)), AllowedIPs: many(n)}})
	}
	for run := range runs(changes) {
		for batch := range batches(run) {
			m, err := encode(batch)
			if err != nil {
				t.Fatal(err)
			}
			ips := 0
			for _, p := range m.Peers {
				ips += len(p.AllowedIPs)
			}
			if len(m.Peers) > maxPeers || ips > maxPrefixes {
				t.Errorf("a message of %d peers and %d prefixes", len(m.Peers), ips)
			}
		}
	}
}

func TestKeepaliveIsNotCutOff(t *testing.T) {
	t.Parallel()
	for _, k := range []time.Duration{-time.Second, time.Second / 2, 65536 * time.Second} {
		_, err := encode([]peers.Change{{Op: peers.AddPeer, Peer: peers.Peer{Key: key(1), Keepalive: k}}})
		if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("keepalive %s: %v, want EINVAL", k, err)
		}
	}
}

// A drop is of what the peer has, no more: another's prefix stays.
func TestOwned(t *testing.T) {
	t.Parallel()
	ips := many(4)
	have := peers.Config{Peers: []peers.Peer{{Key: key(1), AllowedIPs: ips[:2]}, {Key: key(2), AllowedIPs: ips[2:3]}}}
	drops := []peers.Change{
		{Op: peers.Drop, Peer: peers.Peer{Key: key(1), AllowedIPs: ips}},
		{Op: peers.Drop, Peer: peers.Peer{Key: key(3), AllowedIPs: ips}},
	}
	got := owned(drops, have)
	if len(got) != 1 || got[0].Peer.Key != key(1) || !slices.Equal(got[0].Peer.AllowedIPs, ips[:2]) {
		t.Errorf("got %v", got)
	}
	if len(drops[0].Peer.AllowedIPs) != 4 {
		t.Error("the caller's changes were changed")
	}
}
