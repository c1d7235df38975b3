package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/etcd"
)

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		config ClusterConfig
		want   string // "": taken
	}{
		{"none", ClusterConfig{}, "none given"},
		{"three", ClusterConfig{Endpoints: []string{"https://192.0.2.1:2379", "https://[2001:db8::1]:2379", "https://etcd.example.org:2379/"}}, ""},
		{"loopback", ClusterConfig{Endpoints: []string{"http://127.0.0.1:2379", "http://[::1]:2379"}}, ""},
		{"a socket", ClusterConfig{Endpoints: []string{"unix:///run/etcd.sock"}}, ""},
		{"a socket without a slash", ClusterConfig{Endpoints: []string{"unix://etcd.sock"}}, "unix:///PATH"},
		{"clear text", ClusterConfig{Endpoints: []string{"http://192.0.2.1:2379"}}, "clear text"},
		{"clear text by a name that may be anything", ClusterConfig{Endpoints: []string{"http://localhost:2379"}}, "clear text"},
		{"clear text, asked for", ClusterConfig{Endpoints: []string{"http://192.0.2.1:2379"}, Plain: true}, ""},
		{"no scheme", ClusterConfig{Endpoints: []string{"192.0.2.1:2379"}}, "192.0.2.1:2379"},
		{"another scheme", ClusterConfig{Endpoints: []string{"ftp://192.0.2.1:2379"}}, "https://HOST:PORT"},
		{"no port", ClusterConfig{Endpoints: []string{"https://192.0.2.1"}}, "https://HOST:PORT"},
		{"a path", ClusterConfig{Endpoints: []string{"https://192.0.2.1:2379/v3"}}, "no more"},
		{"a password", ClusterConfig{Endpoints: []string{"https://root:secret@192.0.2.1:2379"}}, "no more"},
		{"two schemes", ClusterConfig{Endpoints: []string{"https://192.0.2.1:2379", "http://127.0.0.1:2379"}}, "same scheme"},
		{"half a pair", ClusterConfig{Endpoints: []string{"https://192.0.2.1:2379"}, Cert: "c"}, "come together"},
		{"certificates for nothing", ClusterConfig{Endpoints: []string{"http://127.0.0.1:2379"}, CA: "ca"}, "does not use them"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cl, err := Connect(tt.config)
			if err == nil {
				err = cl.Close()
			} else if !errors.Is(err, ErrEndpoint) {
				t.Errorf("error %v is not one of the configuration", err)
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error()+mesh.HintOf(err), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// path is a way to an etcd that a test can stall, as a process that is stopped does:
// connections stay, and nothing comes out of them.
type path struct {
	listener net.Listener
	socket   string

	mu      sync.Mutex
	conns   []net.Conn
	stalled chan struct{} // closed while nothing is stalled
}

func newPath(t *testing.T, socket string) *path {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := make(chan struct{})
	close(open)
	p := &path{listener: l, socket: socket, stalled: open}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); p.resume(); p.cut(); all.Wait() })
	return p
}

func (p *path) url() string { return "http://" + p.listener.Addr().String() }

func (p *path) serve(c net.Conn) {
	defer c.Close()
	far, err := net.Dial("unix", p.socket)
	if err != nil {
		return
	}
	defer far.Close()
	p.mu.Lock()
	p.conns = append(p.conns, c, far)
	p.mu.Unlock()
	back := make(chan struct{})
	go func() { defer close(back); p.pump(c, far) }()
	p.pump(far, c)
	<-back
}

func (p *path) pump(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		gate := p.stalled
		p.mu.Unlock()
		<-gate
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *path) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = make(chan struct{})
}

func (p *path) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.stalled:
	default:
		close(p.stalled)
	}
}

func (p *path) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// A member that is stopped keeps its connections and says nothing on them: it is
// left within moments, the watches that were at it go on elsewhere and miss nothing,
// and when it is back it is asked again.
func TestStoppedMemberIsLeft(t *testing.T) {
	t.Parallel()
	config := serverConfig(t.TempDir())
	socket := filepath.Join(t.TempDir(), "etcd.sock")
	config.Listen = "unix:" + socket
	server, err := etcd.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	var paths []*path
	var urls []string
	for range 3 {
		p := newPath(t, socket)
		paths, urls = append(paths, p), append(urls, p.url())
	}
	const every = 300 * time.Millisecond
	cl, err := Connect(ClusterConfig{Endpoints: urls, ProbeEvery: every})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	if err := cl.Await(t.Context(), func(err error) { t.Log(err) }); err != nil {
		t.Fatal(err)
	}
	// etcd's client keeps a stream for each set of metadata: so every member has some.
	var watches []clientv3.WatchChan
	for i := range 6 {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "watch", fmt.Sprint(i))
		w := cl.Client().Watch(clientv3.WithRequireLeader(ctx), "k", clientv3.WithCreatedNotify())
		if r := <-w; r.Err() != nil || !r.Created {
			t.Fatalf("watch: %+v", r)
		}
		watches = append(watches, w)
	}
	put := func(within time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		_, err := cl.Client().Put(ctx, "k", "v")
		return err
	}
	asked := func(n int) func() bool {
		return func() bool { return len(cl.Client().Endpoints()) == n }
	}
	for i, p := range paths {
		eventuallyTrue(t, "all three are asked", asked(3))
		p.stall()
		began := time.Now()
		eventuallyTrue(t, "it is left", asked(2))
		if slices.Contains(cl.Client().Endpoints(), p.url()) {
			t.Fatalf("path %d is stopped, and another was left", i)
		}
		for range 6 {
			if err := put(5 * time.Second); err != nil {
				t.Errorf("path %d: a write once it was left: %v", i, err)
			}
		}
		for j, w := range watches {
			for seen := 0; seen < 6; {
				select {
				case r := <-w:
					if r.Err() != nil {
						t.Fatalf("path %d: watch %d: %v", i, j, r.Err())
					}
					seen += len(r.Events)
				case <-time.After(10 * time.Second):
					t.Fatalf("path %d: watch %d hangs", i, j)
				}
			}
		}
		t.Logf("path %d: left, and all watches moved, after %s", i, time.Since(began))
		p.resume()
	}
	eventuallyTrue(t, "all three are asked", asked(3))
	// With nobody well, everybody is asked: one may be back before its probe says so.
	for _, p := range paths {
		p.stall()
	}
	if err := put(2 * time.Second); err == nil {
		t.Error("a write without any member")
	}
	for _, p := range paths {
		p.resume()
	}
	eventuallyTrue(t, "a write goes through again", func() bool { return put(time.Second) == nil })
}

