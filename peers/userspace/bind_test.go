package userspace

import "golang.org/x/sys/unix"

// isUDP4 reports whether fd is an IPv4 UDP socket that listens on port. It asks with
// calls that do nothing to a file that is no socket.
func isUDP4(fd int, port uint16) bool {
	family, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	kind, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err1 != nil || err2 != nil || family != unix.AF_INET || kind != unix.SOCK_DGRAM {
		return false
	}
	name, err := unix.Getsockname(fd)
	a, ok := name.(*unix.SockaddrInet4)
	return err == nil && ok && a.Port == int(port) && a.Addr == [4]byte{}
}
