package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

// drawData draws a mesh of three orgs whose apps and regions overlap and whose
// other names say whose they are: o1-m3 is of org 1.
func drawData(t *rapid.T) (Data, Facts) {
	d := Data{Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"), Self: "h0"}
	regions := []string{"fra", "ams", "nrt"}
	for i, r := range regions {
		d.Regions = append(d.Regions, Region{r, &Place{float64(10 * i), float64(20 * i)}})
	}
	f := Facts{}
	hosts := rapid.IntRange(1, 5).Draw(t, "hosts")
	for i := range hosts {
		h := Host{
			Name: fmt.Sprintf("h%d", i), Region: rapid.SampledFrom(regions).Draw(t, "region"),
			Addr:     netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:0:100:%x:0:1", i+1)),
			Cordoned: rapid.IntRange(0, 5).Draw(t, "cordoned") == 0,
		}
		d.Hosts = append(d.Hosts, h)
		f[h.Name] = Fact{
			RTT:     time.Duration(rapid.Int64Range(0, 100).Draw(t, "rtt")) * ms,
			Suspect: rapid.IntRange(0, 3).Draw(t, "suspect") == 0,
			Dead:    rapid.IntRange(0, 5).Draw(t, "dead") == 0,
		}
	}
	for n := 1; n <= 3; n++ {
		d.Orgs = append(d.Orgs, drawOrg(t, n, d.Hosts))
	}
	return d, f
}

func drawOrg(t *rapid.T, n int, hosts []Host) Org {
	network := fmt.Sprintf("fd12:3456:789a:%x", n)
	o := Org{
		Name: fmt.Sprintf("o%d", n), Prefix: netip.MustParsePrefix(network + "::/64"),
		Resolver: netip.MustParseAddr(network + "::3"), Host: netip.MustParseAddr(network + ":100:1:0:1"),
	}
	apps := []string{"web", "db", fmt.Sprintf("o%d-app", n)}
	for _, a := range apps[:rapid.IntRange(0, 3).Draw(t, "apps")] {
		o.Apps = append(o.Apps, App{Name: a, Answer: rapid.SampledFrom([]string{"", "near", "all", "1", "2", "junk"}).Draw(t, "answer")})
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "machines") {
		host := rapid.IntRange(0, len(hosts)-1).Draw(t, "host")
		o.Machines = append(o.Machines, Machine{
			ID: fmt.Sprintf("o%d-m%d", n, i), App: rapid.SampledFrom(apps).Draw(t, "app"),
			Group: rapid.SampledFrom([]string{"", "front", "back"}).Draw(t, "group"),
			Meta:  map[string]string{"k": rapid.SampledFrom([]string{"", "v", "w"}).Draw(t, "value")},
			Host:  hosts[host].Name, Addr: netip.MustParseAddr(fmt.Sprintf("%s:100:%x:%x:2", network, host+1, i+1)),
			Started: rapid.Bool().Draw(t, "started"), Healthy: rapid.IntRange(0, 3).Draw(t, "healthy") > 0,
		})
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "clients") {
		o.Clients = append(o.Clients, Client{fmt.Sprintf("o%d-c%d", n, i), netip.MustParseAddr(fmt.Sprintf("%s:100:1:%x:2", network, 100+i))})
	}
	return o
}

// drawName draws names out of every part that a name can have, so most of them exist.
func drawName(t *rapid.T) string {
	words := []string{
		"web", "db", "o1-app", "o2-app", "fra", "ams", "xxx", "vm", "o1-m0", "o1-m1", "o2-m0", "process", "front", "_metadata", "kv", "k", "v",
		"of", "nearest", "top1", "top2", "global", "vms", "regions", "all", "_apps", "_peer", "_api", "_instances", "o1-c0", "o2-c0", "host", "h0", "h1",
	}
	shapes := [][]string{
		{"web"}, {"fra", "web"}, {"o1-m0", "vm", "web"}, {"front", "process", "web"}, {"v", "k", "kv", "_metadata", "web"}, {"top2", "nearest", "of", "web"},
		{"vms", "web"}, {"all", "vms", "db"}, {"regions", "web"}, {"global", "db"}, {"_instances"}, {"all", "_instances"}, {"_apps"}, {"_peer"}, {"o1-c0", "_peer"},
	}
	labels := slices.Clone(rapid.SampledFrom(shapes).Draw(t, "shape"))
	for range rapid.IntRange(0, 3).Draw(t, "changes") {
		word := rapid.SampledFrom(words).Draw(t, "word")
		if i := rapid.IntRange(0, len(labels)).Draw(t, "at"); i < len(labels) && rapid.Bool().Draw(t, "replace") {
			labels[i] = word
		} else {
			labels = slices.Insert(labels, i, word)
		}
	}
	return strings.Join(labels, ".") + ".internal."
}

// modelSet is who a name's AAAA answer may hold, straight from the data: by
// scanning, one qualifier after the other. ok is false for what the model does not
// know (texts, names without machines).
func modelSet(d Data, f Facts, o Org, asker string, name string) (want []netip.Addr, exact, ok bool) {
	labels := strings.Split(strings.TrimSuffix(name, ".internal."), ".")
	appName := labels[len(labels)-1]
	labels = labels[:len(labels)-1]
	bare, top := len(labels) == 0, 0
	var ms []Machine
	for _, m := range o.Machines {
		if m.App == appName {
			ms = append(ms, m)
		}
	}
	host := func(m Machine) Host {
		return d.Hosts[slices.IndexFunc(d.Hosts, func(h Host) bool { return h.Name == m.Host })]
	}
	keep := func(f func(Machine) bool) {
		ms = slices.DeleteFunc(slices.Clone(ms), func(m Machine) bool { return !f(m) })
	}
	for len(labels) > 0 {
		s := "." + strings.Join(labels, ".")
		n := len(labels)
		switch last := labels[n-1]; {
		case last == "fra" || last == "ams" || last == "nrt":
			keep(func(m Machine) bool { return host(m).Region == last })
			labels = labels[:n-1]
		case last == "global":
			labels = labels[:n-1]
		case n >= 2 && last == "vm":
			keep(func(m Machine) bool { return m.ID == labels[n-2] })
			labels = labels[:n-2]
		case n >= 2 && last == "process":
			keep(func(m Machine) bool { return m.Group == labels[n-2] })
			labels = labels[:n-2]
		case n >= 4 && strings.HasSuffix(s, ".k.kv._metadata"):
			keep(func(m Machine) bool { return m.Meta["k"] == labels[n-4] })
			labels = labels[:n-4]
		case strings.HasSuffix(s, ".top1.nearest.of") || strings.HasSuffix(s, ".top2.nearest.of"):
			k := int(labels[n-3][3] - '0')
			if top == 0 || k < top {
				top = k
			}
			labels = labels[:n-3]
		default:
			return nil, false, false
		}
	}
	own := top == 0 && slices.ContainsFunc(o.Machines, func(m Machine) bool { return m.Addr.String() == asker && m.App == appName })
	keep(func(m Machine) bool { return m.Started && m.Healthy && !host(m).Cordoned })
	fact := func(m Machine) Fact {
		if m.Host == d.Self {
			return Fact{}
		}
		return f[m.Host]
	}
	for _, good := range []func(Machine) bool{
		func(m Machine) bool { return !fact(m).Dead && (own || !fact(m).Suspect) },
		func(m Machine) bool { return !fact(m).Dead },
	} {
		if slices.ContainsFunc(ms, good) {
			keep(good)
			break
		}
	}
	limit := len(ms)
	exact = true
	answer := ""
	for _, a := range o.Apps {
		if a.Name == appName {
			answer = a.Answer
		}
	}
	switch {
	case own:
	case top > 0:
		limit, exact = min(top, limit), false
	case bare && (answer == "1" || answer == "2"):
		limit, exact = min(int(answer[0]-'0'), limit), false
	case bare && answer != "all":
		return nil, false, false // the near set has its own property
	}
	for _, m := range ms {
		want = append(want, m.Addr)
	}
	if !exact && limit < len(ms) {
		want = want[:limit]
	} else {
		exact = true
	}
	return want, exact, true
}

// The index agrees with a scan over the data.
func TestZoneAgreesWithModel(t *testing.T) {
	known := 0
	rapid.Check(t, func(t *rapid.T) {
		d, f := drawData(t)
		z := NewZone(d)
		if rapid.Bool().Draw(t, "in pieces") {
			z = inPieces(t, d)
		}
		o := d.Orgs[0]
		asker := "fd12:3456:789a:1:100:1:ff:2"
		if len(o.Machines) > 0 && rapid.Bool().Draw(t, "machine asks") {
			asker = o.Machines[0].Addr.String()
		}
		for range 20 {
			name := drawName(t)
			want, exact, ok := modelSet(d, f, o, asker, name)
			if !ok {
				continue
			}
			known++
			a := z.Answer(f, Query{Name: name, Type: TypeAAAA, Source: netip.MustParseAddr(asker)}, rand.New(rand.NewPCG(1, 1)))
			got := slices.SortedFunc(slices.Values(a.Addrs), netip.Addr.Compare)
			slices.SortFunc(want, netip.Addr.Compare)
			if exact && !slices.Equal(want, got) || len(got) != len(want) {
				t.Fatalf("%s: got %v, want %v (exactly: %v)", name, got, want, exact)
			}
		}
	})
	if known < 200 {
		t.Errorf("the model knew only %d names: it proves nothing", known)
	}
}

// Whatever org 2 and 3 hold, org 1 gets the very same bytes: nothing of another
// org is visible, not even that it exists.
func TestNoOrgSeesAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, f := drawData(t)
		alone := d
		alone.Orgs = d.Orgs[:1]
		a, b := testServer(d, f), testServer(alone, f)
		if rapid.Bool().Draw(t, "in pieces") {
			a, b = zoneServer(inPieces(t, d), f), zoneServer(inPieces(t, alone), f)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		a.rnd, b.rnd = rand.New(rand.NewPCG(seed, 0)), rand.New(rand.NewPCG(seed, 0))
		source := netip.MustParseAddr("fd12:3456:789a:1:100:1:ff:2")
		if ms := d.Orgs[0].Machines; len(ms) > 0 && rapid.Bool().Draw(t, "machine asks") {
			source = ms[0].Addr
		}
		name := drawName(t)
		if rapid.IntRange(0, 3).Draw(t, "reverse") == 0 {
			var all []netip.Addr
			for _, o := range d.Orgs {
				for _, m := range o.Machines {
					all = append(all, m.Addr)
				}
				all = append(all, o.Resolver, o.Host)
			}
			name = ReverseName(rapid.SampledFrom(all).Draw(t, "addr"))
			name = name[2*rapid.IntRange(0, 20).Draw(t, "cut"):]
		}
		q := new(dns.Msg)
		q.SetQuestion(name, rapid.SampledFrom([]uint16{TypeAAAA, TypeTXT, TypePTR, TypeANY, dns.TypeA}).Draw(t, "type"))
		packet, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		stream := rapid.Bool().Draw(t, "stream")
		with, _ := a.handle(packet, source, Role{}, stream)
		without, _ := b.handle(packet, source, Role{}, stream)
		if !bytes.Equal(with, without) {
			t.Fatalf("%s: with the other orgs %x, without %x", name, with, without)
		}
		m := new(dns.Msg)
		if err := m.Unpack(with); err != nil {
			t.Fatal(err)
		}
		for _, other := range []string{"o2-", "o3-", "fd12:3456:789a:2:", "fd12:3456:789a:3:"} {
			if strings.Contains(fmt.Sprint(m.Answer, m.Ns, m.Extra), other) && !strings.Contains(name, other) {
				t.Fatalf("%s: answer holds %s: %v", name, other, m)
			}
		}
	})
}

