// Package firewall puts a peers.Policy in force as one nftables table, `inet
// weft`, in the data plane's network namespace. Render is pure: it says which
// sets, chains and rules a policy is. Firewall compares that with what the kernel
// holds and sends the difference.
//
//	raw:     our links only, no IPv4, every machine with its own source; notrack
//	input:   neighbour discovery, DNS, echo, probes; nothing else reaches the host
//	forward: within one network, whatever the protocol; between networks what a grant
//	         lets begin, and its answers; the rest is rejected
//
// Which networks, machines and grants there are is decided elsewhere (package mesh).
// Tables of others are never touched.
package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/netns"
)

// tableName is the table's, in family inet.
const tableName = "weft"

// timeout bounds one exchange with the kernel whose caller has no deadline: a
// netlink call that hangs must not take the agent's loop with it.
const timeout = 30 * time.Second

// Firewall keeps one namespace's table. Its methods, but for Watch, are for one
// goroutine at a time. It remembers nothing about the table but the generation of the
// rules at which it was right: Set asks the kernel each time.
type Firewall struct {
	plane *netns.Handle
	log   *slog.Logger
	known generation    // at which the table was what we wanted
	asks  *netlink.Conn // for generations; nil: none yet

	refused []Refused // what complain has said
}

// New returns the firewall of a data plane. A nil plane is the namespace of the
// process. It checks that the kernel speaks nftables and lets us; it changes
// nothing. The handle stays the caller's, who closes it after the Firewall.
func New(plane *netns.Handle, log *slog.Logger) (*Firewall, error) {
	f := &Firewall{plane: plane, log: log}
	k, err := f.open(context.Background())
	if err != nil {
		return nil, err
	}
	defer k.Close()
	if _, err := k.table(); err != nil {
		return nil, err
	}
	return f, nil
}

// Set puts the policy in force and reports whether anything had to change. The
// zero Policy is valid: it refuses everything, and is what belongs in force
// before any link is up. If the table is as it should be nothing is written; if
// only elements of sets differ (a network or a machine came or went) only those
// are; else the whole table is replaced. Either way it is one transaction: at no
// moment is there no table, and after an error the former one is in force.
func (f *Firewall) Set(ctx context.Context, p peers.Policy) (changed bool, err error) {
	want, err := Render(p)
	if err != nil {
		return false, err
	}
	f.complain(want.Refused)
	changed, f.known, err = f.set(ctx, want)
	return changed, err
}

// set is Set, and returns the generation at which the table was right.
func (f *Firewall) set(ctx context.Context, want Table) (changed bool, at generation, err error) {
	k, err := f.open(ctx)
	if err != nil {
		return false, unknown, err
	}
	defer k.Close()
	// Asked before the table is read: what changes while it is read is found later.
	if at, err = f.generation(ctx); err != nil {
		return false, unknown, err
	}
	d, err := k.difference(want)
	if err != nil {
		return false, unknown, err
	}
	if d.empty() {
		if f.known == unknown {
			// An agent may have ended between the change and its flows.
			if _, err := f.forget(want.grants); err != nil {
				return false, unknown, err
			}
		}
		return false, at, nil
	}
	if err := f.put(k, d, want); err != nil {
		return false, unknown, err
	}
	if at, err = f.generation(ctx); err == nil {
		err = verify(ctx, k, want)
	}
	if err != nil {
		return true, unknown, err
	}
	return true, at, nil
}

// put sends the difference, or the whole table if it has to.
func (f *Firewall) put(k *kernel, d difference, want Table) error {
	if d.why == "" {
		err := k.update(d)
		if err == nil {
			f.log.Info("firewall: updated", "added", d.added(), "removed", d.removed())
			return f.endFlows(d, want.grants)
		}
		// Somebody changed a set since we read it.
		d.why = err.Error()
	}
	if err := k.replace(want); err != nil {
		return fmt.Errorf("replace table inet %s: %w", tableName, err)
	}
	f.log.Info("firewall: replaced", "why", d.why)
	return f.endFlows(d, want.grants)
}

// settle is how long the kernel may take to show what it has accepted.
const settle = 2 * time.Second

// verify asks the kernel whether it holds what it has accepted. While a hash set
// grows its elements move, and a list of them can miss some: so it asks again.
func verify(ctx context.Context, k *kernel, want Table) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		have, err := k.read()
		if err != nil {
			return err
		}
		d := compare(have, want)
		if d.empty() {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("table inet %s is not as it was set: %s", tableName, d)
		}
	}
}

// Remove takes the table away: what its links carry then is let through. It is
// for uninstalling. No table is not an error.
func (f *Firewall) Remove() error {
	k, err := f.open(context.Background())
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.remove(); err != nil {
		return fmt.Errorf("remove table inet %s: %w", tableName, err)
	}
	return nil
}

// Close releases what the Firewall holds. The table stays in force, so that
// isolation outlives the agent. It is idempotent.
func (f *Firewall) Close() error {
	if f.asks == nil {
		return nil
	}
	err := f.asks.Close()
	f.asks = nil
	return err
}

// open makes a connection for one exchange. One per exchange: after an error half
// a conversation may be left in the socket.
func (f *Firewall) open(ctx context.Context) (*kernel, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	options := []nftables.ConnOption{
		nftables.AsLasting(),
		nftables.WithSockOptions(func(c *netlink.Conn) error {
			// A batch is one message; the table of a large host is some megabytes.
			if err := c.SetReadBuffer(8 << 20); err != nil {
				return err
			}
			if err := c.SetWriteBuffer(16 << 20); err != nil {
				return err
			}
			return c.SetDeadline(deadlineOf(ctx))
		}),
	}
	if f.plane != nil {
		options = append(options, nftables.WithNetNSFd(f.plane.Fd()))
	}
	conn, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &kernel{conn}, nil
}

func deadlineOf(ctx context.Context) time.Time {
	if deadline, ok := ctx.Deadline(); ok {
		return deadline
	}
	return time.Now().Add(timeout)
}
