package e2e

import (
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/churn"
)

// A router that forgets its connections cuts a laptop off from its controller, which
// the laptop notices after some seconds of silence. What is granted and revoked
// meanwhile reaches it then, and a quiet moment is not one before that: it is waited
// for, and must hold from then on.
func TestChurnLate(t *testing.T) {
	need(t, "ip", "nft", "wg")
	t.Parallel()
	c := newChurned(t, churnSize{hosts: []string{"fra1", "ams1"}, controllers: 1, laptops: []string{"acme/laptop"},
		machines: []string{"acme/web-1 fra1", "initech/web-1 ams1"}}, churnSeed(t, 0))
	if _, err := c.quiet(t.Context()); err != nil {
		c.fail(err)
	}
	grant := churn.Grant{From: "initech", To: "acme", Port: churn.Port}
	for _, kind := range []churn.Kind{churn.CreateGrant, churn.RemoveGrant} {
		for _, op := range []churn.Operation{{Kind: churn.RouterForgets, On: "acme/laptop"}, {Kind: kind, Grant: grant}} {
			if err := c.do(t.Context(), op); err != nil {
				c.fail(err)
			}
		}
		took, err := c.quiet(t.Context())
		if err != nil {
			c.fail(err)
		}
		t.Logf("%s, behind a router that has forgotten everything: in force after %s", kind, took.Round(time.Millisecond))
		if took > knownWithin {
			t.Errorf("%s: in force after %s, want within %s", kind, took, knownWithin)
		}
	}
}

// knownWithin is the silence after which a laptop looks for its controllers, and as
// much again on a busy machine.
const knownWithin = 10 * time.Second
