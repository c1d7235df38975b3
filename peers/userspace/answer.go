package userspace

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// aboutOp is an operation beside those of UAPI: who answers here? See About.
const aboutOp = "about=1"

// handle answers the operations that come over one connection, until it ends. It
// reads an operation as a whole: half a one, of a client that died, is none.
func (d *Device) handle(conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		op, body, err := readOperation(r)
		if err != nil {
			return
		}
		var answer bytes.Buffer
		switch {
		case op == "set=1":
			err = d.setText(body)
		case op == "get=1" && len(body) == 0:
			err = d.dev.IpcGetOperation(&answer)
		case op == aboutOp && d.about != nil:
			answer.WriteString(d.about.text())
		default:
			return // as wireguard-go does
		}
		fmt.Fprintf(&answer, "errno=%d\n\n", errnoOf(err))
		if _, err := conn.Write(answer.Bytes()); err != nil {
			return
		}
	}
}

// readOperation reads up to the empty line: the first line, and the others.
func readOperation(r *bufio.Reader) (op string, body []byte, err error) {
	if op, err = r.ReadString('\n'); err != nil {
		return "", nil, err
	}
	for {
		line, err := r.ReadBytes('\n')
		if len(line) == 1 && err == nil {
			return strings.TrimSuffix(op, "\n"), body, nil
		}
		body = append(body, line...)
		if err != nil {
			return "", nil, err
		}
	}
}

// setText is a set operation. It may open the UDP sockets anew, whoever asks for it.
func (d *Device) setText(body []byte) error {
	return d.dev.IpcSetOperation(bytes.NewReader(body))
}

// errnoOf is err as UAPI tells it.
func errnoOf(err error) int64 {
	var status *device.IPCError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return status.ErrorCode()
	}
	return -int64(unix.EIO)
}
