package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/mesh/agent/local"
)

// gatewayMoves is how long a laptop may take to find that its gateway does not answer,
// to choose another one, and to be reached there.
const gatewayMoves = 15 * time.Second

// newGateway is how long the way through a new gateway may take to be there, tunnels
// between hosts included. WireGuard itself, whose first word to a gateway that does not
// know the laptop yet is lost, takes 5 s.
const newGateway = 3500 * time.Millisecond

// status is what `weft status` says on the laptop.
func (l *laptop) status(ctx context.Context, w *world.World) (s local.Status, err error) {
	out, err := l.Run(ctx, filepath.Join(w.Bin(), "weft"), "status", "-o", "json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// goesOn says a line over a connection and waits until its echo comes: what is lost
// meanwhile TCP says again.
func goesOn(c net.Conn, line string) error {
	if err := c.SetDeadline(time.Now().Add(gatewayMoves)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	heard := make([]byte, len(line))
	if _, err := io.ReadFull(c, heard); err != nil {
		return err
	}
	if string(heard) != line {
		return fmt.Errorf("said %q, heard %q", line, heard)
	}
	return nil
}

// A laptop's gateway stops answering, and the laptop goes through another host: one that
// has had nothing to do with the other org, and then the one that carries it. What is
// granted from the laptop and to it is so there too, and no more; a connection that the
// laptop has begun goes on.
func TestAGrantFollowsAGateway(t *testing.T) {
	need(t, "ping", "nsenter")
	t.Parallel()
	w := newWorld(t, world.Config{}, "fra1", "nrt1", "ams1")
	weft(t, w, "org", "create", "globex")
	db, cache := start(t, w, "ams1", "globex", "db", "db-1"), start(t, w, "ams1", "globex", "cache", "cache-1")
	weft(t, w, "grant", "create", "--from", "acme/client:laptop", "--to", "globex/db", "--tcp", fmt.Sprint(echoPort))
	weft(t, w, "grant", "create", "--from", "globex/db", "--to", "acme/client:laptop", "--icmp")

	// fra1 is the nearest by far, and ams1 the farthest.
	l := placeLaptop(t, w, "laptop", lab.HostConfig{PrivateEtc: true})
	for host, rtt := range map[string]time.Duration{"nrt1": 20 * time.Millisecond, "ams1": 60 * time.Millisecond} {
		if err := w.Lab().Switch().SetRTT(l.Name(), host, rtt); err != nil {
			t.Fatal(err)
		}
	}
	l.start(t, w)
	dial := func(ctx context.Context, to *world.Machine) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return l.DialContext(ctx, "tcp6", netip.AddrPortFrom(to.Address, echoPort).String())
	}
	var begun net.Conn
	before := ""
	for _, gateway := range []string{"fra1", "nrt1", "ams1"} {
		cut := time.Now()
		if before != "" {
			if err := w.Lab().Switch().Cut(l.Name(), before); err != nil {
				t.Fatal(err)
			}
		}
		var s local.Status
		await(t, "the laptop to go through "+gateway, gatewayMoves, func(ctx context.Context) (err error) {
			if s, err = l.status(ctx, w); err == nil && s.Gateway != gateway {
				err = fmt.Errorf("it goes through %q", s.Gateway)
			}
			return err
		})
		chosen := time.Now()
		await(t, "a connection through "+gateway, gatewayMoves, func(ctx context.Context) error {
			c, err := dial(ctx, db)
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			if begun == nil {
				begun = c
			}
			return goesOn(c, "a new one, through "+gateway+"\n")
		})
		took := time.Since(chosen).Round(time.Millisecond)
		t.Logf("through %s: chosen %s after the cut, a connection %s later", gateway, chosen.Sub(cut).Round(time.Millisecond), took)
		if took > newGateway {
			t.Errorf("through %s the first connection came %s after it was chosen", gateway, took)
		}
		if err := goesOn(begun, "the first one, through "+gateway+"\n"); err != nil {
			t.Errorf("the connection that began before, through %s: %v", gateway, err)
		}
		await(t, "the laptop to be reached through "+gateway, gatewayMoves, func(ctx context.Context) error {
			_, err := db.In(ctx, "ping", "-c1", "-W1", s.Address.String())
			return err
		})
		if c, err := dial(t.Context(), cache); err == nil {
			c.Close()
			t.Errorf("through %s the laptop reaches what it was not granted", gateway)
		}
		if out, err := cache.In(t.Context(), "ping", "-c1", "-W1", s.Address.String()); err == nil {
			t.Errorf("through %s the laptop is reached by what was not granted it:\n%s", gateway, out)
		}
		before = gateway
	}
}
