// Package firewall puts a peers.Policy in force as one nftables table, `inet
// weft`, in the data plane's network namespace. Render is pure: it says which
// sets, chains and rules a policy is. Firewall compares that with what the kernel
// holds and sends the difference.
//
//	raw:     our links only, no IPv4, every machine with its own source; notrack
//	input:   neighbour discovery, DNS, echo, probes; nothing else reaches the host
//	forward: within one network; the rest is rejected
//
// Which networks and machines there are is decided elsewhere (package mesh), and
// grants between networks are not here yet. Tables of others are never touched.
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

// Firewall keeps one namespace's table. Its methods are for one goroutine at a
// time. It remembers nothing about the table: the kernel is asked each time.
type Firewall struct {
	plane *netns.Handle
	log   *slog.Logger
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
	k, err := f.open(ctx)
	if err != nil {
		return false, err
	}
	defer k.Close()

	d, err := k.difference(want)
	if err != nil || d.empty() {
		return false, err
	}
	if d.why == "" {
		if err = k.update(d); err == nil {
			f.log.Info("firewall: updated", "added", d.added(), "removed", d.removed())
			return true, verify(ctx, k, want)
		}
		// Somebody changed a set since we read it.
		d.why = err.Error()
	}
	if err := k.replace(want); err != nil {
		return false, fmt.Errorf("replace table inet %s: %w", tableName, err)
	}
	f.log.Info("firewall: replaced", "why", d.why)
	return true, verify(ctx, k, want)
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
func (f *Firewall) Close() error { return nil }

// open makes a connection for one exchange. One per exchange: after an error half
// a conversation may be left in the socket.
func (f *Firewall) open(ctx context.Context) (*kernel, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(timeout)
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
			return c.SetDeadline(deadline)
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
