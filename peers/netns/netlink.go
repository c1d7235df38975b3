package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// IPNet is a prefix as package netlink wants it.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Prefix is the inverse of IPNet. ok is false for nil: "every address" in a route.
func Prefix(n *net.IPNet) (p netip.Prefix, ok bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, bits), ok
}

// List calls a function of package netlink that lists something, and again when
// the kernel says that it changed while it was read.
func List[T any](list func() (T, error)) (out T, err error) {
	for range 10 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

// Sysctl returns the file of a kernel setting, given as net/ipv6/…. Below net it
// is that of the reading thread's namespace: use it inside Do.
func Sysctl(name string) string { return filepath.Join("/proc/sys", name) }

// SetSysctl writes a setting unless it is so already: in a container /proc/sys may
// be read-only and yet right.
func SetSysctl(name, value string) error {
	have, err := os.ReadFile(Sysctl(name))
	if err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err == nil {
		err = os.WriteFile(Sysctl(name), []byte(value+"\n"), 0) // an empty value too is a write
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}
