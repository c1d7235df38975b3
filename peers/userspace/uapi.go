package userspace

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

// The text protocol that every userspace WireGuard speaks:
// https://www.wireguard.com/xplatform/#configuration-protocol, and of wireguard-go
// "allowed_ip=-PREFIX", which takes one prefix from a peer.

// Encode returns changes as the lines of a set operation, in their order, without
// the operation's first line and the empty one that ends it. A SetDevice can only be
// the first change of an operation. Known peers are changed in place
// ("update_only"), their prefixes never replaced: while they are replaced, packets
// find no peer.
func Encode(changes []peers.Change) []byte {
	var b []byte
	for _, c := range changes {
		b = appendChange(b, c)
	}
	return b
}

func appendChange(b []byte, c peers.Change) []byte {
	if c.Op == peers.SetDevice {
		b = fmt.Appendf(b, "private_key=%x\n", c.Device.PrivateKey[:])
		if c.Device.ListenPort != 0 {
			b = fmt.Appendf(b, "listen_port=%d\n", c.Device.ListenPort)
		}
		return b
	}
	p := c.Peer
	b = fmt.Appendf(b, "public_key=%x\n", p.Key[:])
	if c.Op != peers.AddPeer {
		b = append(b, "update_only=true\n"...)
	}
	if c.Op == peers.RemovePeer {
		return append(b, "remove=true\n"...)
	}
	if p.Endpoint.IsValid() && (c.Op == peers.AddPeer || c.Op == peers.UpdatePeer && c.SetEndpoint) {
		b = fmt.Appendf(b, "endpoint=%s\n", p.Endpoint)
	}
	if c.Op == peers.AddPeer || c.Op == peers.UpdatePeer {
		b = fmt.Appendf(b, "persistent_keepalive_interval=%d\n", p.Keepalive/time.Second)
	}
	if c.Op == peers.UpdatePeer {
		return b
	}
	sign := ""
	if c.Op == peers.Drop {
		sign = "-"
	}
	for _, ip := range p.AllowedIPs {
		b = fmt.Appendf(b, "allowed_ip=%s%s\n", sign, ip)
	}
	return b
}

// Limits of one set operation. The device does nothing else while it works on one,
// and a person's `wg show` waits.
const (
	maxBatchBytes    = 32 << 10 // fits the buffer of a unix socket
	maxBatchPrefixes = 500      // of one change
)

// batches cuts changes into pieces that are sent one after the other. Their order
// stays.
func batches(changes []peers.Change) iter.Seq[[]peers.Change] {
	return func(yield func([]peers.Change) bool) {
		var batch []peers.Change
		size := 0
		for c := range pieces(changes) {
			n := len(appendChange(nil, c))
			if len(batch) > 0 && (size+n > maxBatchBytes || c.Op == peers.SetDevice || carriesKeepalive(batch[len(batch)-1], c)) {
				if !yield(batch) {
					return
				}
				batch, size = nil, 0
			}
			batch, size = append(batch, c), size+n
		}
		if len(batch) > 0 {
			yield(batch)
		}
	}
}

// carriesKeepalive: wireguard-go sends a keepalive to a peer whose interval is
// turned on, and, since it forgets to forget, to each later one in the operation
// that says nothing of an interval. That would wake tunnels that nobody uses.
func carriesKeepalive(before, c peers.Change) bool {
	return c.Op > peers.UpdatePeer && before.Peer.Keepalive != 0
}

// pieces cuts changes with many prefixes into several that have the same effect.
func pieces(changes []peers.Change) iter.Seq[peers.Change] {
	return func(yield func(peers.Change) bool) {
		for _, c := range changes {
			rest := c.Peer.AllowedIPs
			for {
				n := min(len(rest), maxBatchPrefixes)
				c.Peer.AllowedIPs, rest = rest[:n:n], rest[n:]
				if !yield(c) {
					return
				}
				if len(rest) == 0 {
					break
				}
				if c.Op == peers.AddPeer {
					c = peers.Change{Op: peers.Move, Peer: peers.Peer{Key: c.Peer.Key}}
				}
			}
		}
	}
}

