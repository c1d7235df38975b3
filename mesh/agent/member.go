package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// ErrNoToken says that a node has to join and was given no token.
var ErrNoToken = errors.New("this node has not joined a mesh, and no join token was given")

// member is a node's membership at work: its keys, its certificate and how to
// reach the controllers with them.
type member struct {
	identity   enroll.Identity
	keys       enroll.Keys
	configured []string // controllers given by the user: the last resort
	timing     Timing
	problems   *problems
	log        *slog.Logger

	certificate atomic.Pointer[tls.Certificate]
	refused     chan struct{} // wakes renew: a controller does not take the certificate

	mu      sync.Mutex // guards what follows
	saved   enroll.Membership
	clients map[string]*api.Client // by servers, joined with a space
}

// openMember reads the membership of a node that has joined. The error wraps
// os.ErrNotExist if it has not.
func openMember(j Join, kind string, t Timing, p *problems, log *slog.Logger) (*member, error) {
	m := &member{
		identity: enroll.Identity{Dir: j.StateDir}, configured: j.Controllers, timing: t, problems: p, log: log,
		refused: make(chan struct{}, 1), clients: map[string]*api.Client{},
	}
	var err error
	if m.keys, err = m.identity.Keys(); err != nil {
		return nil, fmt.Errorf("keys in %s: %w", j.StateDir, err)
	}
	saved, err := m.identity.Load()
	if err != nil {
		return m, err
	}
	if saved.Node.Kind != kind {
		return m, mesh.WithHint(fmt.Errorf("state directory %s is that of %s, not of a %s", j.StateDir, saved.Node, kind), "give another directory with --state-dir")
	}
	return m, m.take(saved)
}

// take makes saved the membership in force.
func (m *member) take(saved enroll.Membership) error {
	certificate, err := m.keys.Certificate(saved.Certificate)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saved = saved
	m.certificate.Store(certificate)
	m.forgetClientsLocked()
	return nil
}

// forgetClientsLocked makes the next request open a new connection, with the
// certificate and the roots that are in force now. Streams that are open stay.
func (m *member) forgetClientsLocked() {
	for _, c := range m.clients {
		c.Close()
	}
	clear(m.clients)
}

func (m *member) node() mesh.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.saved.Node
}

func (m *member) wireguard() wgtypes.Key { return m.keys.WireGuard }

// servers lists the controllers: those that worked, the last one first, those of the
// view, those given by the user.
func (m *member) servers() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return distinct(m.saved.Worked, m.saved.Controllers, m.configured)
}

