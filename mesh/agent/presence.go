package agent

import (
	"maps"
	"time"

	"github.com/weftmesh/weft/mesh"
)

// presence follows which hosts the controllers hold a stream of. A host is dead
// when its probes fail and its presence has been gone for long. Presence alone
// never takes anything away: when over a fifth of the hosts, and at least three,
// vanish within the time of one lease, the control plane has failed, not they.
type presence struct {
	lease time.Duration
	hold  bool // false: the rule of the fifth is off

	gone map[string]time.Time // since when
	held map[string]bool      // gone in such a wave: not counted until they are back
}

// update takes the hosts of a view that the controllers stand by at now.
func (p *presence) update(hosts []mesh.ViewHost, now time.Time) {
	gone, held := map[string]time.Time{}, map[string]bool{}
	for _, h := range hosts {
		switch since, was := p.gone[h.Name]; {
		case h.Present: // it is there
		case was:
			gone[h.Name], held[h.Name] = since, p.held[h.Name]
		default:
			gone[h.Name] = now
		}
	}
	vanished := 0
	for _, since := range gone {
		if now.Sub(since) < p.lease {
			vanished++
		}
	}
	if p.hold && vanished >= 3 && 5*vanished > len(hosts) {
		for name, since := range gone {
			if now.Sub(since) < p.lease {
				held[name] = true
			}
		}
	}
	p.gone, p.held = gone, held
}

// goneFor is how long a host's presence has been gone in earnest; 0: it is there,
// unknown or held.
func (p *presence) goneFor(host string, now time.Time) time.Duration {
	since, gone := p.gone[host]
	if !gone || p.held[host] {
		return 0
	}
	return now.Sub(since)
}

// holding returns how many hosts are held.
func (p *presence) holding() int {
	n := 0
	for _, h := range p.held {
		if h {
			n++
		}
	}
	return n
}

// clone returns a copy that shares nothing.
func (p *presence) clone() *presence {
	c := *p
	c.gone, c.held = maps.Clone(p.gone), maps.Clone(p.held)
	return &c
}
