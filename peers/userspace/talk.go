package userspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/weftmesh/weft/peers"
)

// talker speaks to one device by its socket, wherever the device is.
type talker struct {
	name, path string
	// ready tells why nothing can be asked of the device, if so.
	ready func(context.Context) error
	alive context.Context // nothing waits longer than this; nil: for ever
}

// Config implements peers.Device.
func (t *talker) Config(ctx context.Context) (peers.Config, error) {
	c, _, err := t.get(ctx)
	return c, err
}

// Stats implements peers.Device.
func (t *talker) Stats(ctx context.Context) ([]peers.Stats, error) {
	_, stats, err := t.get(ctx)
	return stats, err
}

func (t *talker) get(ctx context.Context) (config peers.Config, stats []peers.Stats, err error) {
	err = t.talk(ctx, []byte("get=1\n\n"), func(answer io.Reader) (err error) {
		config, stats, err = Parse(answer)
		return err
	})
	if err != nil {
		return peers.Config{}, nil, fmt.Errorf("ask %s: %w", t.name, err)
	}
	return config, stats, nil
}

// Apply implements peers.Device. A change that the device refuses does not keep the
// later ones from being made: a port that is taken must not stop a revocation. The
// error names each one that was refused.
func (t *talker) Apply(ctx context.Context, changes []peers.Change) error {
	if err := t.ready(ctx); err != nil {
		return fmt.Errorf("configure %s: %w", t.name, err)
	}
	var refused []error
	for batch := range batches(changes) {
		err := t.set(ctx, batch)
		var no syscall.Errno
		if errors.As(err, &no) {
			err = t.oneByOne(ctx, batch, &refused)
		}
		if err != nil {
			return errors.Join(append(refused, fmt.Errorf("configure %s: %w", t.name, err))...)
		}
	}
	return errors.Join(refused...)
}

// oneByOne finds out which changes of a batch the device refuses: it only says that
// it refused one, and left the rest. Each may be made twice.
func (t *talker) oneByOne(ctx context.Context, batch []peers.Change, refused *[]error) error {
	for i, c := range batch {
		err := t.set(ctx, batch[i:i+1])
		var no syscall.Errno
		if errors.As(err, &no) {
			*refused = append(*refused, t.refusal(c, no))
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (t *talker) refusal(c peers.Change, no syscall.Errno) error {
	switch {
	case c.Op == peers.SetDevice && c.Device.ListenPort != 0:
		return fmt.Errorf("listen on UDP port %d for %s: %w", c.Device.ListenPort, t.name, no)
	case c.Op == peers.SetDevice:
		return fmt.Errorf("set the private key of %s: %w", t.name, no)
	}
	return fmt.Errorf("%s peer %s of %s: %w", c.Op, c.Peer.Key, t.name, no)
}

func (t *talker) set(ctx context.Context, batch []peers.Change) error {
	text := append([]byte("set=1\n"), Encode(batch)...)
	return t.talk(ctx, append(text, '\n'), func(answer io.Reader) error {
		_, _, err := Parse(answer)
		return err
	})
}

// talk sends one operation and reads the answer. A connection serves one: when an
// operation fails, wireguard-go does not find the start of the next.
func (t *talker) talk(ctx context.Context, request []byte, read func(io.Reader) error) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	if t.alive != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(t.alive, cancel)()
	}
	conn, err := dial(ctx, t.path)
	if err == nil {
		defer conn.Close()
		if _, err = conn.Write(request); err == nil {
			err = read(conn)
		}
	}
	if err != nil {
		// Why the connection ended says more than that it did.
		if why := t.ready(ctx); why != nil {
			return why
		}
	}
	return err
}
