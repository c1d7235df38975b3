package userspace

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/peers"
)

func owns(key byte, prefixes ...string) peers.Peer {
	p := peers.Peer{Key: wgtypes.Key{key}}
	for _, s := range prefixes {
		p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(s))
	}
	return p
}

// hexed shortens the keys of a text, whose first byte alone is not zero.
func hexed(s []byte) string {
	return strings.ReplaceAll(string(s), strings.Repeat("00", 31), "…")
}

func TestEncode(t *testing.T) {
	t.Parallel()
	p := owns(0xa, "fd12::/96", "10.0.0.0/8")
	p.Endpoint, p.Keepalive = netip.MustParseAddrPort("[2001:db8::1]:51820"), 25*time.Second
	for _, tt := range []struct {
		name   string
		change peers.Change
		want   string
	}{
		{"key and port", peers.Change{Op: peers.SetDevice, Device: peers.Config{PrivateKey: wgtypes.Key{1}, ListenPort: 51820}}, "private_key=01…\nlisten_port=51820\n"},
		{"the port stays", peers.Change{Op: peers.SetDevice, Device: peers.Config{PrivateKey: wgtypes.Key{1}}}, "private_key=01…\n"},
		{"add", peers.Change{Op: peers.AddPeer, Peer: p}, "public_key=0a…\nendpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\nallowed_ip=fd12::/96\nallowed_ip=10.0.0.0/8\n"},
		{"add with nothing", peers.Change{Op: peers.AddPeer, Peer: owns(0xa)}, "public_key=0a…\npersistent_keepalive_interval=0\n"},
		{"update leaves prefixes", peers.Change{Op: peers.UpdatePeer, Peer: p, SetEndpoint: true}, "public_key=0a…\nupdate_only=true\nendpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\n"},
		{"update leaves the endpoint", peers.Change{Op: peers.UpdatePeer, Peer: p}, "public_key=0a…\nupdate_only=true\npersistent_keepalive_interval=25\n"},
		{"move", peers.Change{Op: peers.Move, Peer: p}, "public_key=0a…\nupdate_only=true\nallowed_ip=fd12::/96\nallowed_ip=10.0.0.0/8\n"},
		{"drop", peers.Change{Op: peers.Drop, Peer: p}, "public_key=0a…\nupdate_only=true\nallowed_ip=-fd12::/96\nallowed_ip=-10.0.0.0/8\n"},
		{"remove", peers.Change{Op: peers.RemovePeer, Peer: p}, "public_key=0a…\nupdate_only=true\nremove=true\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, hexed(Encode([]peers.Change{tt.change}))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestBatchesAreBoundedAndKeepTheOrder(t *testing.T) {
	t.Parallel()
	var changes []peers.Change
	for n := range 2000 {
		changes = append(changes, peers.Change{Op: peers.AddPeer, Peer: peers.Peer{Key: wgtypes.Key{byte(n), byte(n >> 8)}, Keepalive: time.Duration(n%2) * time.Second}})
	}
	big := owns(0xff)
	for n := range 5000 {
		big.AllowedIPs = append(big.AllowedIPs, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x12, byte(n >> 8), byte(n)}), 32))
	}
	changes = append(changes,
		peers.Change{Op: peers.AddPeer, Peer: big},
		peers.Change{Op: peers.Drop, Peer: big},
		peers.Change{Op: peers.Move, Peer: big},
		peers.Change{Op: peers.RemovePeer, Peer: owns(0)})

	var sent []peers.Change
	count := 0
	for batch := range batches(changes) {
		count++
		if n := len(Encode(batch)); n > maxBatchBytes {
			t.Fatalf("batch %d has %d bytes, at most %d", count, n, maxBatchBytes)
		}
		sent = append(sent, batch...)
	}
	if want := len(Encode(changes)) / maxBatchBytes; count < want || count > 3*want+5 {
		t.Errorf("%d batches for %d bytes", count, len(Encode(changes)))
	}
	if diff := cmp.Diff(peers.Apply(peers.Config{}, changes).String(), peers.Apply(peers.Config{}, sent).String()); diff != "" {
		t.Errorf("the batches lead elsewhere (-want +got):\n%s", diff)
	}
	for range batches(changes) {
		break // a consumer that stops early
	}
}

// wireguard-go wakes the peers that follow one whose keepalive is turned on.
func TestNoPeerIsWokenByAnothersKeepalive(t *testing.T) {
	t.Parallel()
	awake := owns(1)
	awake.Keepalive = time.Second
	changes := []peers.Change{{Op: peers.AddPeer, Peer: awake}, {Op: peers.AddPeer, Peer: owns(2)}, {Op: peers.UpdatePeer, Peer: awake}, {Op: peers.Move, Peer: owns(3, "fd12::/96")}, {Op: peers.Drop, Peer: owns(4)}}
	var got []int
	for batch := range batches(changes) {
		got = append(got, len(batch))
	}
	if diff := cmp.Diff([]int{3, 2}, got); diff != "" {
		t.Errorf("sizes of the batches (-want +got):\n%s", diff)
	}
}

