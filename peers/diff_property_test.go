package peers

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"
)

// drawConfig draws a valid Config over few keys and prefixes, nested ones among
// them, so that two of them have much in common.
func drawConfig(t *rapid.T, label string) Config {
	pick := func(what string, n int) int { return rapid.IntRange(0, n-1).Draw(t, label+" "+what) }
	c := Config{
		PrivateKey: wgtypes.Key{byte(pick("device key", 3))},
		ListenPort: uint16(pick("port", 3)),
	}
	at := map[int]int{} // key: index
	for range pick("peers", 6) {
		k := 'A' + pick("key", 6)
		if _, taken := at[k]; taken {
			continue
		}
		at[k] = len(c.Peers)
		p := Peer{
			Key:       name(byte(k)),
			Keepalive: time.Duration(pick("keepalive", 3)) * time.Second,
			Retarget:  pick("retarget", 2) == 0,
		}
		if e := pick("endpoint", 4); e > 0 {
			addr := netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"}[e-1])
			p.Endpoint = netip.AddrPortFrom(addr, uint16(1+pick("endpoint port", 2)))
		}
		c.Peers = append(c.Peers, p)
	}
	if len(c.Peers) == 0 {
		return c
	}
	for i := range 12 {
		owner := pick("owner", len(c.Peers)+1)
		if owner == len(c.Peers) {
			continue // nobody's
		}
		c.Peers[owner].AllowedIPs = append(c.Peers[owner].AllowedIPs, somePrefix(i))
	}
	return c
}

// somePrefix is the i-th of a family of prefixes that contain each other.
func somePrefix(i int) netip.Prefix {
	if i%4 == 3 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)
	}
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], 0xfd12_0000_0000_0000|uint64(i/4))
	return netip.PrefixFrom(netip.AddrFrom16(a), []int{64, 96, 112}[i%4])
}

// settled is what want looks like once a device that had have holds it.
func settled(have, want Config) Config {
	had := map[wgtypes.Key]Peer{}
	for _, p := range have.Peers {
		had[p.Key] = p
	}
	want.Peers = slices.Clone(want.Peers)
	for i, p := range want.Peers {
		p.Endpoint = unmap(p.Endpoint)
		if old := had[p.Key].Endpoint; old.IsValid() && (!p.Retarget || !p.Endpoint.IsValid() || unmap(old) == p.Endpoint) {
			p.Endpoint = old
		}
		p.Retarget = false
		want.Peers[i] = p
	}
	want.ListenPort = cmp.Or(want.ListenPort, have.ListenPort)
	want.Sort()
	return want
}

// checkDiff states what Diff promises about any two valid configurations.
func checkDiff(have, want Config) error {
	changes := Diff(have, want)
	got := Apply(have, changes)
	if a, b := settled(have, want).String(), got.String(); a != b {
		return fmt.Errorf("Apply(have, Diff(have, want)) is\n%s\nwant\n%s\nby\n%s", letters(b), letters(a), letters(lines(changes)))
	}
	if got.PrivateKey != clamp(want.PrivateKey) {
		return fmt.Errorf("the private key is not the wanted one")
	}
	if again := Diff(got, want); len(again) != 0 {
		return fmt.Errorf("a second pass would do\n%s", letters(lines(again)))
	}
	return cmp.Or(checkOrder(have, want, changes), checkTouched(have, want, changes))
}

// checkOrder: the steps come in the order of the ops, and at none of them is a
// prefix that is in both configurations without a peer.
func checkOrder(have, want Config, changes []Change) error {
	before, after := owners(have), owners(want)
	now := have
	for i, c := range changes {
		if i > 0 && c.Op < changes[i-1].Op {
			return fmt.Errorf("%q comes after %q", c, changes[i-1])
		}
		now = Apply(now, changes[i:i+1])
		held := owners(now)
		for ip := range before {
			if _, stays := after[ip]; stays && held[ip] == (wgtypes.Key{}) {
				return fmt.Errorf("%s has no peer after %q", ip, c)
			}
		}
		for ip, owner := range held {
			if owner != before[ip] && owner != after[ip] {
				return fmt.Errorf("%s is of %s after %q, who neither had it nor gets it", ip, owner, c)
			}
		}
	}
	return nil
}

// checkTouched: no change names a peer that is to stay as it is, and none removes
// or adds one that is in both.
func checkTouched(have, want Config, changes []Change) error {
	old, new := map[wgtypes.Key]string{}, map[wgtypes.Key]string{}
	for _, p := range Apply(have, nil).Peers { // sorted
		old[p.Key] = Config{Peers: []Peer{p}}.String()
	}
	for _, p := range settled(have, want).Peers {
		new[p.Key] = Config{Peers: []Peer{p}}.String()
	}
	for _, c := range changes {
		if c.Op == SetDevice {
			continue
		}
		a, had := old[c.Peer.Key]
		b, gets := new[c.Peer.Key]
		if a == b {
			return fmt.Errorf("%q touches a peer that stays as it is", c)
		}
		if had && gets && (c.Op == AddPeer || c.Op == RemovePeer) {
			return fmt.Errorf("%q cuts the session of a peer that stays", c)
		}
	}
	return nil
}

func owners(c Config) map[netip.Prefix]wgtypes.Key {
	out := map[netip.Prefix]wgtypes.Key{}
	for _, p := range c.Peers {
		for _, ip := range p.AllowedIPs {
			out[ip] = p.Key
		}
	}
	return out
}

func TestDiffProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		have, want := drawConfig(t, "have"), drawConfig(t, "want")
		for _, c := range []Config{have, want} {
			if err := c.Validate(); err != nil {
				t.Fatal(err)
			}
		}
		if err := checkDiff(have, want); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzDiff(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) {
		if err := checkDiff(drawConfig(t, "have"), drawConfig(t, "want")); err != nil {
			t.Fatal(err)
		}
	}))
}
