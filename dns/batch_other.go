//go:build !linux

package dns

import "net"

// newPackets returns conn's packets.
func newPackets(conn net.PacketConn) packets {
	return &single{conn: conn, buf: make([]byte, readSize)}
}
