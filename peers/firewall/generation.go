package firewall

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers"
)

// generation counts the transactions that changed a namespace's rules. As long as the
// kernel's is the one that our own last transaction left, the table is what we made
// it, and nobody has to read it again.
type generation uint32

// unknown: the kernel's is never 0.
const unknown generation = 0

// next is the one after a transaction.
func (g generation) next() generation { return max(g+1, 1) }

// ErrMoved says that somebody else may have changed the rules: Set finds out.
var ErrMoved = errors.New("somebody else may have changed the rules")

// Change puts in force what differs between two policies: elements of sets, and
// nothing else. Both name only what came, went or changed, and, if grants changed, all
// of those. The cost is that of the difference, whatever the size of the table. If the
// table may not be what the last Set or Change left, nothing is done and the error
// wraps ErrMoved. After any error Set has to be called.
func (f *Firewall) Change(ctx context.Context, before, after peers.Policy) error {
	d, err := between(before, after)
	if err != nil || d.empty() {
		return err
	}
	if moved, err := f.Moved(ctx); err != nil || moved {
		return errors.Join(err, fmt.Errorf("change table inet %s: %w", tableName, ErrMoved))
	}
	was := f.known
	f.known = unknown
	k, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	if err := k.update(d); err != nil {
		return err
	}
	f.log.Info("firewall: updated", "added", d.added(), "removed", d.removed())
	if err := f.endFlows(d, d.grants); err != nil {
		return err
	}
	now, err := f.generation(ctx)
	if err != nil {
		return err
	}
	if now != was.next() {
		return fmt.Errorf("change table inet %s: %w", tableName, ErrMoved)
	}
	f.known = now
	return nil
}

// Moved reports whether the table may be another one than the last Set or Change
// left. It costs one message.
func (f *Firewall) Moved(ctx context.Context) (bool, error) {
	if f.known == unknown {
		return true, nil
	}
	now, err := f.generation(ctx)
	return now != f.known, err
}

// between is the difference of two policies as one of elements.
func between(before, after peers.Policy) (d difference, err error) {
	had, err := Render(before)
	if err != nil {
		return d, err
	}
	wanted, err := Render(after)
	if err != nil {
		return d, err
	}
	held := make(map[string][]Element, len(had.Sets))
	for _, s := range had.Sets {
		held[s.Name] = s.Elements
	}
	for _, s := range wanted.Sets {
		plus, minus := subtract(s.Elements, held[s.Name]), subtract(held[s.Name], s.Elements)
		if len(plus)+len(minus) > 0 {
			d.deltas = append(d.deltas, delta{s, plus, minus})
		}
	}
	d.grants = wanted.grants
	return d, nil
}

// newRules is the kernel's word about a transaction.
const (
	askRules = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	newRules = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
)

// generation asks for the kernel's.
func (f *Firewall) generation(ctx context.Context) (generation, error) {
	if f.asks == nil {
		conn, err := f.dial()
		if err != nil {
			return unknown, fmt.Errorf("open nftables: %w", err)
		}
		f.asks = conn
	}
	g, err := f.ask(ctx)
	if err != nil {
		// Half a conversation may be left in the socket.
		f.asks.Close()
		f.asks = nil
		return unknown, fmt.Errorf("ask for the generation of the rules: %w", err)
	}
	return g, nil
}

func (f *Firewall) ask(ctx context.Context) (generation, error) {
	if err := f.asks.SetDeadline(deadlineOf(ctx)); err != nil {
		return unknown, err
	}
	got, err := f.asks.Execute(netlink.Message{
		Header: netlink.Header{Type: askRules, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return unknown, err
	}
	for _, m := range got {
		if g, ok := generationIn(m); ok {
			return g, nil
		}
	}
	return unknown, errors.New("the kernel does not say")
}

// generationIn reads a message that tells of a generation.
func generationIn(m netlink.Message) (generation, bool) {
	if m.Header.Type != newRules || len(m.Data) < 4 {
		return unknown, false
	}
	attributes, err := netlink.UnmarshalAttributes(m.Data[4:])
	if err != nil {
		return unknown, false
	}
	for _, a := range attributes {
		if a.Type == unix.NFTA_GEN_ID && len(a.Data) == 4 {
			return generation(bigEndian(a.Data)), true
		}
	}
	return unknown, false
}

func bigEndian(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func (f *Firewall) dial() (*netlink.Conn, error) {
	c := &netlink.Config{}
	if f.plane != nil {
		c.NetNS = f.plane.Fd()
	}
	return netlink.Dial(unix.NETLINK_NETFILTER, c)
}

// Watch calls changed whenever somebody, we too, changed rules in the namespace, until
// ctx ends.
func (f *Firewall) Watch(ctx context.Context, changed func()) error {
	conn, err := f.dial()
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	for {
		got, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // more than the socket holds: something has changed
			changed()
			continue
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		}
		for _, m := range got {
			if _, ok := generationIn(m); ok {
				changed()
			}
		}
	}
}
