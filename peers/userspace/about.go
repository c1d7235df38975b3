package userspace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

// Protocol is what a device's process and who speaks to it must agree on: UAPI, and
// the operation that About is the answer to. It goes up with a change that the other
// side would misunderstand; new lines in an answer are none.
const Protocol = 1

// About is what the process of a device says of itself.
type About struct {
	Protocol  int
	Version   string // of the program
	Link      string
	Namespace string // of the link, its name
	Plane     string // and which one it is, as PlaneID has it
	Pid       int    // as the kernel tells who asks; 0: it is in another process namespace
}

// text is the answer to aboutOp, without its end.
func (a About) text() string {
	return fmt.Sprintf("protocol=%d\nversion=%s\nlink=%s\nnamespace=%s\nplane=%s\n", a.Protocol, oneLine(a.Version), a.Link, a.Namespace, a.Plane)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// parseAbout reads the answer to aboutOp. Lines of a later version are passed over.
func parseAbout(r *bufio.Reader) (a About, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return About{}, err
		}
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			return About{}, errors.New("who answers on the device's socket: a line without \"=\"")
		}
		switch key {
		case "protocol":
			if a.Protocol, err = strconv.Atoi(value); err != nil {
				return About{}, fmt.Errorf("who answers on the device's socket: protocol: %w", reason(err))
			}
		case "version":
			a.Version = value
		case "link":
			a.Link = value
		case "namespace":
			a.Namespace = value
		case "plane":
			a.Plane = value
		case "errno":
			if err := errno(value); err != nil {
				return About{}, err
			}
			if end, err := r.ReadString('\n'); err != nil || end != "\n" {
				return About{}, io.ErrUnexpectedEOF
			}
			return a, nil
		}
	}
}

// usable tells why a process cannot be the one for this link in this namespace; nil:
// it is.
func (a About) usable(link, plane string) error {
	switch {
	case a.Protocol != Protocol:
		return fmt.Errorf("its version %s speaks protocol %d, this program %d", a.Version, a.Protocol, Protocol)
	case a.Link != link:
		return fmt.Errorf("its link is %s", a.Link)
	case a.Plane != plane:
		return errors.New("its link is in an earlier namespace")
	}
	return nil
}

// PlaneID tells one namespace from the others of this machine, while it exists.
func PlaneID(plane *netns.Handle) (string, error) {
	var st unix.Stat_t
	var err error
	if plane == nil {
		err = unix.Stat("/proc/self/ns/net", &st)
	} else {
		err = unix.Fstat(plane.Fd(), &st)
	}
	if err != nil {
		return "", fmt.Errorf("look at a network namespace: %w", err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}

var aboutRequest = []byte(aboutOp + "\n\n")

// hello is a connection on which nothing is asked but who answers.
type hello struct {
	conn *client
	in   *bufio.Reader
	pid  int
}

// greet connects to a device's socket.
func greet(ctx context.Context, path string) (*hello, error) {
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return &hello{conn: conn, in: bufio.NewReader(conn), pid: listener(conn.Conn)}, nil
}

// ask is answered by a process of a device. io.EOF: by something else.
func (h *hello) ask() (About, error) {
	if _, err := h.conn.Write(aboutRequest); err != nil {
		return About{}, err
	}
	a, err := parseAbout(h.in)
	a.Pid = h.pid
	return a, err
}

func (h *hello) close() { h.conn.Close() }

// listener is the process that listens at the other end; 0: not known here.
func listener(c net.Conn) (pid int) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // fails on a closed connection, of which nothing is known
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
