package conf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

func laptop() File {
	return File{
		PrivateKey: wgtypes.Key{0: 8, 31: 64},
		Addresses:  []netip.Prefix{netip.MustParsePrefix("fd12:3456:789a:1:300:5:1:2/128"), netip.MustParsePrefix("fd12:3456:789a:1:300:5:1:1/128")},
		DNS:        []netip.Addr{netip.MustParseAddr("fd12:3456:789a:1::3")},
		Search:     []string{"internal"},
		MTU:        1380,
		Peers: []peers.Peer{{
			Key: wgtypes.Key{1}, Endpoint: netip.MustParseAddrPort("[2001:db8::1]:51820"), Keepalive: 25 * time.Second,
			AllowedIPs: []netip.Prefix{netip.MustParsePrefix("fd12:3456:789a:1::/64"), netip.MustParsePrefix("fd12:3456:789a:0:300:5:0:1/128")},
		}},
	}
}

const laptopText = `[Interface]
PrivateKey = CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=
Address = fd12:3456:789a:1:300:5:1:2/128, fd12:3456:789a:1:300:5:1:1/128
DNS = fd12:3456:789a:1::3, internal
MTU = 1380

[Peer]
PublicKey = AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
AllowedIPs = fd12:3456:789a:1::/64, fd12:3456:789a:0:300:5:0:1/128
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25
`

