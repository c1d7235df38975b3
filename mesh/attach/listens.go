package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Socket states of /proc/net, as include/net/tcp_states.h numbers them.
const (
	tcpListen = "0A"
	udpOpen   = "07" // bound and not connected
)

// Listeners returns how many sockets of the network namespace that a thread of
// this process holds wait for others to speak: TCP sockets that listen and UDP
// sockets that are not connected. It is how Run's caller sees that a command serves.
func Listeners(tid int) (n int, err error) {
	for _, f := range []struct{ name, state string }{{"tcp", tcpListen}, {"tcp6", tcpListen}, {"udp", udpOpen}, {"udp6", udpOpen}} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/net/%s", tid, f.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // this kernel has no such protocol
		}
		if err != nil {
			return 0, fmt.Errorf("sockets of the machine: %w", err)
		}
		n += inState(string(text), f.state)
	}
	return n, nil
}

// inState counts the sockets in one state in a table of /proc/net, whose first line
// is a heading:
//
//	sl  local_address    remote_address   st ...
//	0:  00000000:0050    00000000:0000    0A ...
func inState(table, state string) (n int) {
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 3 && f[3] == state {
			n++
		}
	}
	return n
}
