package agent

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/agent/local"
)

func message(t testing.TB, m icmp.Message) []byte {
	t.Helper()
	b, err := m.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// quoted is the start of our echo request as an ICMPv6 error quotes it.
func quoted(to netip.Addr, id int) []byte {
	b := make([]byte, 48)
	copy(b[24:40], to.AsSlice())
	b[40], b[44], b[45] = 128, byte(id>>8), byte(id)
	return b
}

func TestEchoed(t *testing.T) {
	to, id, seq := addr("fd00::1"), 0x1234, 1
	echo := func(kind ipv6.ICMPType, id, seq int) []byte {
		return message(t, icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: seq}})
	}
	failed := func(code int, to netip.Addr, id int) []byte {
		return message(t, icmp.Message{Type: ipv6.ICMPTypeDestinationUnreachable, Code: code, Body: &icmp.DstUnreach{Data: quoted(to, id)}})
	}
	for _, tt := range []struct {
		name string
		b    []byte
		done bool
		err  string
	}{
		{"our reply", echo(ipv6.ICMPTypeEchoReply, id, seq), true, ""},
		{"our own request", echo(ipv6.ICMPTypeEchoRequest, id, seq), false, ""},
		{"another's reply", echo(ipv6.ICMPTypeEchoReply, 7, seq), false, ""},
		{"rejected", failed(1, to, id), true, "not allowed: it is of another org, and no grant lets an echo through"},
		{"no route", failed(0, to, id), true, "no route: nobody in the mesh has this address now"},
		{"an error about another's", failed(0, addr("fd00::2"), id), false, ""},
		{"an error about another echo of ours", failed(0, to, 9), false, ""},
		{"nothing", nil, false, ""},
		{"rubbish", []byte{1, 2, 3}, false, ""},
	} {
		done, err := echoed(tt.b, id, seq, to)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if done != tt.done || text != tt.err {
			t.Errorf("%s: %v %q, want %v %q", tt.name, done, text, tt.done, tt.err)
		}
	}
}

// FuzzEchoed: whatever arrives, no panic, and no error without being about us.
func FuzzEchoed(f *testing.F) {
	to := addr("fd00::1")
	f.Add(message(f, icmp.Message{Type: ipv6.ICMPTypeDestinationUnreachable, Body: &icmp.DstUnreach{Data: quoted(to, 1)}}))
	f.Add([]byte{3, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if done, err := echoed(b, 1, 1, to); err != nil && !done {
			t.Fatal("an error that is not the end")
		}
	})
}

func TestOrgAddress(t *testing.T) {
	v := sampleView(t)
	own, resolver, err := orgAddress(v, "acme")
	if err != nil || own != addr("fd12:3456:789a:1:8100:1:0:1") || resolver != addr("fd12:3456:789a:1::3") {
		t.Errorf("acme: %s %s %v", own, resolver, err)
	}
	for _, org := range []string{"", "nobody"} { // two orgs are carried: which one?
		if _, _, err := orgAddress(v, org); err == nil {
			t.Errorf("org %q: no error", org)
		}
	}
	v.Orgs = v.Orgs[:1]
	if own, _, err := orgAddress(v, ""); err != nil || own != addr("fd12:3456:789a:1:8100:1:0:1") {
		t.Errorf("the only org: %s, %v", own, err)
	}
}

func TestFirstAddress(t *testing.T) {
	for _, tt := range []struct {
		d    local.Dig
		want string
	}{
		{local.Dig{Rcode: "NOERROR", Answer: []string{"web.internal.\t5\tIN\tAAAA\tfd00::1", "web.internal.\t5\tIN\tAAAA\tfd00::2"}}, "fd00::1"},
		{local.Dig{Rcode: "NOERROR"}, "the name has no address now"},
		{local.Dig{Rcode: "NXDOMAIN"}, "NXDOMAIN"},
	} {
		a, err := firstAddress(tt.d)
		got := a.String()
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v: %s", tt.d, got)
		}
	}
}

// Who cannot reach another org is told what leads there.
func TestBeyondHint(t *testing.T) {
	v := sampleView(t)
	own, _, err := orgAddress(v, "acme")
	if err != nil {
		t.Fatal(err)
	}
	client := *v
	client.Host, client.Client = nil, &mesh.Client{Org: "acme", Name: "anna"}
	const p = "fd12:3456:789a:"
	for _, tt := range []struct {
		name string
		view *mesh.View
		to   string
		want string
	}{
		{"the own org", v, p + "1:8100:2:9:2", ""},
		{"outside of the mesh", v, "2001:db8::1", ""},
		{"a host", v, p + "0:8100:1:0:1", "of no org"},
		{"another org, from a host", v, p + "7:8100:2:9:2", "from all of the org"},
		{"another org, from a client", &client, p + "7:8100:2:9:2", "--from acme/client:anna --to ORG --icmp"},
	} {
		if got := beyondHint(tt.view, own, addr(tt.to)); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
