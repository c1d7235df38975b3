package store

import (
	"context"
	"net/netip"
	"slices"
)

// SetEndpoints stores where a host's WireGuard is reached now, if its record says
// otherwise: its underlay address is another one. fixed says that its operator gave
// it. At most one change of a host is stored in a minute, because every host that
// shares an org with it is told; rev is 0 if nothing was.
func (s *Store) SetEndpoints(ctx context.Context, actor, host string, to []netip.AddrPort, fixed bool) (rev int64, err error) {
	was, ok := s.State().Hosts.Get(host)
	if ok && slices.Equal(was.Endpoints, to) && was.Fixed == fixed || !s.renumbered.due(host, s.now()) {
		return 0, nil
	}
	_, rev, err = s.SetHost(ctx, actor, host, HostChange{Endpoints: &to, Fixed: &fixed})
	if err != nil {
		s.renumbered.forget(host)
	}
	return rev, err
}