// Any bytes in: a well-formed answer to them, or nothing. Never a panic.
func FuzzHandle(f *testing.F) {
	for _, name := range []string{"web.internal.", "vms.web.internal.", "nosuch.internal.", ReverseName(netip.MustParseAddr(w1)), "example.com.", `a\.b\000.internal.`} {
		for _, qtype := range []uint16{TypeAAAA, TypeTXT, TypePTR, TypeANY} {
			q := new(dns.Msg)
			q.SetQuestion(name, qtype)
			q.SetEdns0(1232, true)
			packet, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packet, false)
		}
	}
	f.Add([]byte{}, true)
	f.Add(bytes.Repeat([]byte{0xc0}, 100), true)
	s := testServer(fixture(), fixtureFacts())
	source := netip.MustParseAddr(w1)
	f.Fuzz(func(t *testing.T, packet []byte, stream bool) {
		out, wait := s.handle(packet, source, Role{}, stream)
		if wait != nil {
			t.Fatal("there is no forwarder")
		}
		if out == nil {
			if len(packet) >= headerSize && packet[2]&0x80 == 0 {
				t.Fatal("a query was dropped")
			}
			return
		}
		if !bytes.Equal(out[:2], packet[:2]) || out[2]&0x80 == 0 {
			t.Fatalf("answer %x is none to %x", out, packet)
		}
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil {
			t.Fatalf("answer %x to %x: %v", out, packet, err)
		}
		if !stream && len(out) > udpSize {
			t.Fatalf("answer of %d bytes over UDP", len(out))
		}
		if n := binary.BigEndian.Uint16(out[4:]); n > 0 && len(m.Question) == 1 {
			q := new(dns.Msg)
			if q.Unpack(packet) == nil && q.Question[0] != m.Question[0] {
				t.Fatalf("question %v echoed as %v", q.Question[0], m.Question[0])
			}
		}
	})
}

