// Package conf reads and writes the configuration files of the stock WireGuard apps
// and of wg-quick(8): what a device needs to be a peer and use names, and no more.
// Keys that run commands or touch routing tables (PostUp, Table) and preshared keys
// are refused; who may have which file is decided elsewhere.
package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/peers"
)

// File is one configuration file. It prints with its private key as [redacted];
// Write is the only way to the whole text.
type File struct {
	PrivateKey wgtypes.Key
	Addresses  []netip.Prefix // of the device; may have host bits
	DNS        []netip.Addr   // resolvers
	Search     []string       // search domains
	MTU        int            // bytes, 576 to 65535; 0: the app chooses
	ListenPort uint16         // 0: the app chooses
	Peers      []peers.Peer   // Retarget is not used
}

// Phone returns f with 2000::/128 among what is sent into the tunnel. Android asks
// for AAAA only if it has a route to 2000::, which it takes for "there is IPv6": the
// route of a /64 of private addresses is not enough. It is one address that nobody
// has, so no traffic changes its way. It belongs to the AllowedIPs, of which the app
// makes its routes, not to the addresses, of which it would choose a source.
func (f File) Phone() File {
	everywhere := netip.MustParsePrefix("2000::/128")
	f.Peers = slices.Clone(f.Peers)
	for _, p := range f.Peers {
		if slices.Contains(p.AllowedIPs, everywhere) {
			return f
		}
	}
	if len(f.Peers) > 0 {
		p := &f.Peers[0]
		p.AllowedIPs = append(slices.Clip(p.AllowedIPs), everywhere)
	}
	return f
}

// Write writes f as text that Parse reads back as f. It writes nothing if f holds
// what the format cannot say, such as a search domain of two lines.
func Write(w io.Writer, f File) error {
	if err := f.validate(); err != nil {
		return fmt.Errorf("WireGuard file: %w", err)
	}
	var b bytes.Buffer
	f.print(&b, f.PrivateKey.String())
	_, err := w.Write(b.Bytes())
	return err
}

func (f File) validate() error {
	if f.PrivateKey == (wgtypes.Key{}) {
		return errors.New("no private key")
	}
	for _, a := range f.Addresses {
		if !a.IsValid() {
			return errors.New("an address is missing")
		}
	}
	for _, a := range f.DNS {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("resolver %s: want an address without a zone", a)
		}
	}
	for _, s := range f.Search {
		if err := checkDomain(s); err != nil {
			return err
		}
	}
	if err := checkMTU(f.MTU); err != nil {
		return err
	}
	for _, p := range f.Peers {
		if !p.Endpoint.IsValid() {
			continue
		}
		if err := checkEndpoint(p.Endpoint); err != nil {
			return fmt.Errorf("peer %s: %w", p.Key, err)
		}
	}
	return peers.Config{PrivateKey: f.PrivateKey, Peers: f.Peers}.Validate()
}

func (f File) print(w io.Writer, private string) {
	fmt.Fprintf(w, "[Interface]\nPrivateKey = %s\n", private)
	printList(w, "Address", f.Addresses)
	dns := texts(f.DNS)
	if dns = append(dns, f.Search...); len(dns) > 0 {
		fmt.Fprintf(w, "DNS = %s\n", strings.Join(dns, ", "))
	}
	if f.MTU != 0 {
		fmt.Fprintf(w, "MTU = %d\n", f.MTU)
	}
	if f.ListenPort != 0 {
		fmt.Fprintf(w, "ListenPort = %d\n", f.ListenPort)
	}
	for _, p := range f.Peers {
		fmt.Fprintf(w, "\n[Peer]\nPublicKey = %s\n", p.Key)
		printList(w, "AllowedIPs", p.AllowedIPs)
		if p.Endpoint.IsValid() {
			fmt.Fprintf(w, "Endpoint = %s\n", p.Endpoint)
		}
		if p.Keepalive != 0 {
			fmt.Fprintf(w, "PersistentKeepalive = %d\n", p.Keepalive/time.Second)
		}
	}
}

func printList[T fmt.Stringer](w io.Writer, key string, values []T) {
	if len(values) > 0 {
		fmt.Fprintf(w, "%s = %s\n", key, strings.Join(texts(values), ", "))
	}
}

func texts[T fmt.Stringer](values []T) []string {
	var out []string
	for _, v := range values {
		out = append(out, v.String())
	}
	return out
}

// Save writes f to a new file, readable by its owner alone. It never overwrites: if
// path is there, the error is os.ErrExist. A file that could not be written whole is
// removed.
func Save(path string, f File) error {
	var text bytes.Buffer
	if err := Write(&text, f); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write WireGuard file: %w", err)
	}
	_, err = file.Write(text.Bytes())
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		os.Remove(path)
		return fmt.Errorf("write WireGuard file: %w", err)
	}
	return nil
}

// String is the file's text without its private key.
func (f File) String() string {
	var b strings.Builder
	f.print(&b, "[redacted]")
	return b.String()
}

// Format prints String whatever the verb.
func (f File) Format(s fmt.State, _ rune) { io.WriteString(s, f.String()) }

// LogValue is String.
func (f File) LogValue() slog.Value { return slog.StringValue(f.String()) }

// MarshalJSON refuses, for the sake of the private key.
func (f File) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a WireGuard file holds a private key and is not written as JSON")
}
