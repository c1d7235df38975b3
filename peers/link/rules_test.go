package link

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	vnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

func TestRuleOf(t *testing.T) {
	t.Parallel()
	header := func(table, action byte, flags uint32) []byte {
		return binary.NativeEndian.AppendUint32([]byte{unix.AF_INET6, 0, 0, 0, table, 0, 0, action}, flags)
	}
	none, protocol := number(fraSuppressLength, -1), netlink.Attribute{Type: fraProtocol, Data: []byte{unix.RTPROT_KERNEL}}
	for _, tt := range []struct {
		name string
		m    netlink.Message
		want string
		own  bool
	}{
		{"local", message(t, unix.RTM_NEWRULE, header(255, actToTable, 1), number(fraTable, 255), none, protocol), "0 lookup local", true},
		{"main", message(t, unix.RTM_NEWRULE, header(254, actToTable, 0), number(fraTable, 254), number(fraPriority, 32766), none, protocol), "32766 lookup main", true},
		{"main, earlier", message(t, unix.RTM_NEWRULE, header(254, actToTable, 0), number(fraTable, 254), number(fraPriority, 5)), "5 lookup main", false},
		{"another table", message(t, unix.RTM_NEWRULE, header(0, actToTable, 0), number(fraTable, 1000), number(fraPriority, 32766)), "32766 lookup 1000", false},
		{"unreachable", message(t, unix.RTM_NEWRULE, header(254, 7, 0), number(fraPriority, 32766)), "32766 (of somebody else)", false},
		{"with a mark", message(t, unix.RTM_NEWRULE, header(254, actToTable, 0), number(fraPriority, 32766), number(10, 5)), "32766 (of somebody else)", false},
		{"inverted", message(t, unix.RTM_NEWRULE, header(254, actToTable, ruleInvert), number(fraPriority, 32766)), "32766 (of somebody else)", false},
		{"suppressed", message(t, unix.RTM_NEWRULE, header(254, actToTable, 0), number(fraPriority, 32766), number(fraSuppressLength, 0)), "32766 (of somebody else)", false},
	} {
		got, ok := ruleOf(tt.m.Data)
		if !ok || got.String() != tt.want || got.Own() != tt.own {
			t.Errorf("%s: %q, own: %t, %t; want %q, %t", tt.name, got, got.Own(), ok, tt.want, tt.own)
		}
		if e, ok := eventOf(tt.m); !ok || e.Kind != RuleEvent || e.Rule != got {
			t.Errorf("%s: event %+v, %t", tt.name, e, ok)
		}
	}
	if r, ok := ruleOf([]byte{unix.AF_INET, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0}); ok {
		t.Errorf("a rule of IPv4: %v", r)
	}
	if r, ok := ruleOf([]byte{unix.AF_INET6}); ok {
		t.Errorf("cut short: %v", r)
	}
}

