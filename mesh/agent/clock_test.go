package agent

import (
	"context"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// A certificate that looks young here and is of no use to the controller is renewed
// when the controller refuses it: one of the two clocks was wrong. The new one may end
// before the old one.
func TestRenewalWhenRefused(t *testing.T) {
	c := newControl(t)
	m, err := joinAs(t.Context(), t, c.join(t))
	if err != nil {
		t.Fatal(err)
	}
	saved, err := m.identity.Load()
	if err != nil {
		t.Fatal(err)
	}
	public := m.certificate.Load().Leaf.PublicKey
	if saved.Certificate, err = c.ca.SignNode(public, saved.Node, c.lifetime, time.Now().Add(72*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := m.take(saved); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.renew(ctx) }()
	defer func() { cancel(); <-done }()
	if s, err := m.open(ctx, c.url(), mesh.Revision{}); err == nil {
		s.Close()
		t.Fatal("the controller took a certificate of another day: this test shows nothing")
	}
	eventually(t, 5*time.Second, "the certificate to be taken", func() bool {
		s, err := m.open(ctx, c.url(), mesh.Revision{})
		if err == nil {
			s.Close()
		}
		return err == nil
	})
}