func text(t *testing.T, f File) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, f); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWrite(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff(laptopText, text(t, laptop())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	least := File{PrivateKey: wgtypes.Key{0: 8, 31: 64}, ListenPort: 51820}
	if diff := cmp.Diff("[Interface]\nPrivateKey = CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=\nListenPort = 51820\n", text(t, least)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPhone(t *testing.T) {
	t.Parallel()
	f := laptop()
	want := strings.Replace(laptopText, "0:300:5:0:1/128", "0:300:5:0:1/128, 2000::/128", 1)
	if diff := cmp.Diff(want, text(t, f.Phone())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, text(t, f.Phone().Phone())); diff != "" {
		t.Errorf("twice (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(laptopText, text(t, f)); diff != "" {
		t.Errorf("the argument (-want +got):\n%s", diff)
	}
	if got := (File{}).Phone(); len(got.Peers) != 0 {
		t.Errorf("without peers: %v", got)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text string
		want       File
	}{
		{"our own", laptopText, laptop()},
		{"as people write", `
# my laptop
[interface]   # any case
privatekey=CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=
  ADDRESS = fd12::2,10.0.0.2/24
Address = fd12::3/64
DNS = fd12::53, Internal, 10.0.0.53
dns = corp.example
ListenPort = 0
[PEER]
PublicKey = AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= # host
AllowedIPs = fd12::1/64
AllowedIPs = 10.0.0.0/8
Endpoint = 192.0.2.1:51820
PersistentKeepalive = off
`, File{
			PrivateKey: wgtypes.Key{0: 8, 31: 64},
			Addresses:  []netip.Prefix{netip.MustParsePrefix("fd12::2/128"), netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("fd12::3/64")},
			DNS:        []netip.Addr{netip.MustParseAddr("fd12::53"), netip.MustParseAddr("10.0.0.53")},
			Search:     []string{"Internal", "corp.example"},
			Peers: []peers.Peer{{
				Key: wgtypes.Key{1}, Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"),
				AllowedIPs: []netip.Prefix{netip.MustParsePrefix("fd12::/64"), netip.MustParsePrefix("10.0.0.0/8")},
			}},
		}},
		{"no newline at the end, lines of Windows", strings.TrimSpace(strings.ReplaceAll(laptopText, "\n", "\r\n")), laptop()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(text(t, tt.want), text(t, got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	const secret = "qIhJZsZEGbXS2Wo8kTPNu4xhIw6mlkQ5cJ8fFpFqbE0"
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "no private key"},
		{"no section", "PrivateKey = " + secret + "=\n", `line 1: "PrivateKey" before the first section`},
		{"unknown section", "[Interfaces]\n", `line 1: section "[interfaces]"`},
		{"no equals sign", "[Interface]\nhello\n", "line 2: want KEY = VALUE"},
		{"unknown key", "[Interface]\nPostUp = rm -rf /\n", `line 2: "PostUp" is not a key of [interface]`},
		{"key of the other section", "[Interface]\nEndpoint = 192.0.2.1:1\n", `line 2: "Endpoint" is not a key of [interface]`},
		{"preshared key", "[Peer]\nPresharedKey = " + secret + "=\n", `line 2: "PresharedKey" is not a key`},
		{"no value", "[Interface]\nAddress =\n", `line 2: "Address" has no value`},
		{"bad key", "[Interface]\nPrivateKey = " + secret + "\n", "line 2: PrivateKey: not a key"},
		{"zero key", "[Peer]\nPublicKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", "line 2: PublicKey: not a key"},
		{"twice", "[Interface]\nMTU = 1400\nmtu = 1400\n", "line 3: mtu stands twice"},
		{"section twice", "[Interface]\nPrivateKey = " + secret + "=\n[Interface]\n", "line 3: [Interface] stands twice"},
		{"interface without a key", "[Interface]\nMTU = 1400\n[Peer]\n", "line 3: the [Interface] section that ends here has no PrivateKey"},
		{"peer without a key", "[Interface]\nPrivateKey = " + secret + "=\n[Peer]\nAllowedIPs = ::/0\n", "line 4: the [Peer] section that ends here has no PublicKey"},
		{"address", "[Interface]\nAddress = fd12::2, fd12::/129\n", `line 2: Address: "fd12::/129": want an address`},
		{"mtu", "[Interface]\nMTU = 100\n", "line 2: MTU: MTU 100: want 576"},
		{"port", "[Interface]\nListenPort = 65536\n", `line 2: ListenPort: "65536": want a number from 0 to 65535`},
		{"domain", "[Interface]\nDNS = fd12::3, inter nal\n", `line 2: DNS: search domain "inter nal"`},
		{"endpoint by name", "[Peer]\nEndpoint = vpn.example.com:51820\n", "line 2: Endpoint: \"vpn.example.com:51820\": want ADDRESS:PORT"},
		{"endpoint without port", "[Peer]\nEndpoint = 192.0.2.1:0\n", "line 2: Endpoint: endpoint 192.0.2.1:0: has no port"},
		{"keepalive", "[Peer]\nPersistentKeepalive = -1\n", "line 2: PersistentKeepalive:"},
		{"peer twice", "[Peer]\nPublicKey = " + secret + "=\n[Peer]\nPublicKey = " + secret + "=\n", "line 4: PublicKey: another [Peer] has this key"},
		{"prefix twice", "[Peer]\nPublicKey = " + secret + "=\nAllowedIPs = fd12::1/64, fd12::2/64\n", "line 3: AllowedIPs: fd12::/64 stands twice"},
		{"own peer", "[Interface]\nPrivateKey = CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=\n[Peer]\nPublicKey = " + laptop().PrivateKey.PublicKey().String() + "\n", "the key of the device itself"},
		{"a line without end", "[Interface]\nDNS = " + strings.Repeat("x", 1<<17), "line 2: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse(strings.NewReader(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Parse = %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), secret[:20]) {
				t.Errorf("the error shows the key: %v", err)
			}
		})
	}
}

// wg-quick runs what PostUp says: no value may make a line of its own.
func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*File)
		want   string
	}{
		{"no private key", func(f *File) { f.PrivateKey = wgtypes.Key{} }, "no private key"},
		{"a domain of two lines", func(f *File) { f.Search = []string{"x\nPostUp = reboot"} }, "search domain"},
		{"a domain that is two", func(f *File) { f.Search = []string{"a,b"} }, "search domain"},
		{"an empty domain", func(f *File) { f.Search = []string{""} }, "search domain"},
		{"a domain that is an address", func(f *File) { f.Search = []string{"10.0.0.1"} }, "is an address"},
		{"a zone of two lines", func(f *File) {
			f.Peers[0].Endpoint = netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone("x\nPostUp = reboot"), 1)
		}, "zone"},
		{"a resolver with a zone", func(f *File) { f.DNS[0] = f.DNS[0].WithZone("x\ny") }, "zone"},
		{"no resolver", func(f *File) { f.DNS = []netip.Addr{{}} }, "resolver"},
		{"no address", func(f *File) { f.Addresses = []netip.Prefix{{}} }, "address"},
		{"no port", func(f *File) { f.Peers[0].Endpoint = netip.MustParseAddrPort("192.0.2.1:0") }, "no port"},
		{"mtu", func(f *File) { f.MTU = -1 }, "MTU -1"},
		{"the same peer twice", func(f *File) { f.Peers = append(f.Peers, f.Peers[0]) }, "twice"},
		{"half a second", func(f *File) { f.Peers[0].Keepalive = time.Second / 2 }, "keepalive"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := laptop()
			tt.change(&f)
			var b bytes.Buffer
			if err := Write(&b, f); err == nil || !strings.Contains(err.Error(), tt.want) || b.Len() > 0 {
				t.Errorf("Write = %v, want %q; wrote %q", err, tt.want, b.String())
			}
		})
	}
}

