package userspace

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// endpoint is where a peer is, and by which of our addresses it knows us. It is
// shared: only from changes.
type endpoint struct {
	to   netip.AddrPort
	name unix.RawSockaddrInet6 // to, as the kernel reads it; room for both families
	from atomic.Pointer[source]
}

// source is an address of ours that a packet came to.
type source struct{ addr netip.Addr }

var _ conn.Endpoint = (*endpoint)(nil)

func newEndpoint(to netip.AddrPort) (*endpoint, error) {
	e := &endpoint{to: to}
	if to.Addr().Is4() {
		a := (*unix.RawSockaddrInet4)(unsafe.Pointer(&e.name))
		a.Family, a.Addr = unix.AF_INET, to.Addr().As4()
	} else {
		e.name.Family, e.name.Addr = unix.AF_INET6, to.Addr().As16()
		if zone := to.Addr().Zone(); zone != "" {
			n, err := strconv.ParseUint(zone, 10, 32)
			if err != nil {
				link, err := net.InterfaceByName(zone)
				if err != nil {
					return nil, fmt.Errorf("endpoint %s: %w", to, err)
				}
				n = uint64(link.Index)
			}
			e.name.Scope_id = uint32(n)
		}
	}
	port := (*[2]byte)(unsafe.Pointer(&e.name.Port)) // in network order
	port[0], port[1] = byte(to.Port()>>8), byte(to.Port())
	return e, nil
}

func (e *endpoint) nameLength() uint32 {
	if e.to.Addr().Is4() {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}

func (e *endpoint) ClearSrc()           { e.from.Store(nil) }
func (e *endpoint) DstIP() netip.Addr   { return e.to.Addr() }
func (e *endpoint) DstToString() string { return e.to.String() }
func (e *endpoint) SrcToString() string { return e.SrcIP().String() }

func (e *endpoint) DstToBytes() []byte {
	b, _ := e.to.MarshalBinary() // never fails
	return b
}

func (e *endpoint) SrcIP() netip.Addr {
	if from := e.from.Load(); from != nil {
		return from.addr
	}
	return netip.Addr{}
}

// known keeps the endpoints that packets came from lately: most come from one that
// sent before.
type known [64]*endpoint

// endpoint returns the one of a sender, and of the address of ours that it wrote to.
func (k *known) endpoint(name *unix.RawSockaddrInet6, to netip.Addr) (*endpoint, error) {
	slot := &k[slotOf(name)]
	if e := *slot; e != nil && sameName(&e.name, name) && e.SrcIP() == to {
		return e, nil
	}
	e, err := newEndpoint(addrPortOf(name))
	if err != nil {
		return nil, err
	}
	if to.IsValid() {
		e.from.Store(&source{to})
	}
	*slot = e
	return e, nil
}

func slotOf(name *unix.RawSockaddrInet6) byte {
	h := byte(name.Port) ^ byte(name.Port>>8)
	if name.Family == unix.AF_INET {
		for _, b := range (*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr {
			h = h*31 + b
		}
	} else {
		for _, b := range name.Addr {
			h = h*31 + b
		}
	}
	return h % 64
}

func sameName(a, b *unix.RawSockaddrInet6) bool {
	if a.Family != b.Family || a.Port != b.Port {
		return false
	}
	if a.Family == unix.AF_INET {
		return (*unix.RawSockaddrInet4)(unsafe.Pointer(a)).Addr == (*unix.RawSockaddrInet4)(unsafe.Pointer(b)).Addr
	}
	return a.Addr == b.Addr && a.Scope_id == b.Scope_id
}

// addrPortOf reads an address as the kernel wrote it.
func addrPortOf(a *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&a.Port)) // in network order
	number := uint16(port[0])<<8 | uint16(port[1])
	if a.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(a)).Addr), number)
	}
	addr := netip.AddrFrom16(a.Addr)
	if a.Scope_id != 0 {
		zone := strconv.FormatUint(uint64(a.Scope_id), 10)
		if link, err := net.InterfaceByIndex(int(a.Scope_id)); err == nil {
			zone = link.Name
		}
		addr = addr.WithZone(zone)
	}
	return netip.AddrPortFrom(addr, number)
}
