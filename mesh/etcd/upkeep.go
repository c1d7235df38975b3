package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Defragmentation stops the server for a moment, so it must be worth it: at
// least this much, and half of the file, is free inside.
const defragFree = 64 << 20

// Size says how full the server is, in bytes.
type Size struct {
	File  int64 // the database file
	InUse int64 // what is used in it; the rest is free inside until defragmentation
	Quota int64 // File at which writes are refused
}

// Size returns how full the server is.
func (s *Server) Size() Size {
	b := s.etcd.Server.Backend()
	return Size{File: b.Size(), InUse: b.SizeInUse(), Quota: s.config.QuotaBytes}
}

// Alarms returns the alarms that are raised, in plain words; empty means none.
// NOSPACE means that nothing can be written until space is made.
func (s *Server) Alarms(ctx context.Context) ([]string, error) {
	raised, err := s.client.AlarmList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd alarms: %w", err)
	}
	var out []string
	for _, a := range raised.Alarms {
		switch a.Alarm {
		case pb.AlarmType_NOSPACE:
			size := s.Size()
			out = append(out, fmt.Sprintf("NOSPACE: the database has %d of %d bytes, nothing can be written; raise the quota and start again", size.File, size.Quota))
		case pb.AlarmType_CORRUPT:
			out = append(out, "CORRUPT: the data does not match its checksum; restore a backup")
		default:
			out = append(out, a.Alarm.String())
		}
	}
	return out, nil
}

// Defragment gives the free space inside the database file back to the file
// system. Requests wait meanwhile (about a second per GB).
func (s *Server) Defragment() error {
	// Not through the client: its in-process Defragment has no health notifier
	// to call and panics (etcd 3.7.3).
	if err := s.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment etcd: %w", err)
	}
	return nil
}

// keepUp looks at size and alarms until ctx ends.
func (s *Server) keepUp(ctx context.Context) {
	tick := time.NewTicker(s.config.UpkeepEvery)
	defer tick.Stop()
	warned := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.makeRoom(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("upkeep of etcd", "err", err)
		}
		size := s.Size()
		full := size.InUse > size.Quota/5*4
		if full && !warned {
			s.log.Warn("etcd is over four fifths of its quota; raise the quota", "in_use", size.InUse, "quota", size.Quota)
		}
		warned = full
	}
}

// makeRoom defragments when that is worth it or writes are being refused, and
// lets writes through again if it helped.
func (s *Server) makeRoom(ctx context.Context) error {
	raised, err := s.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("list alarms: %w", err)
	}
	var full *clientv3.AlarmMember
	for _, a := range raised.Alarms {
		if a.Alarm == pb.AlarmType_NOSPACE {
			full = (*clientv3.AlarmMember)(a)
		}
	}
	size := s.Size()
	free := size.File - size.InUse
	if full == nil && (free < defragFree || free < size.File/2) {
		return nil
	}
	if full != nil {
		if err := s.forget(ctx); err != nil {
			return err
		}
	}
	if err := s.Defragment(); err != nil {
		return err
	}
	now := s.Size()
	s.log.Info("defragmented etcd", "before", size.File, "after", now.File)
	if full == nil || now.File > size.Quota/10*9 {
		return nil
	}
	if _, err := s.client.AlarmDisarm(ctx, full); err != nil {
		return fmt.Errorf("disarm NOSPACE: %w", err)
	}
	s.log.Info("etcd has space again", "size", now.File, "quota", now.Quota)
	return nil
}

// forget drops all history but the last thousand revisions. A mirror that is
// further behind lists anew.
func (s *Server) forget(ctx context.Context) error {
	status, err := s.client.Get(ctx, "/", clientv3.WithCountOnly(), clientv3.WithSerializable())
	if err != nil {
		return fmt.Errorf("read the revision: %w", err)
	}
	rev := status.Header.Revision - 1000
	if rev <= 0 {
		return nil
	}
	_, err = s.client.Compact(ctx, rev, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact: %w", err)
	}
	return nil
}