func TestSave(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "laptop1.conf")
	if err := Save(path, laptop()); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", st.Mode(), err)
	}
	other := laptop()
	other.MTU = 1400
	if err := Save(path, other); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("Save over it = %v, want os.ErrExist and the path", err)
	}
	got, err := os.ReadFile(path)
	if diff := cmp.Diff(laptopText, string(got)); diff != "" || err != nil {
		t.Errorf("the file (-want +got):\n%s%v", diff, err)
	}
	// A link to nowhere is something that is there.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	if err := Save(link, laptop()); !errors.Is(err, os.ErrExist) {
		t.Errorf("Save through a link = %v, want os.ErrExist", err)
	}
	if err := Save(filepath.Join(t.TempDir(), "no", "such"), laptop()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Save to no directory = %v, want os.ErrNotExist", err)
	}
	bad := filepath.Join(t.TempDir(), "bad.conf")
	if err := Save(bad, File{}); err == nil {
		t.Error("a File without a key is saved")
	}
	if _, err := os.Stat(bad); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("and left a file: %v", err)
	}
}

func TestNoPrivateKeyIsPrinted(t *testing.T) {
	t.Parallel()
	f := laptop()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb, f, &f)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("file", "file", f)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("file", "file", f, "deep", []File{f})
	if b, err := json.Marshal(f); err == nil {
		out.Write(b)
	}
	for _, leak := range []string{f.PrivateKey.String(), "8, 0, 0", "8,0,0", "0800", "0x8, 0x0"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("printed: %q", leak)
		}
	}
	if !strings.Contains(out.String(), "PrivateKey = [redacted]") {
		t.Errorf("nothing is redacted:\n%s", out.String())
	}
}

// wg-quick itself reads the file, and takes out what is its own.
func TestWgQuickReads(t *testing.T) {
	t.Parallel()
	wgQuick, err := exec.LookPath("wg-quick")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("wg-quick (of wireguard-tools) is not installed; make deps installs it")
		}
		t.Skip("wg-quick (of wireguard-tools) is not installed")
	}
	if os.Geteuid() != 0 {
		t.Skip("wg-quick asks for root")
	}
	path := filepath.Join(t.TempDir(), "laptop1.conf")
	if err := Save(path, laptop()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), wgQuick, "strip", path).CombinedOutput()
	if err != nil {
		t.Fatalf("wg-quick strip: %v: %s", err, out)
	}
	want := strings.NewReplacer("MTU = 1380\n", "", "DNS = fd12:3456:789a:1::3, internal\n", "").Replace(laptopText)
	lines := strings.SplitAfter(want, "\n")
	want = strings.Join(append(lines[:2:2], lines[3:]...), "") // without Address
	if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(string(out))); diff != "" {
		t.Errorf("what is left for wg (-want +got):\n%s", diff)
	}
}

// parse(print(x)) == x, for every x that some text gives.
func FuzzParse(f *testing.F) {
	f.Add([]byte(laptopText))
	f.Add([]byte("[Interface]\nPrivateKey = CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEA=\nDNS=::ffff:1.2.3.4,a..b\n[Peer]\nPublicKey=AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nEndpoint=[fe80::1%25eth0]:1\nAllowedIPs=::ffff:1.2.3.4/100"))
	f.Fuzz(func(t *testing.T, input []byte) {
		x, err := Parse(bytes.NewReader(input))
		if err != nil {
			return
		}
		var printed bytes.Buffer
		if err := Write(&printed, x); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := Parse(&printed)
		if err != nil {
			t.Fatalf("its own print: %v\n%s", err, text(t, x))
		}
		exact := cmp.Options{
			cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
			cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		}
		if diff := cmp.Diff(x, again, exact); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}