// answer prints what a device answers to a get operation.
func answer(c peers.Config, stats []peers.Stats) []byte {
	var b bytes.Buffer
	if c.PrivateKey != (wgtypes.Key{}) {
		fmt.Fprintf(&b, "private_key=%x\n", c.PrivateKey[:])
	}
	if c.ListenPort != 0 {
		fmt.Fprintf(&b, "listen_port=%d\n", c.ListenPort)
	}
	for i, p := range c.Peers {
		fmt.Fprintf(&b, "public_key=%x\npreshared_key=%x\nprotocol_version=1\n", p.Key[:], make([]byte, 32))
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, "endpoint=%s\n", p.Endpoint)
		}
		s := stats[i]
		if !s.LastHandshake.IsZero() {
			fmt.Fprintf(&b, "last_handshake_time_sec=%d\nlast_handshake_time_nsec=%d\n", s.LastHandshake.Unix(), s.LastHandshake.Nanosecond())
		}
		fmt.Fprintf(&b, "tx_bytes=%d\nrx_bytes=%d\npersistent_keepalive_interval=%d\n", s.Tx, s.Rx, p.Keepalive/time.Second)
		for _, ip := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", ip)
		}
	}
	b.WriteString("errno=0\n\n")
	return b.Bytes()
}

func TestParse(t *testing.T) {
	t.Parallel()
	const key1, key2 = "0100000000000000000000000000000000000000000000000000000000000000", "0200000000000000000000000000000000000000000000000000000000000000"
	text := "private_key=" + key1 + "\nlisten_port=51820\nfwmark=7\n" +
		"public_key=" + key2 + "\npreshared_key=" + key1 + "\nprotocol_version=1\nendpoint=192.0.2.1:4500\nlast_handshake_time_sec=1763848800\nlast_handshake_time_nsec=5\ntx_bytes=18446744073709551615\nrx_bytes=2\npersistent_keepalive_interval=25\nallowed_ip=fd12::/96\nallowed_ip=10.0.0.0/8\nfrom_the_future=yes\n" +
		"public_key=" + key1 + "\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n" +
		"errno=0\n\nnot read\n"
	config, stats, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	const want = `port 51820
key [redacted]
peer AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
peer AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= endpoint=192.0.2.1:4500 keepalive=25s
  10.0.0.0/8
  fd12::/96
`
	if diff := cmp.Diff(want, config.String()); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	wantStats := []peers.Stats{{Key: wgtypes.Key{1}}, {
		Key: wgtypes.Key{2}, Endpoint: netip.MustParseAddrPort("192.0.2.1:4500"),
		LastHandshake: time.Unix(1763848800, 5), Rx: 2, Tx: 1<<64 - 1,
	}}
	if diff := cmp.Diff(wantStats, stats, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	if config.PrivateKey != (wgtypes.Key{1}) {
		t.Error("the private key is another")
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	key := strings.Repeat("01", 32)
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", "unexpected EOF"},
		{"cut off", "listen_port=1\n", "unexpected EOF"},
		{"no equals sign", "listen_port=1\nhello\n", `line 2: no "="`},
		{"a private key that is none", "private_key=" + key + "0\n", "line 1: private_key: not a key"},
		{"a port that is none", "listen_port=65536\n", "line 1: listen_port: value out of range"},
		{"a peer twice", "public_key=" + key + "\npublic_key=" + key + "\n", "line 2: public_key: the peer stands twice"},
		{"prefix", "public_key=" + key + "\nallowed_ip=fd12::1\n", "line 2: allowed_ip:"},
		{"endpoint", "public_key=" + key + "\nendpoint=example.com:1\n", "line 2: endpoint:"},
		{"time", "public_key=" + key + "\nlast_handshake_time_nsec=1000000000\n", "line 2: last_handshake_time_nsec: value out of range"},
		{"bytes", "public_key=" + key + "\nrx_bytes=-1\n", "line 2: rx_bytes: invalid syntax"},
		{"errno that is none", "errno=x\n", "errno: invalid syntax"},
		{"refused", "errno=-98\n\n", syscall.EADDRINUSE.Error()},
		{"refused, other sign", "errno=22\n\n", syscall.EINVAL.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := Parse(strings.NewReader(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Parse = %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), key) {
				t.Errorf("the error shows the value: %v", err)
			}
		})
	}
	if _, _, err := Parse(strings.NewReader("errno=-98\n\n")); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("errors.Is does not know %v", err)
	}
}