// Rules that somebody adds go, those of the kernel come back, and where the namespace
// is not the mesh's alone none is touched.
func TestRules(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	check(t, Prepare(ns))
	addLink(t, nl, "weft0")
	c := hostConfig()
	c.OwnRules = true
	set(t, ns, c)
	rules := func() (out []string) {
		t.Helper()
		list, err := readRules(ns)
		check(t, err)
		for _, r := range list {
			out = append(out, r.String())
		}
		return out
	}
	own := []string{"0 lookup local", "32766 lookup main"}
	if got := rules(); !slices.Equal(got, own) {
		t.Fatalf("a new namespace has the rules %q", got)
	}
	add := func(change func(r *vnl.Rule)) {
		t.Helper()
		r := vnl.NewRule()
		r.Family = vnl.FAMILY_V6
		change(r)
		check(t, nl.RuleAdd(r))
	}
	harm := func() {
		t.Helper()
		add(func(r *vnl.Rule) { r.Priority, r.Type = 100, unix.RTN_UNREACHABLE })
		add(func(r *vnl.Rule) { r.Priority, r.Table, r.Mark = 100, 1000, 7 })
		add(func(r *vnl.Rule) { r.Priority, r.Table, r.IifName = 32766, unix.RT_TABLE_MAIN, "weft0" })
		add(func(r *vnl.Rule) {
			r.Priority, r.Table, r.Src = 32765, 52, netns.IPNet(netip.MustParsePrefix("fd00::/8"))
		})
		main := vnl.NewRule()
		main.Family, main.Priority, main.Table = vnl.FAMILY_V6, 32766, unix.RT_TABLE_MAIN
		check(t, nl.RuleDel(main))
	}
	harm()
	want := []string{
		"add rule 32766 lookup main",
		"drop rule 100 (of somebody else)", "drop rule 100 (of somebody else)", "drop rule 32765 (of somebody else)", "drop rule 32766 (of somebody else)",
	}
	if diff := cmp.Diff(want, set(t, ns, c)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := rules(); !slices.Equal(got, own) {
		t.Errorf("rules %q", got)
	}
	c.OwnRules = false
	harm()
	harmed := rules()
	if changes := set(t, ns, c); len(changes) > 0 || !slices.Equal(rules(), harmed) {
		t.Errorf("somebody else's namespace: %q, rules %q", changes, rules())
	}
}

// The link that holds the addresses is brought up again, with what went with it.
func TestHolderDown(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	check(t, Prepare(ns))
	addLink(t, nl, "weft0")
	c := hostConfig()
	set(t, ns, c)
	before := state(t, nl)
	lo, err := nl.LinkByName("lo")
	check(t, err)
	check(t, nl.LinkSetDown(lo))
	if changes := set(t, ns, c); !slices.Contains(changes, "set lo up") {
		t.Errorf("changes %q", changes)
	}
	if diff := cmp.Diff(before, state(t, nl)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Links that got another name while nobody watched are found by their alias. What
// another link is called by then, it stays.
func TestRecall(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	number := map[string]int{}
	for _, name := range []string{"weft0", "m-a", "m-b", "stranger"} {
		l := addLink(t, nl, name)
		number[name] = l.Attrs().Index
		check(t, nl.LinkSetAlias(l, "ours "+name))
		check(t, nl.LinkSetDown(l))
		if name != "m-b" {
			check(t, nl.LinkSetName(l, "x-"+name))
		}
		check(t, nl.LinkSetUp(l))
	}
	another := addLink(t, nl, "m-c")
	check(t, nl.LinkSetName(another, "m-a"))
	number["m-a"] = another.Attrs().Index
	name := func(alias string) string {
		if name, ok := strings.CutPrefix(alias, "ours "); ok && name != "stranger" {
			return name
		}
		return ""
	}
	for _, want := range [][]string{{"weft0"}, nil} {
		if given, err := Recall(ns, name); err != nil || !slices.Equal(given, want) {
			t.Errorf("given %v, %v; want %v", given, err, want)
		}
	}
	number["x-stranger"] = number["stranger"]
	delete(number, "stranger")
	for name, index := range number {
		if l, err := nl.LinkByName(name); err != nil || l.Attrs().Index != index || name == "weft0" && l.Attrs().Alias != "ours weft0" {
			t.Errorf("%s is %+v, %v; want number %d", name, l, err, index)
		}
	}
}

// A link that gets another name, while it is up and while it is down, gets its own back.
func TestRename(t *testing.T) {
	t.Parallel()
	ns, nl := plane(t)
	l := addLink(t, nl, "weft0")
	ctx, cancel := context.WithCancel(t.Context())
	events, ended := make(chan Event, 100), make(chan error, 1)
	go func() { ended <- Watch(ctx, ns, func(e Event) { events <- e }) }()
	defer func() { cancel(); check(t, <-ended) }()
	renamed := func(from string) Event {
		t.Helper()
		for late := time.After(10 * time.Second); ; {
			select {
			case e := <-events:
				if e.Kind == RenameEvent && e.Link == from {
					return e
				}
			case err := <-ended:
				ended <- nil
				t.Fatal(err)
			case <-late:
				t.Fatalf("it is not told that %s has another name", from)
			}
		}
	}
	settled := func() { // the watch hears what is done from now on
		t.Helper()
		check(t, nl.LinkSetMTU(l, 1400))
		check(t, nl.LinkSetMTU(l, 1420))
		for late := time.After(10 * time.Second); ; {
			select {
			case e := <-events:
				if e.Link == "weft0" && e.MTU == 1420 {
					return
				}
			case <-time.After(50 * time.Millisecond):
				check(t, nl.LinkSetMTU(l, 1400))
				check(t, nl.LinkSetMTU(l, 1420))
			case <-late:
				t.Fatal("the watch hears nothing")
			}
		}
	}
	settled()
	for range 2 {
		check(t, nl.LinkSetDown(l))
		check(t, nl.LinkSetName(l, "other0"))
		check(t, nl.LinkSetUp(l))
		check(t, Rename(ns, renamed("weft0")))
		renamed("other0")
		if now, err := nl.LinkByName("weft0"); err != nil || now.Attrs().Index != l.Attrs().Index {
			t.Fatalf("weft0 is %v, %v", now, err)
		}
	}
}