// Which members are asked, by what their last probes said.
func TestJudge(t *testing.T) {
	t.Parallel()
	cl, err := Connect(ClusterConfig{Endpoints: []string{"http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"}, ProbeEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	cl.stop()
	cl.probing.Wait()
	for _, m := range cl.members {
		m.well, m.failed = true, 0
	}
	for i, tt := range []struct{ answers, asked string }{
		{"...", "123"},
		{".x.", "123"}, // once is no reason
		{".x.", "13"},
		{"..x", "123"}, // back at its first answer
		{"x.x", "12"},
		{"x.x", "2"},
		{"xxx", "2"},
		{"xxx", "123"}, // nobody is well: everybody
		{"xx.", "3"},
		{"...", "123"},
	} {
		answers := make([]error, 3)
		for j, c := range tt.answers {
			if c == 'x' {
				answers[j] = errNoLeader
			}
		}
		cl.judge(answers)
		got := ""
		for _, e := range cl.client.Endpoints() {
			got += e[len(e)-1:]
		}
		if got != tt.asked {
			t.Errorf("probe %d (%s): %s are asked, want %s", i, tt.answers, got, tt.asked)
		}
	}
}

// certificate signs a server certificate for 127.0.0.1, unless change says otherwise,
// by an authority of its own, which is put into a file.
func certificate(t *testing.T, change func(*x509.Certificate)) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// Why a member is not usable is said in words, and whether it is worth waiting.
func TestAwaitSaysWhy(t *testing.T) {
	t.Parallel()
	good, ca := certificate(t, nil)
	elsewhere, caElsewhere := certificate(t, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} })
	old, caOld := certificate(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	_, caOther := certificate(t, nil)
	serve := func(config *tls.Config, answer string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				if config != nil {
					c = tls.Server(c, config)
				}
				go func() {
					defer c.Close()
					io.WriteString(c, answer)
					io.Copy(io.Discard, c)
				}()
			}
		}()
		return "https://" + l.Addr().String()
	}
	closed := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return "https://" + l.Addr().String()
	}
	with := func(c tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{c}, NextProtos: []string{"h2"}}
	}
	strict := with(good)
	strict.ClientAuth = tls.RequireAnyClientCert
	for _, tt := range []struct {
		name, endpoint, ca, want string
		final                    bool
	}{
		{"another authority", serve(with(good), ""), caOther, "of another authority", true},
		{"another address", serve(with(elsewhere), ""), caElsewhere, "for another address", true},
		{"an old certificate", serve(with(old), ""), caOld, "not valid now", true},
		{"a certificate is wanted", serve(strict, ""), ca, "refuses this controller's certificate, or wants one", true},
		{"no TLS", serve(nil, "HTTP/1.1 400 Bad Request\r\n\r\n"), ca, "does not speak TLS", true},
		{"nobody", closed(), ca, "nobody listens there", false},
		{"silence", serve(nil, ""), ca, "does not answer", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cl, err := Connect(ClusterConfig{Endpoints: []string{tt.endpoint}, CA: tt.ca})
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var said error
			err = cl.Await(ctx, func(err error) { said = err; cancel() })
			if final := errors.Is(err, ErrEndpoint); final != tt.final {
				t.Errorf("final %v, want %v: %v", final, tt.final, err)
			}
			if tt.final {
				said = err
			} else if !errors.Is(said, ErrUnavailable) {
				t.Errorf("waiting for %v", said)
			}
			if text := fmt.Sprint(said); !strings.Contains(text, tt.want) || !strings.Contains(text, tt.endpoint) {
				t.Errorf("it says %q, want %q", text, tt.want)
			}
			if mesh.HintOf(said) == "" {
				t.Error("no hint")
			}
		})
	}
}
