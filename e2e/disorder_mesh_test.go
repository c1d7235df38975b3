package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftmesh/weft/e2e/lab"
	"github.com/weftmesh/weft/e2e/world"
	"github.com/weftmesh/weft/peers/netns"
)

// disorder is a bad network, between any two, the controller included.
var disorder = lab.Path{Delay: 15 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.05, Reorder: 0.05, Duplicate: 0.05}

// In a network that loses 5 packets of 100, and delays, reorders and repeats others, a
// mesh comes up, names what it has, loses no more than the network does, brings
// streams over whole, and takes no host for silent.
func TestDisorder(t *testing.T) {
	need(t, "dig", "ping", "nsenter")
	t.Parallel()
	l := newLab(t)
	w := newWorld(t, world.Config{Lab: l})
	hosts := []string{"fra1", "ams1", "nrt1"}
	all := append([]string{"ctl"}, hosts...)
	for _, name := range hosts {
		region := strings.TrimRight(name, "0123456789")
		weft(t, w, "region", "create", region)
		if _, err := w.AddHost(t.Context(), name, region); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range all {
		for _, to := range all {
			if from == to {
				continue
			}
			if err := l.Switch().SetPath(from, to, disorder); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	var machines []*world.Machine
	var names []string
	for _, h := range hosts {
		m := start(t, w, h, "acme", "web", "web-"+h)
		machines, names = append(machines, m), append(names, m.Address.String())
	}
	slices.Sort(names)
	for _, m := range machines {
		await(t, "all machines' name at "+m.ID, 10*time.Second, nameIs(m, "global.web.internal", names...))
	}

	// A handshake whose packet is lost is tried again after five seconds.
	for i, from := range machines {
		to := machines[(i+1)%len(machines)]
		await(t, "a ping from "+from.ID+" to "+to.ID, 20*time.Second, func(ctx context.Context) error {
			_, err := from.In(ctx, "ping", "-c1", "-W1", to.Address.String())
			return err
		})
	}

	began := time.Now()
	endWatch := watchNames(machines[0], "global.web.internal", names)
	var group errgroup.Group
	for i, from := range machines {
		to := machines[(i+1)%len(machines)]
		group.Go(func() error { return pingsThrough(t.Context(), from, to) })
		group.Go(func() error { return echoesWhole(t.Context(), from, to, 512<<10) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	asked, wrong := endWatch()
	t.Logf("%s of disorder: the name was asked for %d times", time.Since(began).Round(time.Millisecond), asked)
	if asked < 10 || len(wrong) > 0 {
		t.Errorf("of %d answers these are wrong: %q", asked, wrong)
	}
	for _, h := range hosts {
		if log := w.Hosts[h].Agent.Log(); strings.Contains(log, "state=suspect") {
			t.Errorf("%s took a host for silent:\n%s", h, log)
		}
		for _, to := range hosts {
			if c, err := l.Switch().Counters(h, to); h != to && (err != nil || c.Lost == 0 || c.Reordered == 0 || c.Duplicated == 0) {
				t.Errorf("from %s to %s there was no disorder: %+v, %v", h, to, c, err)
			}
		}
	}

	// And it can tell: a host that is cut off is silent.
	if err := l.Switch().CutHost("nrt1"); err != nil {
		t.Fatal(err)
	}
	await(t, "the host that is cut off to be silent", 10*time.Second, func(context.Context) error {
		if !strings.Contains(w.Hosts["fra1"].Agent.Log(), "state=suspect") {
			return errors.New("fra1's log does not say so")
		}
		return nil
	})
}

// watchNames asks for a name until end is called, which returns how often it was
// answered and what was wrong.
func watchNames(from *world.Machine, name string, want []string) (end func() (asked int, wrong []string)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	asked, wrong := 0, []string(nil)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			got, err := digs(ctx, from, name)
			if ctx.Err() != nil {
				return
			}
			asked++
			if err != nil || !slices.Equal(got, want) {
				wrong = append(wrong, fmt.Sprint(got, err))
			}
		}
	}()
	return func() (int, []string) { cancel(); <-done; return asked, wrong }
}

var pingSummary = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// pingsThrough sends 120 echo requests. Of a round trip the network loses 9.75 %; 25 %
// are more than five standard deviations beyond.
func pingsThrough(ctx context.Context, from, to *world.Machine) error {
	out, err := from.In(ctx, "ping", "-q", "-c120", "-i0.03", "-W2", to.Address.String())
	m := pingSummary.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("ping from %s to %s: %w\n%s", from.ID, to.ID, err, out)
	}
	if got, err := strconv.Atoi(m[2]); err != nil || got < 90 {
		return fmt.Errorf("ping from %s to %s: %s", from.ID, to.ID, m[0])
	}
	return nil
}

// echoesWhole sends bytes to a machine that says back what it hears, and compares.
func echoesWhole(ctx context.Context, from, to *world.Machine, size int) error {
	pid, err := from.Pid()
	if err != nil {
		return err
	}
	inside, err := netns.OpenPath(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer inside.Close()
	var c net.Conn
	err = inside.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp6", netip.AddrPortFrom(to.Address, 7).String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(40 * time.Second))
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	var group errgroup.Group
	group.Go(func() error { _, err := c.Write(data); return err })
	sum := sha256.New()
	n, err := io.CopyN(sum, c, int64(size))
	if err := errors.Join(err, group.Wait()); err != nil {
		return fmt.Errorf("stream from %s to %s: after %d bytes: %w", from.ID, to.ID, n, err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		return fmt.Errorf("stream from %s to %s: what came back is not what was sent", from.ID, to.ID)
	}
	return nil
}
