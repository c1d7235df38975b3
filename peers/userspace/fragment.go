package userspace

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

func opensSockets(c peers.Change) bool {
	return c.Op == peers.SetDevice && c.Device.ListenPort != 0
}

// allowFragments lets routers cut the IPv4 packets of wireguard-go's socket on port,
// as those of the kernel's WireGuard: it would send them all with "don't fragment",
// and where the path is narrower than the link thinks, nothing but a lost ICMP
// message would tell. PMTUDISC_OMIT, not DONT: with DONT the kernel still heeds what
// other sockets learnt about the path and then refuses the large sends that
// segmentation offload makes.
//
// wireguard-go keeps its sockets to itself, and a conn.Bind of ours around its own
// would lose what it does for that one only (it forgets a source address when the
// route changes). So the socket is looked up among the process's files.
func allowFragments(port uint16) error {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("look for the UDP socket on port %d: %w", port, err)
	}
	for _, f := range files {
		fd, err := strconv.Atoi(f.Name())
		if err != nil || !isUDP4(fd, port) {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT); err != nil {
			return fmt.Errorf("allow fragments on UDP port %d: %w", port, err)
		}
	}
	return nil
}

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
