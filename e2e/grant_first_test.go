package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
)

// firstPacket asks by UDP, every 10 ms, until the echo answers, and returns when that
// was and when the question was sent that was answered first.
func firstPacket(ctx context.Context, from *watcher, to *world.Machine, within time.Duration) (asked, answered time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	c, err := from.dial(ctx, "udp6", netip.AddrPortFrom(to.Address, echoPort))
	if err != nil {
		return asked, answered, err
	}
	defer c.Close()
	var sent []time.Time
	buf := make([]byte, 64)
	for ctx.Err() == nil {
		binary.BigEndian.PutUint32(buf, uint32(len(sent)))
		sent = append(sent, time.Now())
		c.Write(buf[:4]) // refused as long as there is no grant
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			return asked, answered, err
		}
		n, err := c.Read(buf)
		if err != nil {
			// A refusal comes at once; the next question does not.
			select {
			case <-time.After(time.Until(sent[len(sent)-1].Add(10 * time.Millisecond))):
			case <-ctx.Done():
			}
			continue
		}
		if i := binary.BigEndian.Uint32(buf); n == 4 && int(i) < len(sent) {
			return sent[i], time.Now(), nil
		}
	}
	return asked, answered, errors.New("no answer")
}

// firstGranted is how long the first packet between two hosts that have had nothing to
// do with each other may take from the moment that the grant is made, and its answer
// back: half a second as a rule if the first word of the tunnel is lost, and a busy
// machine is slower. Left to WireGuard it is 5 s.
const firstGranted = 1500 * time.Millisecond

// Of a grant between two hosts without a tunnel the first packet passes soon, whoever
// of the two begins, and also to a far host (sin1): the tunnel is made with the grant,
// and a word of one host that comes before the other one knows it costs little.
func TestFirstGrantedPacket(t *testing.T) {
	need(t, "nsenter")
	t.Parallel()
	names := []string{"fra1", "ams1", "nrt1", "sin1"}
	w := newWorld(t, world.Config{}, names...)
	var machines []*world.Machine
	var inside []*watcher
	for i, host := range names {
		org := fmt.Sprintf("org%d", i)
		weft(t, w, "org", "create", org)
		machines = append(machines, start(t, w, host, org, "app", "m-1"))
		inside = append(inside, newWatcher(t, machines[i]))
	}
	for _, near := range names[:3] {
		if err := w.Lab().Switch().SetRTT(near, "sin1", 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	for a := range names {
		for b := range a {
			from, to := a, b
			if (a+b)%2 == 0 {
				from, to = b, a
			}
			type times struct {
				asked, answered time.Time
				err             error
			}
			heard := make(chan times, 1)
			go func() {
				var x times
				x.asked, x.answered, x.err = firstPacket(t.Context(), inside[from], machines[to], 2*firstTunnel)
				heard <- x
			}()
			began := time.Now()
			weft(t, w, "grant", "create", "--from", machines[from].Org+"/app", "--to", machines[to].Org+"/app", "--udp", fmt.Sprint(echoPort))
			made := time.Now()
			x := <-heard
			if x.err != nil {
				t.Fatalf("from %s to %s: %v", names[from], names[to], x.err)
			}
			t.Logf("from %s to %s: made in %s; the packet that was answered first left after %s, its answer came after %s",
				names[from], names[to], made.Sub(began).Round(time.Millisecond), x.asked.Sub(made).Round(time.Millisecond), x.answered.Sub(made).Round(time.Millisecond))
			if took := x.answered.Sub(made); took > firstGranted {
				t.Errorf("from %s to %s: the first answer came %s after the grant was made", names[from], names[to], took.Round(time.Millisecond))
			}
		}
	}
}
