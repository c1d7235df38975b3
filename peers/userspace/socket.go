package userspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long either side of the socket waits for the other. The device
// holds its lock while it talks: a client that stops reading would stop everyone.
const patience = 10 * time.Second

const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// server answers UAPI connections on a unix socket.
type server struct {
	path   string
	listen *net.UnixListener
	file   os.FileInfo // the socket's, to know it again

	wait  sync.WaitGroup
	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu; nil: closed
}

// listen makes the socket path, mode 0600. One that nobody answers on, left by a
// process that crashed, is replaced; one that is answered is os.ErrExist.
func listen(path string) (*server, error) {
	dir := filepath.Dir(path)
	if n := max(len(path), len(dir)+len("/.0123456789/s")); n > maxPath { // see made
		return nil, fmt.Errorf("%s is too long for the path of a socket by %d bytes", path, n-maxPath)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another process answers: %w", path, os.ErrExist)
	} else if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
		return nil, err
	}
	// Made in a directory that is nobody else's and moved: so at no moment is the
	// socket open to others, and a stale one is replaced in one step.
	private, err := os.MkdirTemp(dir, ".")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	s := &server{path: path, listen: l, conns: map[net.Conn]struct{}{}}
	if err = os.Chmod(made, 0o600); err == nil {
		if s.file, err = os.Stat(made); err == nil {
			err = os.Rename(made, path)
		}
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return s, nil
}

// serve calls handle for each connection, in a goroutine of its own, until close.
func (s *server) serve(handle func(net.Conn)) {
	s.wait.Go(func() {
		for {
			conn, err := s.listen.Accept()
			if err != nil {
				return
			}
			if !s.track(conn) {
				conn.Close()
				return
			}
			s.wait.Go(func() {
				handle(impatient{conn, patience})
				s.forget(conn)
			})
		}
	})
}

func (s *server) track(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[conn] = struct{}{}
	return true
}

func (s *server) forget(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn.Close()
	delete(s.conns, conn)
}

// close takes the socket away, ends its connections and waits for their goroutines.
func (s *server) close() {
	// Another's socket may be there by now, if somebody removed ours.
	if now, err := os.Stat(s.path); err == nil && os.SameFile(now, s.file) {
		os.Remove(s.path)
	}
	s.listen.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.wait.Wait()
}

// impatient is a connection whose other end must not stop.
type impatient struct {
	net.Conn
	patience time.Duration
}

func (c impatient) Read(b []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(c.patience))
	return c.Conn.Read(b)
}

func (c impatient) Write(b []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(c.patience))
	return c.Conn.Write(b)
}

// dial connects to the device's socket. The connection ends with ctx.
func dial(ctx context.Context, path string) (*client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return &client{impatient{conn, patience}, stop}, nil
}

type client struct {
	impatient
	stop func() bool
}

func (c *client) Close() error {
	c.stop()
	return c.impatient.Close()
}
