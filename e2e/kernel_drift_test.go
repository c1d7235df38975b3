package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// drift is what somebody with the right to do so changes behind the agent's back, with
// the programs that everybody uses. Each is mended, and the tunnel to another host goes
// on meanwhile, with its session and its counters.
func (k *kernelMesh) drift() {
	home := homeOf(k.b.Address.String())
	ams, nrt := k.peerOf(home), k.peerOf(homeOf(k.c.Address.String()))
	for _, tt := range []struct {
		what   string
		change []string
		see    []string // what shows it, the same text before and afterwards
		down   bool     // the link is down meanwhile: the sessions begin again
	}{
		{"a peer is removed", []string{"wg", "set", "weft0", "peer", ams.key, "remove"}, []string{"wg", "show", "weft0", "allowed-ips"}, false},
		{"a prefix is taken from a peer", []string{"wg", "set", "weft0", "peer", ams.key, "allowed-ips", ""}, []string{"wg", "show", "weft0", "allowed-ips"}, false},
		{"a route is deleted", []string{"ip", "-6", "route", "del", home, "dev", "weft0"}, []string{"ip", "-6", "route", "show", "table", "main"}, false},
		{"the addresses are deleted", []string{"ip", "-6", "addr", "flush", "dev", "lo", "scope", "global"}, []string{"ip", "-o", "-6", "addr", "show", "dev", "lo"}, false},
		{"the link gets another name", []string{"sh", "-c", "ip link set weft0 down && ip link set weft0 name other0"}, []string{"ip", "-6", "route", "show", "table", "main"}, true},
		{"a rule refuses everything", []string{"ip", "-6", "rule", "add", "prio", "100", "unreachable"}, []string{"ip", "-6", "rule"}, false},
		{"the firewall is flushed", []string{"nft", "flush", "ruleset"}, []string{"nft", "-s", "list", "ruleset"}, false},
	} {
		k.reaches(k.b, k.c)
		before, other := words(steady(k.inPlane(tt.see...))), k.peer(nrt.key)
		began := time.Now()
		k.inPlane(tt.change...)
		if words(steady(k.inPlane(tt.see...))) == before {
			k.Logf("%s: mended before it was seen", tt.what)
		}
		await(k.T, "to be mended: "+tt.what, kernelSoon, func(context.Context) error {
			if now := words(steady(k.inPlane(tt.see...))); now != before {
				return fmt.Errorf("%s is\n%s\nwas\n%s", strings.Join(tt.see, " "), now, before)
			}
			return nil
		})
		k.Logf("%s: mended after %s", tt.what, time.Since(began).Round(100*time.Millisecond))
		k.reaches(k.b, k.c)
		if now := k.peer(nrt.key); now.handshake != other.handshake && !tt.down || now.rx < other.rx || now.tx < other.tx {
			k.Errorf("%s: the tunnel to nrt1 was %+v and is %+v", tt.what, other, now)
		}
		if now := k.linkOf(k.fra); now != k.link {
			k.Errorf("%s: the link is number %s, was %s: it was made anew", tt.what, now, k.link)
		}
	}
}

// words are those of a text, in an order of their own: sets are listed in any.
func words(text string) string {
	return strings.Join(slices.Sorted(strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })), " ")
}

// wgPeer is a line of `wg show LINK dump`.
type wgPeer struct {
	key, allowed      string
	handshake, rx, tx int
}

func (k *kernelMesh) wgPeers() (all []wgPeer) {
	k.Helper()
	for line := range strings.Lines(k.inPlane("wg", "show", "weft0", "dump")) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 8 { // the first is the device's own
			continue
		}
		p := wgPeer{key: f[0], allowed: f[3]}
		for i, to := range []*int{&p.handshake, &p.rx, &p.tx} {
			n, err := strconv.Atoi(f[4+i])
			if err != nil {
				k.Fatalf("wg show: %q: %v", line, err)
			}
			*to = n
		}
		all = append(all, p)
	}
	return all
}

// peerOf is the one that has a prefix.
func (k *kernelMesh) peerOf(prefix string) wgPeer {
	k.Helper()
	for _, p := range k.wgPeers() {
		for _, ip := range strings.Split(p.allowed, ",") {
			if ip == prefix {
				return p
			}
		}
	}
	k.Fatalf("no peer has %s", prefix)
	return wgPeer{}
}

func (k *kernelMesh) peer(key string) wgPeer {
	k.Helper()
	for _, p := range k.wgPeers() {
		if p.key == key {
			return p
		}
	}
	k.Fatalf("no peer %s", key)
	return wgPeer{}
}
