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

// Two hosts that are far from each other and have had nothing to do with each other both
// have something to say as soon as they hear of each other: their first words cross, and
// both are lost. It is a matter of moments all the same, and not of WireGuard's 5 s.
func TestFirstWordsThatCross(t *testing.T) {
	need(t, "nsenter")
	t.Parallel()
	const rtt = 300 * time.Millisecond // twice what lies between the two grants
	w := newWorld(t, world.Config{}, "fra1", "sin1")
	if err := w.Lab().Switch().SetRTT("fra1", "sin1", rtt); err != nil {
		t.Fatal(err)
	}
	var machines []*world.Machine
	var inside []*watcher
	for i, host := range []string{"fra1", "sin1"} {
		org := fmt.Sprintf("org%d", i)
		weft(t, w, "org", "create", org)
		machines = append(machines, start(t, w, host, org, "app", "m-1"))
		inside = append(inside, newWatcher(t, machines[i]))
	}
	answered := make([]chan error, 2)
	at := make([]time.Time, 2)
	for i := range machines {
		answered[i] = make(chan error, 1)
		go func() {
			_, when, err := firstPacket(t.Context(), inside[i], machines[1-i], 2*firstTunnel)
			at[i] = when
			answered[i] <- err
		}()
	}
	for i := range machines {
		weft(t, w, "grant", "create", "--from", machines[i].Org+"/app", "--to", machines[1-i].Org+"/app", "--udp", fmt.Sprint(echoPort))
	}
	made := time.Now()
	for i := range machines {
		if err := <-answered[i]; err != nil {
			t.Fatalf("from %s: %v", machines[i].Host.Name(), err)
		}
		took := at[i].Sub(made)
		t.Logf("from %s: the first answer came after %s", machines[i].Host.Name(), took.Round(time.Millisecond))
		if took > firstCrossed {
			t.Errorf("from %s: the first answer came after %s, want %s at most", machines[i].Host.Name(), took.Round(time.Millisecond), firstCrossed)
		}
	}
}

// firstCrossed leaves room for two more first words, at 0.7 and 2.1 s, and their answers.
const firstCrossed = 3500 * time.Millisecond
