package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// checkSystem looks, before anything is changed, for what a node cannot do without.
// A port of 0 is not looked at.
func checkSystem(needsTUN bool, port uint16, socket string) error {
	if os.Geteuid() != 0 {
		return mesh.WithHint(fmt.Errorf("make links and namespaces: %w", os.ErrPermission), "run as root")
	}
	if needsTUN {
		if err := checkTUN(); err != nil {
			return err
		}
	}
	if answers(socket) {
		return mesh.WithHint(fmt.Errorf("local socket %s: another one answers on it", socket), "only one can run here; end it, or give another --socket and --namespace")
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
	if err != nil {
		return mesh.WithHint(fmt.Errorf("WireGuard's UDP port %d: %w", port, err), "find who has it with: ss -lunp sport = :%d, or choose another one with --listen-port", port)
	}
	return udp.Close()
}

func checkTUN() error {
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return mesh.WithHint(fmt.Errorf("make a tunnel: %w", err), "load the driver: modprobe tun")
	}
	if err != nil {
		return mesh.WithHint(fmt.Errorf("make a tunnel: %w", err), "may this program use TUN devices here? in a container it needs --device /dev/net/tun and NET_ADMIN")
	}
	return tun.Close()
}

// state is a node's state directory in use by this process.
type state struct {
	cfg    Join
	kind   string
	lock   *os.File
	member *member // nil: it has to join
	made   []string
}

// openState locks the state directory. It makes nothing that would be left over if
// the join token cannot be right.
func openState(j Join, kind string) (*state, error) {
	s := &state{cfg: j, kind: kind}
	_, err := os.Stat(filepath.Join(j.StateDir, "node.json"))
	if errors.Is(err, os.ErrNotExist) {
		token, err := j.token()
		if err != nil {
			return nil, err
		}
		if token.Kind != kind {
			return nil, mesh.WithHint(fmt.Errorf("join token %s: it lets a %s join, and this is a %s", token.ID, token.Kind, kind), "make one with: weft token create --kind %s", kind)
		}
		if len(j.Controllers) == 0 {
			return nil, mesh.WithHint(errors.New("no controller is known"), "say where one is with --controller https://HOST:7443")
		}
		s.noteMissing()
	}
	if err := os.MkdirAll(j.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	path := filepath.Join(j.StateDir, "lock")
	if s.lock, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.lock.Close()
		return nil, mesh.WithHint(fmt.Errorf("state directory %s: another process uses it", j.StateDir), "end that one, or give another --state-dir")
	}
	return s, nil
}

// noteMissing remembers what is not there yet, deepest first, for undo.
func (s *state) noteMissing() {
	for _, name := range []string{"lock", "resolver.lock", "wireguard.key", "tls.key"} {
		s.made = append(s.made, filepath.Join(s.cfg.StateDir, name))
	}
	for dir := filepath.Clean(s.cfg.StateDir); ; dir = filepath.Dir(dir) {
		s.made = append(s.made, dir)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	missing := s.made[:0]
	for _, path := range s.made {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			missing = append(missing, path)
		}
	}
	s.made = missing
}

// undo takes away what a node that was refused has made.
func (s *state) undo() {
	for _, path := range s.made {
		os.Remove(path) // a directory that somebody has put something into stays
	}
}

func (s *state) close() { s.lock.Close() }

// join returns the node's membership, and joins the mesh for it if need be.
func (s *state) join(ctx context.Context, t Timing, p *problems, log *slog.Logger, request api.EnrollRequest) (*member, error) {
	m, err := openMember(s.cfg, s.kind, t, p, log)
	if errors.Is(err, os.ErrNotExist) && m != nil {
		if err = m.enroll(ctx, s.cfg, request); err != nil && ctx.Err() == nil {
			s.undo()
		}
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}
