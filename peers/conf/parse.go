package conf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

// Parse reads a file as wg-quick(8) does: keys and sections in any case, "#" begins
// a comment, lists may be spread over several lines. An error names the line, and
// never shows a key's value.
func Parse(r io.Reader) (File, error) {
	p := parser{keys: map[wgtypes.Key]bool{}, owned: map[netip.Prefix]bool{}}
	scanner := bufio.NewScanner(r)
	n := 0
	for scanner.Scan() {
		n++
		if err := p.line(scanner.Text()); err != nil {
			return File{}, fmt.Errorf("WireGuard file: line %d: %w", n, err)
		}
	}
	if err := scanner.Err(); err != nil {
		return File{}, fmt.Errorf("WireGuard file: line %d: %w", n+1, err)
	}
	if err := p.endSection(); err != nil {
		return File{}, fmt.Errorf("WireGuard file: line %d: %w", n, err)
	}
	if err := p.file.validate(); err != nil {
		return File{}, fmt.Errorf("WireGuard file: %w", err)
	}
	return p.file, nil
}

type parser struct {
	file    File
	section string          // "", "interface" or "peer"
	seen    map[string]bool // keys of this section
	whole   bool            // the one interface section was there

	keys  map[wgtypes.Key]bool  // of all peers
	owned map[netip.Prefix]bool // by some peer
}

func (p *parser) line(line string) error {
	line, _, _ = strings.Cut(line, "#")
	line = strings.TrimSpace(line)
	if line == "" {
		return nil
	}
	if strings.HasPrefix(line, "[") {
		return p.startSection(strings.ToLower(line))
	}
	key, value, ok := strings.Cut(line, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	lower := strings.ToLower(key)
	switch {
	case !ok:
		return errors.New(`want KEY = VALUE or [SECTION]`)
	case p.section == "":
		return fmt.Errorf("%.40q before the first section", key)
	case value == "":
		return fmt.Errorf("%.40q has no value", key)
	case p.seen[lower] && !slices.Contains(lists, lower):
		return fmt.Errorf("%s stands twice", key)
	}
	known, err := p.set(lower, value)
	if !known {
		return fmt.Errorf("%.40q is not a key of [%s] that is understood here", key, p.section)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	p.seen[lower] = true
	return nil
}

// lists are the keys that may stand more than once.
var lists = []string{"address", "dns", "allowedips"}

func (p *parser) startSection(name string) error {
	if err := p.endSection(); err != nil {
		return err
	}
	switch {
	case name == "[interface]" && p.whole:
		return errors.New("[Interface] stands twice")
	case name == "[interface]":
		p.section, p.whole = "interface", true
	case name == "[peer]":
		p.section = "peer"
		p.file.Peers = append(p.file.Peers, peers.Peer{})
	default:
		return fmt.Errorf("section %.40q: want [Interface] or [Peer]", name)
	}
	p.seen = map[string]bool{}
	return nil
}

func (p *parser) endSection() error {
	switch {
	case p.section == "interface" && !p.seen["privatekey"]:
		return errors.New("the [Interface] section that ends here has no PrivateKey")
	case p.section == "peer" && !p.seen["publickey"]:
		return errors.New("the [Peer] section that ends here has no PublicKey")
	}
	return nil
}

// set stores one value. known is false for a key that the section does not have.
func (p *parser) set(key, value string) (known bool, err error) {
	if p.section == "interface" {
		return p.setInterface(key, value)
	}
	peer := &p.file.Peers[len(p.file.Peers)-1]
	switch key {
	case "publickey":
		if peer.Key, err = parseKey(value); err == nil && p.keys[peer.Key] {
			err = errors.New("another [Peer] has this key")
		}
		p.keys[peer.Key] = true
	case "allowedips":
		return true, eachOf(value, func(s string) error {
			ip, err := parsePrefix(s)
			if ip = ip.Masked(); p.owned[ip] {
				return fmt.Errorf("%s stands twice", ip)
			}
			p.owned[ip] = true
			peer.AllowedIPs = append(peer.AllowedIPs, ip)
			return err
		})
	case "endpoint":
		if peer.Endpoint, err = netip.ParseAddrPort(value); err != nil {
			return true, fmt.Errorf("%.60q: want ADDRESS:PORT or [ADDRESS]:PORT, no names", value)
		}
		err = checkEndpoint(peer.Endpoint)
	case "persistentkeepalive":
		var seconds uint64
		if strings.ToLower(value) != "off" {
			seconds, err = parseNumber(value, 65535)
		}
		peer.Keepalive = time.Duration(seconds) * time.Second
	default:
		return false, nil
	}
	return true, err
}

func (p *parser) setInterface(key, value string) (known bool, err error) {
	f := &p.file
	switch key {
	case "privatekey":
		f.PrivateKey, err = parseKey(value)
	case "address":
		return true, eachOf(value, func(s string) error {
			a, err := parsePrefix(s)
			f.Addresses = append(f.Addresses, a)
			return err
		})
	case "dns":
		return true, eachOf(value, func(s string) error {
			if a, err := netip.ParseAddr(s); err == nil {
				f.DNS = append(f.DNS, a)
				return nil
			}
			f.Search = append(f.Search, s)
			return checkDomain(s)
		})
	case "mtu":
		var n uint64
		if n, err = parseNumber(value, 65535); err == nil {
			f.MTU = int(n)
			err = checkMTU(f.MTU)
		}
	case "listenport":
		var n uint64
		n, err = parseNumber(value, 65535)
		f.ListenPort = uint16(n)
	default:
		return false, nil
	}
	return true, err
}

func eachOf(list string, add func(string) error) error {
	for s := range strings.SplitSeq(list, ",") {
		if err := add(strings.TrimSpace(s)); err != nil {
			return err
		}
	}
	return nil
}

// parseKey does not say what it read: it may be a private key with a typing error.
func parseKey(s string) (wgtypes.Key, error) {
	k, err := wgtypes.ParseKey(s)
	if err != nil || k == (wgtypes.Key{}) {
		return wgtypes.Key{}, errors.New("not a key: want 44 characters of base64, not all zero")
	}
	return k, nil
}

// parsePrefix takes an address for the prefix of it alone.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%.60q: want an address or ADDRESS/BITS", s)
	}
	return p, nil
}

func parseNumber(s string, most uint64) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > most {
		return 0, fmt.Errorf("%.20q: want a number from 0 to %d", s, most)
	}
	return n, nil
}

func checkMTU(n int) error {
	if n != 0 && (n < 576 || n > 65535) {
		return fmt.Errorf("MTU %d: want 576 to 65535, or 0", n)
	}
	return nil
}

func checkEndpoint(a netip.AddrPort) error {
	if a.Port() == 0 {
		return fmt.Errorf("endpoint %s: has no port", a)
	}
	if zone := a.Addr().Zone(); zone != "" && !isPlain(zone) {
		return fmt.Errorf("endpoint %.60q: want a zone of letters, digits, hyphens and dots", a)
	}
	return nil
}

func checkDomain(s string) error {
	if len(s) > 253 || !isPlain(s) {
		return fmt.Errorf("search domain %.60q: want letters, digits, hyphens and dots", s)
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return fmt.Errorf("search domain %q: is an address", s)
	}
	return nil
}

// isPlain refuses above all what would end the line or the list: wg-quick runs
// commands that such a file names.
func isPlain(s string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(allowed, r) })
}
