package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weftmesh/weft/peers"
)

// text is what a difference sends, a line for each element.
func (d difference) text() (out []string) {
	for _, x := range d.deltas {
		for _, e := range x.minus {
			out = append(out, fmt.Sprintf("%s - %s", x.set.Name, x.set.Kind.text(string(e))))
		}
		for _, e := range x.plus {
			out = append(out, fmt.Sprintf("%s + %s", x.set.Name, x.set.Kind.text(string(e))))
		}
	}
	return out
}

// base is a policy that names nothing that comes or goes.
func base() peers.Policy {
	p := testPolicy()
	p.Networks, p.Attachments, p.Grants = nil, nil, nil
	return p
}

// What is sent for a change, to the element.
func TestBetween(t *testing.T) {
	t.Parallel()
	network := func(n int) peers.Network {
		return peers.Network{
			Prefix: netip.PrefixFrom(addr(fmt.Sprintf("%d::", n)), 64), Host: addr(fmt.Sprintf("%d:100:5:0:1", n)), Resolver: addr(fmt.Sprintf("%d::3", n)),
		}
	}
	machine := func(link, at string) peers.Attachment { return peers.Attachment{Link: link, Endpoint: endpoint(at)} }
	of := func(networks []peers.Network, in []peers.Attachment, grants ...peers.Grant) peers.Policy {
		p := base()
		p.Networks, p.Attachments, p.Grants = networks, in, grants
		return p
	}
	one, two := []peers.Network{network(1)}, []peers.Network{network(1), network(2)}
	moved := network(1)
	moved.Host = addr("1:100:6:0:1")
	a, b := machine("m-a", "1:100:5:1:2"), machine("m-b", "1:100:5:2:2")
	web := grant("1::/64", "2:100:5:3:0/112", tcp, 80, 80)
	tests := []struct {
		name          string
		before, after peers.Policy
		want          []string
	}{
		{"nothing", base(), base(), nil},
		{"the same", of(two, []peers.Attachment{a}, web), of(two, []peers.Attachment{a}, web), nil},
		{"the same in another order, and twice", of(two, []peers.Attachment{a, b}), of([]peers.Network{network(2), network(1), network(2)}, []peers.Attachment{b, a, b}), nil},
		{"a machine comes", base(), of(nil, []peers.Attachment{a}), []string{
			"links + m-a", "sources + m-a . fd12:3456:789a:1:100:5:1:0/112"}},
		{"a machine goes", of(nil, []peers.Attachment{a}), base(), []string{
			"links - m-a", "sources - m-a . fd12:3456:789a:1:100:5:1:0/112"}},
		{"a link is another machine's", of(nil, []peers.Attachment{a}), of(nil, []peers.Attachment{machine("m-a", "1:100:5:2:2")}), []string{
			"sources - m-a . fd12:3456:789a:1:100:5:1:0/112", "sources + m-a . fd12:3456:789a:1:100:5:2:0/112"}},
		{"one machine instead of another", of(one, []peers.Attachment{a}), of(one, []peers.Attachment{b}), []string{
			"links - m-a", "links + m-b",
			"sources - m-a . fd12:3456:789a:1:100:5:1:0/112", "sources + m-b . fd12:3456:789a:1:100:5:2:0/112"}},
		{"a network comes", of(one, nil), of(two, nil), []string{
			"networks + fd12:3456:789a:2::/64 -> fd12:3456:789a:2::/64", "hosts + fd12:3456:789a:2:100:5:0:1", "resolvers + fd12:3456:789a:2::3"}},
		{"the host has another address in a network", of(one, nil), of([]peers.Network{moved}, nil), []string{
			"hosts - fd12:3456:789a:1:100:5:0:1", "hosts + fd12:3456:789a:1:100:6:0:1"}},
		{"a grant comes", base(), of(nil, nil, web), []string{
			"granted + fd12:3456:789a:1::/64 -> fd12:3456:789a:2::/64", "granted + fd12:3456:789a:2::/64 -> fd12:3456:789a:1::/64",
			"ends + fd12:3456:789a:1::/64 -> fd12:3456:789a:1::/64", "ends + fd12:3456:789a:2::/64 -> fd12:3456:789a:2::/64",
			"wide + fd12:3456:789a:1::/64 . fd12:3456:789a:2:100:5:3:0/112 . tcp . 80-80"}},
		{"another port between the same networks", of(nil, nil, web), of(nil, nil, web, grant("1:100:5:1:0/112", "2:100:5:3:0/112", tcp, 90, 91)), []string{
			"narrow + fd12:3456:789a:1:100:5:1:0/112 . fd12:3456:789a:2:100:5:3:0/112 . tcp . 90-91"}},
		{"a grant that another holds", of(nil, nil, web), of(nil, nil, web, grant("1:100:5:1:0/112", "2:100:5:3:0/112", tcp, 80, 80)), nil},
		{"a grant grows", of(nil, nil, web), of(nil, nil, grant("1::/64", "2:100:5:3:0/112", tcp, 80, 81)), []string{
			"wide - fd12:3456:789a:1::/64 . fd12:3456:789a:2:100:5:3:0/112 . tcp . 80-80",
			"wide + fd12:3456:789a:1::/64 . fd12:3456:789a:2:100:5:3:0/112 . tcp . 80-81"}},
		{"one that cannot be in force", base(), of(nil, nil, grant("1::/64", "1:100:5:3:0/112", tcp, 80, 80)), nil},
	}
	for _, tt := range tests {
		d, err := between(tt.before, tt.after)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if diff := cmp.Diff(tt.want, d.text()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if (len(tt.want) == 0) != d.empty() {
			t.Errorf("%s: empty is %v", tt.name, d.empty())
		}
		loses := slices.ContainsFunc(tt.want, func(s string) bool { return strings.HasPrefix(s, "wide -") || strings.HasPrefix(s, "narrow -") })
		if d.revokes() != loses {
			t.Errorf("%s: it revokes: %v", tt.name, d.revokes())
		}
	}
}

func TestBetweenRefuses(t *testing.T) {
	t.Parallel()
	bad := base()
	bad.Attachments = []peers.Attachment{{Link: "lo", Endpoint: endpoint("1:100:5:1:2")}}
	for name, ends := range map[string][2]peers.Policy{"before": {bad, base()}, "after": {base(), bad}} {
		if _, err := between(ends[0], ends[1]); err == nil || !strings.Contains(err.Error(), "a link of its own") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// differing are the two policies less what they have in common, which is how Change
// is called; of grants all or none.
func differing(p, q peers.Policy) (before, after peers.Policy) {
	before, after = p, q
	before.Networks, after.Networks = rest(p.Networks, q.Networks), rest(q.Networks, p.Networks)
	before.Attachments, after.Attachments = rest(p.Attachments, q.Attachments), rest(q.Attachments, p.Attachments)
	if slices.Equal(p.Grants, q.Grants) {
		before.Grants, after.Grants = nil, nil
	}
	return before, after
}

func rest[T comparable](of, without []T) (out []T) {
	for _, x := range of {
		if !slices.Contains(without, x) {
			out = append(out, x)
		}
	}
	return out
}

// done is a table after a difference; strict: the kernel refuses to take out what is
// not there.
func done(t *rapid.T, have Table, d difference) Table {
	for _, x := range d.deltas {
		i := slices.IndexFunc(have.Sets, func(s Set) bool { return s.Name == x.set.Name })
		s := have.Sets[i]
		for _, e := range x.minus {
			if !slices.Contains(s.Elements, e) {
				t.Fatalf("set %s: takes out %s, which is not there", s.Name, s.Kind.text(string(e)))
			}
		}
		for _, e := range x.plus {
			if slices.Contains(s.Elements, e) {
				t.Fatalf("set %s: puts in %s, which is there", s.Name, s.Kind.text(string(e)))
			}
		}
		s.Elements = sortElements(append(subtract(s.Elements, x.minus), x.plus...))
		have.Sets[i] = s
	}
	return have
}

// A change of what differs leads from the one policy's table to the other's, whatever
// else is in it; it sends no element that both have, and for the same policy nothing.
func TestChangeLeadsThere(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p, q := policies().Draw(t, "have"), policies().Draw(t, "want")
		p.ProbePort = q.ProbePort // rules are no business of Change
		p.Grants, q.Grants = grants().Draw(t, "has"), grants().Draw(t, "wants")
		if rapid.Bool().Draw(t, "same grants") {
			q.Grants = p.Grants
		}
		d := must(between(differing(p, q)))
		if diff := cmp.Diff(must(Render(q)).String(), done(t, must(Render(p)), d).String()); diff != "" {
			t.Fatalf("%s\nafter it (-want +got):\n%s", strings.Join(d.text(), "\n"), diff)
		}
		for _, same := range []func() (difference, error){
			func() (difference, error) { return between(q, q) },
			func() (difference, error) { return between(differing(q, q)) },
		} {
			if d := must(same()); !d.empty() {
				t.Fatalf("for the same policy: %s", strings.Join(d.text(), "\n"))
			}
		}
	})
}

// Without a table that is known for its own, Change does nothing but for nothing.
func TestChangeWantsAKnownTable(t *testing.T) {
	t.Parallel()
	f := &Firewall{log: slog.New(slog.DiscardHandler)}
	after := base()
	after.Attachments = []peers.Attachment{{Link: "m-a", Endpoint: endpoint("1:100:5:1:2")}}
	if err := f.Change(context.Background(), base(), after); !errors.Is(err, ErrMoved) {
		t.Errorf("a change of a table that was never set: %v, want %v", err, ErrMoved)
	}
	if err := f.Change(context.Background(), after, after); err != nil {
		t.Errorf("no change: %v", err)
	}
	if next := generation(1<<32 - 1).next(); next != 1 {
		t.Errorf("after the last generation comes %d, want 1", next)
	}
}
