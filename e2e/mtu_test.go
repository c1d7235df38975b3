package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
)

// echoed sends bytes by TCP from one machine to another, which says them back.
const echoScript = `
import socket, sys, threading, time
size, began = int(sys.argv[2]), time.time()
s = socket.create_connection((sys.argv[1], 7), 5)
s.settimeout(15)
threading.Thread(target=lambda: (s.sendall(b"x" * size), s.shutdown(socket.SHUT_WR)), daemon=True).start()
got = 0
while True:
    b = s.recv(65536)
    if not b: break
    got += len(b)
print(got, "%.2f s" % (time.time() - began))
sys.exit(got != size)
`

// segmentScript prints how large the segments of a connection are before it has sent
// anything: what the two ends were told by the SYNs.
const segmentScript = `
import socket, sys
s = socket.create_connection((sys.argv[1], 7), 5)
print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
`

// discoverScript sends a datagram of 1400 bytes, IPv6 header included, that may not be
// cut, until the way says how large one may be, and then one of that size.
const discoverScript = `
import errno, socket, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, 23, 2)
s.connect((sys.argv[1], 7))
s.settimeout(0.2)
def echoed(size):
    try:
        s.send(b"x" * (size - 48))
        return len(s.recv(2000)) == size - 48
    except socket.timeout:
        return False
for i in range(10):
    try:
        if echoed(1400):
            sys.exit("1400 bytes passed")
    except OSError as e:
        if e.errno != errno.EMSGSIZE: raise
        break
mtu = s.getsockopt(socket.IPPROTO_IPV6, 24)
print(mtu)
sys.exit(0 if any(echoed(mtu) for i in range(5)) else "%d bytes did not pass" % mtu)
`

func python(ctx context.Context, m *world.Machine, script string, args ...string) (string, error) {
	return m.In(ctx, append([]string{"python3", "-c", script}, args...)...)
}

