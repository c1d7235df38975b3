package controller

import "syscall"

// smallBuffers makes a socket whose receive buffer is soon full.
func smallBuffers(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 2048) }); e != nil {
		return e
	}
	return err
}
