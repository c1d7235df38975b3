package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Defragmentation stops the server for a moment, so it must be worth it: at
// least this much, and half of the file, is free inside.
const defragFree = 64 << 20

// keepRevisions is how much history is left when space is short: enough for a
// mirror that is a moment behind.
const keepRevisions = 1000

// Size says how full the server is, in bytes.
type Size struct {
	File  int64 // the database file
	InUse int64 // what is used in it; the rest is free inside until defragmentation
	Quota int64 // File at which writes are refused
}

// tight: writes will soon be refused.
func (s Size) tight() bool { return s.File > s.Quota/5*4 }

// roomy: writes can be let through again.
func (s Size) roomy() bool { return s.File <= s.Quota/10*9 }

// worth reports whether the file would become much smaller by defragmentation.
// While space is short, a tenth is much.
func (s Size) worth(short bool) bool {
	free := s.File - s.InUse
	return free >= defragFree && free >= s.File/2 || short && free >= s.File/10
}

// Size returns how full the server is.
func (s *Server) Size() Size {
	b := s.etcd.Server.Backend()
	return Size{File: b.Size(), InUse: b.SizeInUse(), Quota: s.config.QuotaBytes}
}

// Alarms returns the alarms that are raised, in plain words; empty means none.
// NOSPACE means that nothing can be written until space is made.
func (s *Server) Alarms() []string {
	var out []string
	for _, a := range s.etcd.Server.Alarms() {
		switch a.Alarm {
		case pb.AlarmType_NOSPACE:
			size := s.Size()
			out = append(out, fmt.Sprintf("NOSPACE: the database has %d of %d bytes, changes are refused; start the controller again with a larger --etcd-quota", size.File, size.Quota))
		case pb.AlarmType_CORRUPT:
			out = append(out, "CORRUPT: the data does not match its checksum, everything is refused; restore a backup to a new data directory")
		default:
			out = append(out, a.Alarm.String())
		}
	}
	if err := s.disk.refusal(); err != nil {
		out = append(out, "NOSPACE: "+strings.TrimPrefix(err.Error(), rpctypes.ErrNoSpace.Error()+": ")+"; changes are refused")
	}
	return out
}

// full returns the alarm that makes etcd refuse writes, or nil.
func (s *Server) full() *clientv3.AlarmMember {
	for _, a := range s.etcd.Server.Alarms() {
		if a.Alarm == pb.AlarmType_NOSPACE {
			return (*clientv3.AlarmMember)(a)
		}
	}
	return nil
}

// Defragment gives the free space inside the database file back to the file
// system. Requests wait meanwhile (about a second per GB).
func (s *Server) Defragment() error {
	// Not through the client: its in-process Defragment has no health notifier
	// to call and panics (etcd 3.7.3).
	before := s.Size()
	if err := s.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment etcd: %w", err)
	}
	s.log.Info("defragmented etcd", "before", before.File, "after", s.Size().File)
	return nil
}

// keepUp looks at size and alarms, at once and then now and then, until ctx ends.
func (s *Server) keepUp(ctx context.Context) {
	tick := time.NewTicker(s.config.UpkeepEvery)
	defer tick.Stop()
	filling, said := false, map[string]bool{} // what was logged
	for {
		if err := s.makeRoom(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("upkeep of etcd", "err", err)
		}
		s.sayAlarms(said)
		size := s.Size()
		if full := size.InUse > size.Quota/5*4; full != filling {
			if filling = full; filling {
				s.log.Warn("etcd is over four fifths of its quota; before it is full, start again with a larger --etcd-quota", "in_use", size.InUse, "quota", size.Quota)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sayAlarms logs each alarm once.
func (s *Server) sayAlarms(said map[string]bool) {
	now := map[string]bool{}
	for _, alarm := range s.Alarms() {
		kind, _, _ := strings.Cut(alarm, ":")
		if now[kind] = true; !said[kind] {
			s.log.Error("etcd raises an alarm", "alarm", alarm)
		}
	}
	clear(said)
	maps.Copy(said, now)
}

// makeRoom drops history and defragments when that is worth it or writes are being
// refused, and lets writes through if it helped, or if the quota has been raised.
func (s *Server) makeRoom(ctx context.Context) error {
	full := s.full()
	size := s.Size()
	short := full != nil && !size.roomy() || size.tight()
	if short {
		if err := s.forget(ctx, keepRevisions); err != nil {
			return err
		}
	}
	if s.Size().worth(short) && s.fits() {
		if err := s.Defragment(); err != nil {
			return err
		}
	}
	if full == nil {
		return nil
	}
	if size = s.Size(); size.File > size.Quota/2 {
		// The history that was left may be what fills it.
		if err := s.forget(ctx, 0); err != nil {
			return err
		}
		if s.Size().worth(true) && s.fits() {
			if err := s.Defragment(); err != nil {
				return err
			}
		}
	}
	if size = s.Size(); !size.roomy() {
		return nil
	}
	if _, err := s.client.AlarmDisarm(ctx, full); err != nil {
		return fmt.Errorf("disarm NOSPACE: %w", err)
	}
	s.log.Info("etcd has space again: changes are taken", "size", size.File, "quota", size.Quota)
	return nil
}

// fits reports whether the disk has space for the copy that defragmentation makes.
func (s *Server) fits() bool {
	free, err := freeSpace(s.disk.dir)
	return err == nil && free > s.Size().InUse+diskReserve
}

// forget drops all history but the last revisions. A mirror that is further behind
// lists anew.
func (s *Server) forget(ctx context.Context, keep int64) error {
	status, err := s.client.Get(ctx, "/", clientv3.WithCountOnly(), clientv3.WithSerializable())
	if err != nil {
		return fmt.Errorf("read the revision: %w", err)
	}
	rev := status.Header.Revision - keep
	if rev <= 0 {
		return nil
	}
	_, err = s.client.Compact(ctx, rev, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact: %w", err)
	}
	// The pages that became free count as free from the second commit on.
	for range 2 {
		s.etcd.Server.Backend().ForceCommit()
	}
	return nil
}