// mtusAre waits until a host's agent says these MTUs of its tunnels.
func mtusAre(w *world.World, at string, want map[string]int) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		var errs []error
		for of, mtu := range want {
			p, _, err := peerOf(ctx, w, at, of)
			if err == nil && p.MTU != mtu {
				err = fmt.Errorf("%s says MTU %d to %s, want %d", at, p.MTU, of, mtu)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
}

// routesTo are the routes of a host's plane to another host's share of the machines'
// network, as `ip` prints them.
func routesTo(ctx context.Context, w *world.World, at string, m *world.Machine) (string, error) {
	return w.Hosts[at].Run(ctx, "ip", "netns", "exec", "weft", "ip", "-6", "route", "show", homeOf(m.Address.String()))
}

// A path that silently drops large packets is no black hole: it is found, both ends
// lower the MTU to that host and to no other, machines are told, and a warning names
// host and size. When the path carries all again, so do the tunnels.
func TestNarrowPath(t *testing.T) {
	need(t, "nsenter", "python3", "ip", "curl")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	m := carryEverywhere(t, w)
	a, b, c := m["fra1"], m["ams1"], m["nrt1"]
	await(t, "all tunnels to be as wide as the link", 15*time.Second, mtusAre(w, "fra1", map[string]int{"ams1": 1420, "nrt1": 1420}))
	await(t, "a to reach b", 10*time.Second, func(ctx context.Context) error { return reach(ctx, a, b) })

	// 1400 bytes of IPv4 hold 20 + 8 + 32 of headers and 1328 of what was padded to 16.
	if err := w.Lab().Switch().SetMTU("fra1", "ams1", 1400); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := python(t.Context(), a, echoScript, b.Address.String(), "2000000")
	if err != nil {
		t.Fatalf("TCP over a narrow path: %v\n%s", err, out)
	}
	dropped, err := w.Lab().Switch().Counters("fra1", "ams1")
	if err != nil || dropped.Big == 0 {
		t.Fatalf("the path has dropped nothing: %+v, %v", dropped, err)
	}
	t.Logf("2 MB there and back: %s; in all %s after the path got narrow", strings.TrimSpace(out), time.Since(began).Round(10*time.Millisecond))
	for at, of := range map[string]string{"fra1": "ams1", "ams1": "fra1"} {
		await(t, "the MTU to be lowered at "+at, 8*time.Second, mtusAre(w, at, map[string]int{of: 1328, "nrt1": 1420}))
		_, problems, err := peerOf(t.Context(), w, at, of)
		if want := fmt.Sprintf("packets over 1328 bytes to host %s do not arrive; MTU lowered to 1328; the underlay's route says 1500; look at", of); err != nil || !strings.Contains(problems, want) {
			t.Errorf("%s does not say %q: %v\n%s", at, want, err, problems)
		}
	}
	metrics, err := w.Hosts["fra1"].Run(t.Context(), "curl", "-sS", "http://127.0.0.1:9551/metrics")
	if line := `weft_agent_host_mtu_bytes{host="ams1"} 1328`; err != nil || !strings.Contains(metrics, line) {
		t.Errorf("the metrics have no %s (%v)", line, err)
	}
	narrow, err1 := routesTo(t.Context(), w, "fra1", b)
	wide, err2 := routesTo(t.Context(), w, "fra1", c)
	if errors.Join(err1, err2) != nil || !strings.Contains(narrow, "mtu 1328") || strings.Contains(wide, "mtu") {
		t.Errorf("routes %q and %q: %v", narrow, wide, errors.Join(err1, err2))
	}
	if out, err := python(t.Context(), a, discoverScript, b.Address.String()); err != nil || strings.TrimSpace(out) != "1328" {
		t.Errorf("path MTU discovery of a datagram: %q, %v", out, err)
	}
	late := start(t, w, "ams1", "acme", "late", "late")
	for _, pair := range [][2]*world.Machine{{a, late}, {late, a}} {
		// 1328 less 40 of IPv6, 20 of TCP and 12 of its time stamps.
		if out, err := python(t.Context(), pair[0], segmentScript, pair[1].Address.String()); err != nil || strings.TrimSpace(out) != "1256" {
			t.Errorf("%s to %s: segments of %q bytes, want 1256: %v", pair[0].ID, pair[1].ID, out, err)
		}
	}
	for _, pair := range [][2]*world.Machine{{a, b}, {b, a}, {a, c}} {
		began := time.Now()
		if out, err := python(t.Context(), pair[0], echoScript, pair[1].Address.String(), "2000000"); err != nil || time.Since(began) > 3*time.Second {
			t.Errorf("%s to %s, once the MTU is known: after %s: %v\n%s", pair[0].ID, pair[1].ID, time.Since(began), err, out)
		}
	}

	if err := w.Lab().Switch().SetMTU("fra1", "ams1", 0); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	await(t, "the MTU to be raised", 30*time.Second, func(ctx context.Context) error {
		return errors.Join(mtusAre(w, "fra1", map[string]int{"ams1": 1420})(ctx), mtusAre(w, "ams1", map[string]int{"fra1": 1420})(ctx))
	})
	t.Logf("raised after %s", time.Since(began).Round(10*time.Millisecond))
	if _, problems, err := peerOf(t.Context(), w, "fra1", "ams1"); err != nil || strings.Contains(problems, "MTU") {
		t.Errorf("the path is wide again, and: %s %v", problems, err)
	}
	await(t, "the route's MTU to go", 5*time.Second, func(ctx context.Context) error {
		if out, err := routesTo(ctx, w, "fra1", b); err != nil || strings.Contains(out, "mtu") {
			return fmt.Errorf("%s%v", out, err)
		}
		return nil
	})
}

// A route of the underlay that gets another MTU is followed within two seconds, for the
// host behind it alone; and the link's own MTU follows the interface.
func TestUnderlayMTU(t *testing.T) {
	need(t, "nsenter", "ip")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "ams1", "nrt1")
	carryEverywhere(t, w)
	fra := w.Hosts["fra1"]
	await(t, "all tunnels to be as wide as the link", 15*time.Second, mtusAre(w, "fra1", map[string]int{"ams1": 1420, "nrt1": 1420}))
	ip := func(args ...string) string {
		t.Helper()
		out, err := fra.Run(t.Context(), "ip", args...)
		if err != nil {
			t.Fatalf("ip %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	ams := w.Hosts["ams1"].Addr().String()
	route := strings.Fields(ip("route", "get", ams))
	dev := route[slices.Index(route, "dev")+1]
	const soon = 2500 * time.Millisecond // two seconds, and a command that looks
	ip("route", "add", ams+"/32", "dev", dev, "mtu", "1400")
	await(t, "a route's MTU to be followed", soon, mtusAre(w, "fra1", map[string]int{"ams1": 1320, "nrt1": 1420}))
	ip("route", "del", ams+"/32", "dev", dev)
	await(t, "the route's end to be followed", soon, mtusAre(w, "fra1", map[string]int{"ams1": 1420, "nrt1": 1420}))
	ip("link", "set", dev, "mtu", "1450")
	await(t, "an interface's MTU to be followed", soon, func(ctx context.Context) error {
		s, err := w.Status(ctx, fra)
		if err == nil && s.MTU != 1370 {
			err = fmt.Errorf("the link's MTU is %d, want 1370", s.MTU)
		}
		if err == nil && len(s.Problems) > 0 {
			err = fmt.Errorf("problems: %v", s.Problems)
		}
		return err
	})
}
