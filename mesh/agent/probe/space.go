package probe

import (
	"sync"
	"time"

	"github.com/hashicorp/serf/coordinate"

	"github.com/weftmesh/weft/mesh"
)

const (
	// sureEnough is the error of a coordinate up to which its distances are believed.
	// One that knows nothing has 1.5.
	sureEnough = 0.75
	// leastObserved is how many round trips must have gone into the own coordinate.
	leastObserved = 10
)

// Space is this node's place among round trips: network coordinates whose distance
// is about the round trip between two nodes, also of those that never spoke to each
// other (Vivaldi: Dabek, Cox, Kaashoek, Morris, 2004; as in hashicorp/serf). Its
// methods may be called by any goroutine.
type Space struct {
	mu       sync.Mutex // guards what follows
	client   *coordinate.Client
	observed int
}

// NewSpace returns the space of a node that knows nothing yet.
func NewSpace() (*Space, error) {
	client, err := coordinate.NewClient(coordinate.DefaultConfig())
	if err != nil {
		return nil, err
	}
	return &Space{client: client}, nil
}

// Restore takes up the coordinate that the node had before it was restarted, unless
// it has observed something since, or had not known where it was.
func (s *Space) Restore(c mesh.Coordinate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.observed == 0 && c.Validate() == nil && Believable(c) && s.client.SetCoordinate(toSerf(c)) == nil {
		s.observed = leastObserved
	}
}

// Observe moves the own coordinate by what was measured to a peer: rtt, and the
// coordinate that the peer had. What cannot be is ignored.
func (s *Space) Observe(peer string, at mesh.Coordinate, rtt time.Duration) {
	if rtt <= 0 || at.Validate() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.client.Update(peer, toSerf(at), rtt); err == nil {
		s.observed++
	}
}

// Forget drops what is kept of a peer that is gone.
func (s *Space) Forget(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.ForgetNode(peer)
}

// Own returns the own coordinate.
func (s *Space) Own() mesh.Coordinate {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.client.GetCoordinate()
	return mesh.Coordinate{Vec: c.Vec, Error: c.Error, Adjustment: c.Adjustment, Height: c.Height}
}

// Estimate is the round trip to a peer with this coordinate; ok is false if one of
// the two coordinates is not to be believed yet.
func (s *Space) Estimate(peer mesh.Coordinate) (rtt time.Duration, ok bool) {
	if peer.Validate() != nil || !Believable(peer) {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.placedLocked() {
		return 0, false
	}
	return max(s.client.DistanceTo(toSerf(peer)), 1), true
}

// Placed reports whether the own coordinate is to be believed.
func (s *Space) Placed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.placedLocked()
}

func (s *Space) placedLocked() bool {
	return s.observed >= leastObserved && s.client.GetCoordinate().Error <= sureEnough
}

// Believable reports whether distances to a coordinate are to be believed.
func Believable(c mesh.Coordinate) bool { return c.Error <= sureEnough }

func toSerf(c mesh.Coordinate) *coordinate.Coordinate {
	return &coordinate.Coordinate{Vec: c.Vec, Error: c.Error, Adjustment: c.Adjustment, Height: c.Height}
}