// parse(print(x)) == x, for every x that some text gives.
func FuzzParse(f *testing.F) {
	p := owns(1, "fd12::/96", "10.0.0.0/8")
	p.Endpoint = netip.MustParseAddrPort("[fe80::1%eth0]:1")
	f.Add(answer(peers.Config{PrivateKey: wgtypes.Key{1}, ListenPort: 1, Peers: []peers.Peer{p}}, []peers.Stats{{Key: p.Key, LastHandshake: time.Unix(1, 2), Rx: 3}}))
	f.Add([]byte("errno=0\n"))
	f.Add([]byte("errno=-22\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		config, stats, err := Parse(bytes.NewReader(text))
		if err != nil {
			return
		}
		again, againStats, err := Parse(bytes.NewReader(answer(config, stats)))
		if err != nil {
			t.Fatalf("its own print: %v\n%s", err, answer(config, stats))
		}
		if diff := cmp.Diff(config.String(), again.String()); diff != "" || config.PrivateKey != again.PrivateKey {
			t.Fatalf("config (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(stats, againStats, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Fatalf("stats (-want +got):\n%s", diff)
		}
	})
}

// noTUN is a link that nothing comes from.
type noTUN struct{ closed chan struct{} }

func (noTUN) File() *os.File                           { return nil }
func (n noTUN) Read([][]byte, []int, int) (int, error) { <-n.closed; return 0, os.ErrClosed }
func (noTUN) Write([][]byte, int) (int, error)         { return 0, io.EOF }
func (noTUN) MTU() (int, error)                        { return DefaultMTU, nil }
func (noTUN) Name() (string, error)                    { return "none", nil }
func (noTUN) BatchSize() int                           { return 1 }
func (n noTUN) Close() error                           { close(n.closed); return nil }
func (n noTUN) Events() <-chan tun.Event {
	never := make(chan tun.Event)
	close(never)
	return never
}

// What wireguard-go holds after our text is what the model says, for random
// changes, sensible or not, on a device that is down.
func TestWireguardGoFollowsTheModel(t *testing.T) {
	t.Parallel()
	silent := &device.Logger{Verbosef: device.DiscardLogf, Errorf: device.DiscardLogf}
	rapid.Check(t, func(t *rapid.T) {
		dev := device.NewDevice(noTUN{make(chan struct{})}, conn.NewDefaultBind(), silent)
		defer dev.Close()
		model := peers.Config{}
		for range rapid.IntRange(1, 3).Draw(t, "rounds") {
			changes := drawChanges(t)
			for batch := range batches(changes) {
				if err := dev.IpcSet(string(Encode(batch))); err != nil {
					t.Fatal(err)
				}
			}
			model = peers.Apply(model, changes)
			text, err := dev.IpcGet()
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := Parse(strings.NewReader(text + "errno=0\n"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(model.String(), got.String()); diff != "" {
				t.Fatalf("after %v (-model +wireguard-go):\n%s", changes, diff)
			}
		}
	})
}

func drawChanges(t *rapid.T) []peers.Change {
	var out []peers.Change
	for range rapid.IntRange(0, 12).Draw(t, "changes") {
		c := peers.Change{
			Op:   peers.Op(rapid.IntRange(0, int(peers.RemovePeer)).Draw(t, "op")),
			Peer: peers.Peer{Key: wgtypes.Key{byte(rapid.IntRange(1, 4).Draw(t, "key"))}},
		}
		switch c.Op {
		case peers.SetDevice:
			private := wgtypes.Key{8 * byte(rapid.IntRange(0, 2).Draw(t, "private"))}
			c.Device = peers.Config{PrivateKey: private, ListenPort: uint16(rapid.IntRange(0, 2).Draw(t, "port"))}
			out = append(out, peers.Change{Op: peers.AddPeer, Peer: peers.Peer{Key: wgtypes.Key{8}.PublicKey()}})
		case peers.AddPeer, peers.UpdatePeer:
			c.Peer.Keepalive = time.Duration(rapid.IntRange(0, 2).Draw(t, "keepalive")) * time.Second
			if rapid.Bool().Draw(t, "endpoint") {
				c.SetEndpoint = c.Op == peers.UpdatePeer
				c.Peer.Endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(rapid.IntRange(1, 2).Draw(t, "endpoint port")))
			}
		}
		if c.Op == peers.AddPeer || c.Op == peers.Move || c.Op == peers.Drop {
			seen := map[netip.Prefix]bool{}
			for range rapid.IntRange(0, 4).Draw(t, "prefixes") {
				a := [16]byte{0xfd, byte(rapid.IntRange(0, 2).Draw(t, "byte"))}
				ip := netip.PrefixFrom(netip.AddrFrom16(a), rapid.SampledFrom([]int{0, 8, 15, 16, 64, 128}).Draw(t, "bits")).Masked()
				if !seen[ip] {
					seen[ip] = true
					c.Peer.AllowedIPs = append(c.Peer.AllowedIPs, ip)
				}
			}
		}
		out = append(out, c)
	}
	return out
}