// distinct joins lists of base URLs; each is there once.
func distinct(lists ...[]string) []string {
	var all []string
	for _, s := range slices.Concat(lists...) {
		if s = strings.TrimSuffix(s, "/"); !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// client returns a client for servers, or for all controllers.
func (m *member) client(servers ...string) (*api.Client, error) {
	if len(servers) == 0 {
		servers = m.servers()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := strings.Join(servers, " ")
	if c := m.clients[key]; c != nil {
		return c, nil
	}
	c, err := api.New(api.Config{
		Servers: servers,
		TLS:     enroll.ClientTLS(enroll.ClientConfig{Roots: m.saved.Roots, Certificate: m.certificate.Load}),
	})
	if err == nil {
		m.clients[key] = c
	}
	return c, err
}

// do sends a request to any controller.
func (m *member) do(ctx context.Context, method, path string, in, out any) error {
	c, err := m.client()
	if err != nil {
		return err
	}
	return c.Do(ctx, method, path, in, out)
}

// open opens a view stream.
func (m *member) open(ctx context.Context, server string, last mesh.Revision) (viewStream, error) {
	c, err := m.client(server)
	if err != nil {
		return nil, err
	}
	s, err := c.View(ctx, last, m.timing.Silence)
	if errors.Is(err, api.ErrUnauthorized) {
		select {
		case m.refused <- struct{}{}:
		default:
		}
	}
	if err != nil {
		return nil, err // not s: a nil *api.Stream is no nil viewStream
	}
	return s, nil
}

// worked learns what a view says of controllers and roots, and keeps it, with the
// controllers that gave the last views: the list in a view may be of no use from here.
func (m *member) worked(server string, v *mesh.View) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.saved
	next.Worked = distinct([]string{server}, m.saved.Worked)
	next.Worked = next.Worked[:min(len(next.Worked), workedMost)]
	if len(v.Controllers) > 0 {
		next.Controllers = v.Controllers
	}
	if _, err := enroll.ParseRoots(v.Roots); err == nil && len(v.Roots) > 0 {
		next.Roots = v.Roots
	}
	learnt := !slices.Equal(next.Controllers, m.saved.Controllers) || !slices.Equal(next.Roots, m.saved.Roots)
	if !learnt && slices.Equal(next.Worked, m.saved.Worked) {
		return
	}
	m.problems.err("identity", m.identity.Save(next))
	if learnt {
		m.log.Info("controllers or roots changed", "controllers", strings.Join(next.Controllers, " "), "roots", len(next.Roots))
	}
	m.saved = next
	m.forgetClientsLocked()
}

// workedMost is how many controllers that worked are remembered.
const workedMost = 3

// enroll joins the mesh with a token. It goes on until a controller has answered;
// only a wrong pin, a refused token or a request that cannot be right end it.
func (m *member) enroll(ctx context.Context, j Join, request api.EnrollRequest) error {
	token, err := j.token()
	if err != nil {
		return err
	}
	client, err := api.New(api.Config{Servers: j.Controllers, TLS: enroll.ClientTLS(enroll.ClientConfig{Pin: token.Pin})})
	if err != nil {
		return mesh.WithHint(fmt.Errorf("join the mesh: %w", err), "say where a controller is with --controller https://HOST:7443")
	}
	defer client.Close()
	request.Token, request.Name, request.Key = token.Text(), j.Name, m.keys.WireGuard.PublicKey().String()
	if request.TLSKey, err = m.keys.TLSPublic(); err != nil {
		return err
	}
	b := backoff{first: m.timing.Backoff, most: m.timing.MaxBackoff}
	for {
		var answer api.EnrollResponse
		err := client.Do(ctx, http.MethodPost, "/v1/enroll", request, &answer)
		if err == nil {
			return m.joined(answer)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = fmt.Errorf("join the mesh with token %s as %s: %w", token.ID, j.Name, err)
		if refused(err) {
			return err
		}
		if m.problems.err("join", err) {
			m.log.Warn("not joined yet", "err", err)
		}
		if !wait(ctx, b.step(), nil) {
			return ctx.Err()
		}
	}
}

// refused reports an answer that asking again will not change.
func refused(err error) bool {
	return errors.Is(err, enroll.ErrPin) || errors.Is(err, api.ErrToken) || errors.Is(err, api.ErrUnauthorized) || errors.Is(err, api.ErrForbidden) || errors.Is(err, api.ErrInvalid)
}

func (m *member) joined(a api.EnrollResponse) error {
	node, ok := mesh.ParseNode(a.Node)
	if !ok {
		return fmt.Errorf("join the mesh: the controller calls this node %q", a.Node)
	}
	saved := enroll.Membership{Node: node, Certificate: a.Certificate, Roots: a.Roots, Controllers: a.Controllers}
	if err := m.take(saved); err != nil {
		return fmt.Errorf("join the mesh: %w", err)
	}
	if err := m.identity.Save(saved); err != nil {
		return fmt.Errorf("join the mesh: %w", err)
	}
	m.problems.set("join", "")
	m.log.Info("joined the mesh", "node", node.String())
	return nil
}

// token reads the join token.
func (j Join) token() (enroll.Token, error) {
	text := j.Token.Reveal()
	if text == "" && j.TokenFile != "" {
		b, err := os.ReadFile(j.TokenFile)
		if err != nil {
			return enroll.Token{}, fmt.Errorf("join token: %w", err)
		}
		text = string(b)
	}
	if text == "" {
		return enroll.Token{}, mesh.WithHint(ErrNoToken, `make one with "weft token create" and give it with --token-file FILE`)
	}
	return enroll.ParseToken(text)
}

// renew keeps the certificate young until ctx ends: at two thirds of its life, at
// once if it has expired, and when a controller does not take it: clocks differ.
func (m *member) renew(ctx context.Context) {
	b := backoff{first: m.timing.Backoff, most: 10 * m.timing.MaxBackoff}
	for {
		if !m.awaitRenewal(ctx) {
			return
		}
		err := m.renewNow(ctx)
		if ctx.Err() != nil {
			return
		}
		if m.problems.err("certificate", err) && err != nil {
			m.log.Warn("the certificate is not renewed", "expires", m.certificate.Load().Leaf.NotAfter.Format(time.RFC3339), "err", err)
		}
		pause := m.timing.Backoff // also after a success: a clock may make the new one look old
		if err == nil {
			b.reset()
		} else {
			// One that lives for seconds is asked for more often.
			leaf := m.certificate.Load().Leaf
			pause = min(b.step(), max(leaf.NotAfter.Sub(enroll.RenewAt(leaf))/4, m.timing.Backoff))
		}
		if !wait(ctx, pause, nil) {
			return
		}
	}
}

// lookAt bounds how long the clock is not looked at: a timer runs late by as long as
// the machine sleeps, and knows nothing of a clock that is set.
const lookAt = time.Minute

// awaitRenewal waits until the certificate is to be renewed. It is false when ctx has
// ended.
func (m *member) awaitRenewal(ctx context.Context) bool {
	for {
		due := time.Until(enroll.RenewAt(m.certificate.Load().Leaf))
		if due <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(due, lookAt))
		select {
		case <-ctx.Done():
		case <-timer.C:
			continue
		case <-m.refused:
		}
		timer.Stop()
		return ctx.Err() == nil
	}
}

// expired reports whether the certificate is of no use any more but for renewal.
func (m *member) expired() bool { return time.Now().After(m.certificate.Load().Leaf.NotAfter) }

// renewNow asks for a new certificate of the same key. An expired one is good
// enough to ask with.
func (m *member) renewNow(ctx context.Context) error {
	var answer api.RenewResponse
	if err := m.do(ctx, http.MethodPost, "/v1/nodes/self/renew", nil, &answer); err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(answer.Certificate)
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	// It may end before the old one: the controller's clock was ahead then.
	m.mu.Lock()
	saved := m.saved
	m.mu.Unlock()
	saved.Certificate = answer.Certificate
	if _, err := enroll.ParseRoots(answer.Roots); err == nil && len(answer.Roots) > 0 {
		saved.Roots = answer.Roots
	}
	if err := m.take(saved); err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	m.log.Info("certificate renewed", "expires", leaf.NotAfter.Format(time.RFC3339))
	return m.identity.Save(saved)
}