// Names: what splitName accepts is what the wire can carry, and printing the labels
// again means the same name.
func FuzzSplitName(f *testing.F) {
	for _, s := range []string{"web.internal.", `a\.b.internal`, `\105nternal.`, `\256.`, "..", ".", `x\`, strings.Repeat("a", 64), "É.internal."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		labels, ok := splitName(s)
		if !ok {
			return
		}
		var b strings.Builder
		for _, l := range labels {
			if l == "" || len(l) > 63 {
				t.Fatalf("%q has label %q", s, l)
			}
			for i := range len(l) {
				fmt.Fprintf(&b, `\%03d`, l[i])
			}
			b.WriteByte('.')
		}
		if len(labels) == 0 {
			b.WriteByte('.')
		}
		again, ok := splitName(b.String())
		if !ok || !slices.Equal(again, labels) {
			t.Fatalf("%q: %q, printed and read again %q %v", s, labels, again, ok)
		}
	})
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 10.0.0.1\n# no\nnameserver fe80::1%eth0\nsearch a b\noptions ndots:2"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, a := range ParseResolvConf(text).Nameservers {
			if !a.IsValid() || a.Port() != 53 {
				t.Fatalf("nameserver %v", a)
			}
		}
	})
}

// Whatever an upstream sends is ignored or passed on without mesh addresses.
func FuzzUpstreamAnswer(f *testing.F) {
	for _, text := range []string{"example. 5 IN AAAA " + w1, `example. 5 IN HTTPS 1 . ipv6hint="` + w1 + `"`, "example. 4294967295 IN TXT \"a\""} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m := new(dns.Msg).SetQuestion("example.", TypeAAAA)
		m.Response, m.Answer = true, []dns.RR{rr}
		packet, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
	}
	fw, err := NewForwarder(ForwarderConfig{Mesh: mesh})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		m := new(dns.Msg)
		if m.Unpack(packet) != nil && !m.Truncated {
			return
		}
		if fw.clean(m, false) != nil {
			return
		}
		query := new(dns.Msg).SetQuestion("example.", TypeAAAA)
		answers(m, query)
		r := request{msg: query, size: udpSize}
		reply := r.reply(Rcode(m.Rcode), true)
		reply.Answer, reply.Ns, reply.Extra = m.Answer, m.Ns, m.Extra
		out := r.pack(reply)
		if len(out) > udpSize {
			t.Fatalf("%d bytes", len(out))
		}
		again := new(dns.Msg)
		if err := again.Unpack(out); err != nil {
			t.Fatalf("what is passed on cannot be read: %v", err)
		}
		for _, rr := range again.Answer {
			if fw.pointsIntoMesh(rr) || rr.Header().Ttl > maxForwardTTL {
				t.Fatalf("passed on: %s", rr)
			}
		}
	})
}