// Parse reads the answer to a get operation, up to its "errno" line. What the text
// says that a peers.Config has no place for is left out: preshared keys, the mark,
// lines of a later version. An error names the line, or is the device's errno.
func Parse(r io.Reader) (peers.Config, []peers.Stats, error) {
	p := parser{seen: map[wgtypes.Key]bool{}}
	scanner := bufio.NewScanner(r)
	for n := 1; scanner.Scan(); n++ {
		key, value, ok := strings.Cut(scanner.Text(), "=")
		if !ok {
			return peers.Config{}, nil, fmt.Errorf("device's answer: line %d: no \"=\"", n)
		}
		if key == "errno" {
			if err := errno(value); err != nil {
				return peers.Config{}, nil, err
			}
			return p.result()
		}
		if err := p.line(key, value); err != nil {
			// The value stays out of the text: it may be a private key.
			return peers.Config{}, nil, fmt.Errorf("device's answer: line %d: %s: %w", n, printable(key), err)
		}
	}
	return peers.Config{}, nil, fmt.Errorf("device's answer: %w", cmp.Or(scanner.Err(), io.ErrUnexpectedEOF))
}

type parser struct {
	config peers.Config
	stats  []peers.Stats
	seen   map[wgtypes.Key]bool
	// The time of the last handshake comes in two lines.
	sec, nsec int64
}

func (p *parser) line(key, value string) (err error) {
	if key == "public_key" {
		return p.startPeer(value)
	}
	if len(p.stats) == 0 {
		switch key {
		case "private_key":
			p.config.PrivateKey, err = parseKey(value)
		case "listen_port":
			p.config.ListenPort, err = parsePort(value)
		}
		return err
	}
	peer, stats := &p.config.Peers[len(p.config.Peers)-1], &p.stats[len(p.stats)-1]
	switch key {
	case "endpoint":
		peer.Endpoint, err = netip.ParseAddrPort(value)
		stats.Endpoint = peer.Endpoint
	case "persistent_keepalive_interval":
		var seconds uint16
		seconds, err = parsePort(value)
		peer.Keepalive = time.Duration(seconds) * time.Second
	case "allowed_ip":
		var ip netip.Prefix
		ip, err = netip.ParsePrefix(value)
		peer.AllowedIPs = append(peer.AllowedIPs, ip.Masked())
	case "last_handshake_time_sec":
		p.sec, err = parseNumber(value, 1<<40)
	case "last_handshake_time_nsec":
		p.nsec, err = parseNumber(value, 1e9-1)
	case "rx_bytes":
		stats.Rx, err = strconv.ParseUint(value, 10, 64)
	case "tx_bytes":
		stats.Tx, err = strconv.ParseUint(value, 10, 64)
	}
	return reason(err)
}

func (p *parser) startPeer(value string) error {
	key, err := parseKey(value)
	if err != nil {
		return err
	}
	if p.seen[key] {
		return errors.New("the peer stands twice")
	}
	p.endPeer()
	p.seen[key] = true
	p.config.Peers = append(p.config.Peers, peers.Peer{Key: key})
	p.stats = append(p.stats, peers.Stats{Key: key})
	return nil
}

func (p *parser) endPeer() {
	if len(p.stats) > 0 && (p.sec != 0 || p.nsec != 0) {
		p.stats[len(p.stats)-1].LastHandshake = time.Unix(p.sec, p.nsec)
	}
	p.sec, p.nsec = 0, 0
}

func (p *parser) result() (peers.Config, []peers.Stats, error) {
	p.endPeer()
	p.config.Sort()
	slices.SortFunc(p.stats, func(a, b peers.Stats) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return p.config, p.stats, nil
}

func parseKey(s string) (wgtypes.Key, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != wgtypes.KeyLen {
		return wgtypes.Key{}, errors.New("not a key of 64 hexadecimal digits")
	}
	return wgtypes.Key(b), nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), reason(err)
}

func parseNumber(s string, most int64) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && (n < 0 || n > most) {
		err = strconv.ErrRange
	}
	return n, reason(err)
}

// errno turns the last line of every answer into an error. wireguard-go sends
// negative numbers, others positive ones.
func errno(value string) error {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil {
		return fmt.Errorf("device's answer: errno: %w", reason(err))
	}
	if n == 0 {
		return nil
	}
	return syscall.Errno(max(n, -n))
}

// reason takes the text that was read out of a strconv error.
func reason(err error) error {
	var num *strconv.NumError
	if errors.As(err, &num) {
		return num.Err
	}
	return err
}

// printable is key if it looks like one.
func printable(key string) string {
	if len(key) <= 40 && strings.Trim(key, "abcdefghijklmnopqrstuvwxyz_") == "" {
		return key
	}
	return "unknown key"
}
