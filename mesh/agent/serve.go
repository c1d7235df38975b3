package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// The local API, server side: HTTP on a unix socket. Who asks is told by the
// kernel, not by the request: only root, and whoever the agent runs as. A web page
// cannot open such a socket, and another user of the machine is refused.

// localServer listens on one socket.
type localServer struct {
	path     string
	listener net.Listener
	http     *http.Server
	handlers sync.WaitGroup
	end      context.CancelFunc // of every request's context
}

// answers reports whether somebody listens on a unix socket.
func answers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// listenLocal makes the socket, 0660, in the place of one that nobody answers on.
func listenLocal(path string, handler http.Handler, log *slog.Logger) (*localServer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("local socket: %w", err)
	}
	// Bound under another name first: nobody can connect before the mode is right.
	early := path + ".new"
	os.Remove(early)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: early, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("local socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(early, 0o660); err == nil {
		err = os.Rename(early, path)
	}
	if err != nil {
		l.Close()
		os.Remove(early)
		return nil, fmt.Errorf("local socket %s: %w", path, err)
	}
	s := &localServer{path: path, listener: l}
	base, end := context.WithCancel(context.Background())
	s.end = end
	s.http = &http.Server{
		Handler:           s.counted(onlyUs(handler)),
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(base, baseKey{}, base) },
		ConnContext:       withCaller,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// run serves until ctx ends.
func (s *localServer) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.close() })
	defer stop()
	err := s.http.Serve(s.listener)
	s.close()
	s.handlers.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("local socket %s: %w", s.path, err)
}

func (s *localServer) close() {
	s.end()
	s.http.Close()
	s.listener.Close()
	os.Remove(s.path)
}

func (s *localServer) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.handlers.Add(1)
		defer s.handlers.Done()
		next.ServeHTTP(w, r)
	})
}

type (
	baseKey   struct{}
	callerKey struct{}
)

// ending reports, of a request's context that has ended, whether this process ends
// and not only the one that asked.
func ending(ctx context.Context) bool {
	base, ok := ctx.Value(baseKey{}).(context.Context)
	return ok && base.Err() != nil
}

// withCaller notes who is at the other end of a connection.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ctx
	}
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			ctx = context.WithValue(ctx, callerKey{}, cred)
		}
	})
	return ctx
}

// caller returns who asks; ok is false if the kernel did not say.
func caller(ctx context.Context) (*unix.Ucred, bool) {
	cred, ok := ctx.Value(callerKey{}).(*unix.Ucred)
	return cred, ok
}

func onlyUs(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cred, ok := caller(r.Context())
		if !ok || !mayAsk(cred.Uid, uint32(os.Geteuid())) {
			refuse(w, &api.Error{Status: http.StatusForbidden, Code: api.ErrForbidden.Code, Message: "local socket: only root may ask", Advice: "run it as root, with sudo"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func mayAsk(uid, own uint32) bool { return uid == 0 || uid == own }

// refuse writes an error as the controllers do: the reader needs to know only one
// form.
func refuse(w http.ResponseWriter, err error) {
	e := &api.Error{}
	if !errors.As(err, &e) {
		e = &api.Error{Status: http.StatusInternalServerError, Code: "failed"}
		switch {
		case errors.Is(err, api.ErrUnreachable):
			e.Status, e.Code = api.ErrUnavailable.Status, api.ErrUnavailable.Code
		case errors.Is(err, context.DeadlineExceeded):
			e.Status, e.Code = http.StatusGatewayTimeout, "timeout"
		}
	}
	out := api.Error{Status: e.Status, Code: e.Code, Message: err.Error(), Advice: mesh.HintOf(err)}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(out.Status)
	json.NewEncoder(w).Encode(out)
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// readBody reads a request's JSON.
func readBody(r *http.Request, into any) error {
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return invalid("request: %s", err)
	}
	return nil
}

// notYet says that there is no view so far.
func notYet(p *problems) error {
	why := "this node follows no view yet"
	for _, s := range p.list() {
		why += "; " + s
	}
	return &api.Error{Status: api.ErrUnavailable.Status, Code: api.ErrUnavailable.Code, Message: why}
}
