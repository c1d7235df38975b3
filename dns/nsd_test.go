package dns

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// nsdZone writes what one org of d is, for a client of it, as the text of two zones:
// straight from the data, without the code that answers. Every name that exists
// has a record, if only one of a type that nobody asks for. names are by kind.
type nsdZone struct {
	d       Data
	o       Org
	records map[string][]string // owner: "TTL IN TYPE data"
	kinds   map[string][]string
}

func newNSDZone(d Data, o Org) *nsdZone {
	z := &nsdZone{d: d, o: o, records: map[string][]string{}, kinds: map[string][]string{}}
	byApp := map[string][]Machine{}
	for _, a := range o.Apps {
		byApp[a.Name] = nil
	}
	for _, m := range o.Machines {
		byApp[m.App] = append(byApp[m.App], m)
	}
	for app, ms := range byApp {
		z.app(app, ms)
	}
	z.kinds["zone"] = []string{"internal.", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa."}
	z.hosts()
	z.own()
	z.text("apps", "_apps", ",", slices.Sorted(maps.Keys(byApp)))
	var clients []string
	for _, c := range o.Clients {
		clients = append(clients, c.Name)
		z.add("client", c.Name+"._peer", 5, "AAAA "+c.Addr.String())
		z.ptr("PTR of a client", c.Addr, c.Name+"._peer.internal.")
	}
	slices.Sort(clients)
	z.text("clients", "_peer", ",", clients)
	z.add("api", "_api", 5, "AAAA "+o.Resolver.String())
	z.ptr("PTR of the resolver", o.Resolver, "_api.internal.")
	slices.SortFunc(o.Machines, func(a, b Machine) int { return strings.Compare(a.ID, b.ID) })
	for prefix, all := range map[string]bool{"": false, "all.": true} {
		var entries []string
		for _, m := range o.Machines {
			if !m.Unlisted && (all || z.usable(m)) {
				entries = append(entries, fmt.Sprintf("instance=%s,app=%s,ip=%s,region=%s", m.ID, m.App, m.Addr, z.host(m).Region))
			}
		}
		z.text(prefix+"instances", prefix+"_instances", ";", entries)
	}
	return z
}

func (z *nsdZone) host(m Machine) Host {
	return z.d.Hosts[slices.IndexFunc(z.d.Hosts, func(h Host) bool { return h.Name == m.Host })]
}

func (z *nsdZone) usable(m Machine) bool {
	return m.Started && m.Healthy && !m.Cordoned && !z.host(m).Cordoned
}

// hosts writes the hosts that have machines of the org: their address in its network,
// and their own.
func (z *nsdZone) hosts() {
	for _, h := range z.d.Hosts {
		if !slices.ContainsFunc(z.o.Machines, func(m Machine) bool { return m.Host == h.Name }) {
			continue
		}
		a := h.Addr.As16()
		a[7] = 1 // the org's network
		z.add("host", h.Name+".host", 5, "AAAA "+netip.AddrFrom16(a).String())
		z.ptr("PTR of a host", netip.AddrFrom16(a), h.Name+".host.internal.")
		z.ptr("PTR of a host", h.Addr, h.Name+".host.internal.")
	}
	z.exist("in between", "host")
}

// own writes the org's own records.
func (z *nsdZone) own() {
	for _, r := range z.o.Own {
		ttl := cmp.Or(r.TTL, 5)
		switch r.Type {
		case TypeAAAA:
			z.add("own AAAA", r.Name, ttl, "AAAA "+r.Addr.String())
		case TypeTXT:
			z.add("own TXT", r.Name, ttl, `TXT "`+r.Text+`"`)
		case TypeSRV:
			z.add("own SRV", r.Name, ttl, fmt.Sprintf("SRV %d %d %d %s.", r.Priority, r.Weight, r.Port, r.Target))
			z.exist("in between", "_tcp.store", "store")
		case TypeAlias: // what it stands for, and never a CNAME
			z.exist("alias", r.Name)
			for _, record := range z.records[r.Target+"."] {
				f := strings.SplitN(record, " ", 4)
				if f[2] == "AAAA" {
					z.add("", r.Name, min(ttl, 5), "AAAA "+f[3])
				}
			}
		}
	}
}

// app writes an app's names: each qualifier alone, and each pair of them.
func (z *nsdZone) app(app string, ms []Machine) {
	type qualifier struct {
		kind, name string
		keep       func(Machine) bool
	}
	everyone := func(Machine) bool { return true }
	// The nearest of more than there are is all, whoever asks.
	qs := []qualifier{{"global", "global", everyone}, {"top", "top1000.nearest.of", everyone}}
	listed := filter(ms, func(m Machine) bool { return !m.Unlisted })
	regions := map[string]bool{}
	for _, r := range z.d.Regions {
		regions[r.Name] = true
	}
	for r := range regions {
		qs = append(qs, qualifier{"region", r, func(m Machine) bool { return z.host(m).Region == r }})
	}
	groups, values := map[string]bool{}, map[string]bool{}
	for _, m := range ms {
		qs = append(qs, qualifier{"machine", m.ID + ".vm", func(x Machine) bool { return x.ID == m.ID }})
		z.ptr("PTR of a machine", m.Addr, m.ID+".vm."+app+".internal.")
		if m.Unlisted {
			continue
		}
		if m.Group != "" {
			groups[m.Group] = true
		}
		if v := m.Meta["k"]; v != "" {
			values[v] = true
		}
	}
	for g := range groups {
		qs = append(qs, qualifier{"group", g + ".process", func(m Machine) bool { return m.Group == g }})
	}
	for v := range values {
		qs = append(qs, qualifier{"metadata", v + ".k.kv._metadata", func(m Machine) bool { return m.Meta["k"] == v }})
	}
	z.selection("app", app, listed)
	z.exist("in between", "vm."+app, "process."+app, "_metadata."+app, "kv._metadata."+app, "of."+app, "nearest.of."+app)
	for _, a := range qs {
		some := filter(listed, a.keep)
		if a.kind == "machine" {
			some = filter(ms, a.keep) // the one name of one that is unlisted
		}
		z.selection(a.kind, a.name+"."+app, some)
		for _, b := range qs {
			// An id, a group or a value is only there if a machine has it; a region always is.
			if left := filter(some, b.keep); len(left) > 0 || b.kind == "region" || b.kind == "global" || b.kind == "top" {
				z.selection("nested", b.name+"."+a.name+"."+app, left)
			}
		}
	}
	for prefix, all := range map[string]bool{"": false, "all.": true} {
		var vms, in []string
		for _, m := range listed {
			if all || z.usable(m) {
				vms = append(vms, m.ID+" "+z.host(m).Region)
				in = append(in, z.host(m).Region)
			}
		}
		slices.Sort(vms)
		slices.Sort(in)
		z.text(prefix+"vms", prefix+"vms."+app, ",", vms)
		z.text(prefix+"regions", prefix+"regions."+app, ",", slices.Compact(in))
	}
}

func filter(ms []Machine, keep func(Machine) bool) []Machine {
	return slices.DeleteFunc(slices.Clone(ms), func(m Machine) bool { return !keep(m) })
}

// selection is a name with addresses, and with a port before it.
func (z *nsdZone) selection(kind, name string, ms []Machine) {
	z.exist(kind, name)
	z.exist("port", "_443._tcp."+name, "_53._udp."+name)
	for _, m := range ms {
		if z.usable(m) {
			z.add("", name, 5, "AAAA "+m.Addr.String())
			for _, port := range []string{"443._tcp", "53._udp"} {
				number, _, _ := strings.Cut(port, ".")
				// One priority: distances are none of the data's.
				z.add("", "_"+port+"."+name, 5, fmt.Sprintf("SRV 0 1 %s %s.vm.%s.internal.", number, m.ID, m.App))
			}
		}
	}
}

func (z *nsdZone) add(kind, name string, ttl int, data string) {
	if kind != "" {
		z.exist(kind, name)
	}
	record := fmt.Sprintf("%d IN %s", ttl, data)
	if !slices.Contains(z.records[name+".internal."], record) {
		z.records[name+".internal."] = append(z.records[name+".internal."], record)
	}
}

func (z *nsdZone) exist(kind string, names ...string) {
	for _, name := range names {
		name += ".internal."
		z.kinds[kind] = append(z.kinds[kind], name)
		if len(z.records[name]) == 0 {
			z.records[name] = []string{`5 IN TYPE65400 \# 0`}
		}
	}
}

func (z *nsdZone) text(kind, name, separator string, entries []string) {
	z.exist(kind, name)
	all := strings.Join(entries, separator)
	if all == "" {
		return
	}
	var parts []string
	for ; len(all) > 255; all = all[255:] {
		parts = append(parts, `"`+all[:255]+`"`)
	}
	z.add("", name, 5, "TXT "+strings.Join(append(parts, `"`+all+`"`), " "))
}

func (z *nsdZone) ptr(kind string, addr netip.Addr, name string) {
	owner, err := dns.ReverseAddr(addr.String())
	if err != nil {
		panic(err)
	}
	z.kinds[kind] = append(z.kinds[kind], owner)
	z.records[owner] = append(z.records[owner], "5 IN PTR "+name)
}

// write writes the zone that ends in suffix.
func (z *nsdZone) write(w io.Writer, suffix string) error {
	fmt.Fprintf(w, "%s 5 IN SOA _api.internal. hostmaster.internal. 1 3600 600 86400 1\n", suffix)
	fmt.Fprintf(w, "%s 5 IN NS _api.internal.\n", suffix)
	for owner, records := range z.records {
		for _, r := range records {
			if strings.HasSuffix(owner, suffix) {
				fmt.Fprintf(w, "%s %s\n", owner, r)
			}
		}
	}
	return nil
}

// An independent server that is fed the same zone answers the same, name by name.
func TestAgreesWithNSD(t *testing.T) {
	program := nsdProgram(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	d, org := randomOrg(rnd)
	z := newNSDZone(d, org)
	at := startNSD(t, program, z, map[string]string{"internal.": "internal", "a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.": "reverse"})
	zone := NewZone(d)
	s := NewServer(Config{Zone: func() *Zone { return zone }})
	h := hotOver(s, seed)
	source := netip.MustParseAddr("fd12:3456:789a:1:100:1:ffff:2")

	conn, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	counts := map[string]int{}
	kinds := slices.Sorted(maps.Keys(z.kinds))
	types := []uint16{TypeAAAA, TypeAAAA, TypeTXT, TypeSRV, TypePTR, TypeSOA, dns.TypeA, dns.TypeMX}
	const queries = 12000
	asked := 0
	for i := 0; asked < queries; i++ {
		kind := kinds[i%len(kinds)]
		name := z.kinds[kind][rnd.IntN(len(z.kinds[kind]))]
		if rnd.IntN(4) == 0 {
			name, kind = change(rnd, name), "changed"
			if notInZone(name) {
				continue
			}
		}
		counts[kind]++
		asked++
		q := new(dns.Msg).SetQuestion(mixCase(name), types[rnd.IntN(len(types))])
		if z.records[name] != nil && rnd.IntN(2) == 0 { // the type that is there
			q.Question[0].Qtype = dns.StringToType[strings.Fields(z.records[name][0])[2]]
		}
		if q.Question[0].Qtype == 0 {
			q.Question[0].Qtype = TypeAAAA
		}
		q.SetEdns0(1232, false)
		want := askNSD(t, conn, at, q)
		got := new(dns.Msg)
		packet, _ := q.Pack()
		var out []byte
		if i%2 == 0 {
			out = h.answer(make([]byte, 0, udpSize), packet, source, Role{})
		}
		if out == nil { // not asked the short way, or too long for it
			out, _ = s.handle(packet, source, Role{}, true)
		}
		if got.Unpack(out) != nil {
			t.Fatalf("seed %d: %s: no answer", seed, q.Question[0].String())
		}
		if a, b := comparable(want), comparable(got); a != b {
			t.Fatalf("seed %d: %s %s\nNSD:\n%s\nweft:\n%s", seed, q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype], a, b)
		}
	}
	t.Logf("%-22s %5d", "in all", asked)
	for _, kind := range append(kinds, "changed") {
		t.Logf("%-22s %5d", kind, counts[kind])
		if counts[kind] == 0 {
			t.Errorf("no name of kind %q was asked", kind)
		}
	}
}

// change makes a name that is probably not there of one that is.
func change(rnd *rand.Rand, name string) string {
	labels := dns.SplitDomainName(name)
	switch at := rnd.IntN(len(labels)); rnd.IntN(3) {
	case 0:
		labels[at] = []string{"x", "vm", "web", "all", "_443", "_tcp", "fra", "0"}[rnd.IntN(8)]
	case 1:
		labels = slices.Delete(labels, at, at+1)
	default:
		labels = slices.Insert(labels, at, []string{"x", "y-z", "a", "_udp"}[rnd.IntN(4)])
	}
	return strings.Join(labels, ".") + "."
}

// notInZone reports names that the text of the zone does not reach: those of others,
// and names of apps that are nested deeper than it is written.
func notInZone(name string) bool {
	labels := dns.SplitDomainName(name)
	if strings.HasSuffix(name, ".ip6.arpa.") {
		return !strings.HasSuffix(name, ".a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.")
	}
	n := len(labels)
	if n < 2 || labels[n-1] != "internal" || !strings.HasSuffix(name, ".internal.") {
		return true
	}
	if strings.HasPrefix(name, "_443._udp.") || strings.HasPrefix(name, "_53._tcp.") {
		return true // every port is there, and two are written
	}
	depth := 0
	for _, l := range labels[:n-2] {
		switch l {
		case "vm", "process", "_metadata", "of", "global", "fra", "ams", "nrt":
			depth++
		}
	}
	return depth > 2
}

// comparable is what two servers must agree on: the outcome, the records, and
// whether there is an SOA. Additional records are each one's own choice.
func comparable(m *dns.Msg) string {
	var lines []string
	for _, rr := range m.Answer {
		if srv, ok := rr.(*dns.SRV); ok {
			srv.Priority = 0
		}
		lines = append(lines, strings.ToLower(rr.String()))
	}
	slices.Sort(lines)
	soa := slices.ContainsFunc(m.Ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeSOA })
	return fmt.Sprintf("%s, authoritative %v, SOA %v\n%s", dns.RcodeToString[m.Rcode], m.Authoritative, soa, strings.Join(lines, "\n"))
}

// randomOrg is a mesh with one org in which every kind of name occurs.
func randomOrg(rnd *rand.Rand) (Data, Org) {
	d := Data{Prefix: netip.MustParsePrefix("fd12:3456:789a::/48"), Self: "self", Regions: []Region{{Name: "fra"}, {Name: "ams"}, {Name: "nrt"}}}
	d.Hosts = append(d.Hosts, Host{Name: "self", Region: "fra", Addr: netip.MustParseAddr("fd12:3456:789a:0:100:fff:0:1")})
	for i := range 8 {
		d.Hosts = append(d.Hosts, Host{
			Name: fmt.Sprintf("h%d", i), Region: d.Regions[i%3].Name, Cordoned: i == 7,
			Addr: netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:0:100:%x:0:1", i+1)),
		})
	}
	o := Org{Name: "acme", Prefix: netip.MustParsePrefix("fd12:3456:789a:1::/64"), Resolver: netip.MustParseAddr("fd12:3456:789a:1::3")}
	apps := []string{"web", "db", "a-long-name-for-an-app", "x1", "idle"}
	for _, a := range apps {
		o.Apps = append(o.Apps, App{Name: a, Answer: "all"})
	}
	for i := range 60 {
		host := rnd.IntN(8)
		o.Machines = append(o.Machines, Machine{
			ID: fmt.Sprintf("m%d", i), App: apps[rnd.IntN(len(apps))], Host: d.Hosts[host+1].Name,
			Group: []string{"", "front", "worker"}[rnd.IntN(3)], Meta: map[string]string{"k": []string{"", "v1", "v2"}[rnd.IntN(3)]},
			Addr:    netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:1:100:%x:%x:2", host+1, i+1)),
			Started: rnd.IntN(5) > 0, Healthy: rnd.IntN(6) > 0, Cordoned: rnd.IntN(10) == 0, Unlisted: rnd.IntN(10) == 0,
		})
	}
	for i := range 12 {
		o.Clients = append(o.Clients, Client{fmt.Sprintf("laptop-%d", i), netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a:1:100:1:%x:2", 0x1000+i))})
	}
	o.Own = []OwnRecord{
		{Name: "printer", Type: TypeAAAA, Addr: netip.MustParseAddr("fd12:3456:789a:1:100:1:7777:2"), TTL: 60},
		{Name: "printer", Type: TypeAAAA, Addr: netip.MustParseAddr("fd12:3456:789a:1:100:1:7778:2"), TTL: 60},
		{Name: "motd", Type: TypeTXT, Text: "closed today"},
		{Name: "_pg._tcp.store", Type: TypeSRV, Priority: 3, Weight: 7, Port: 5432, Target: "db.internal"},
		{Name: "api", Type: TypeAlias, Target: "global.web.internal", TTL: 3},
		{Name: "lazy.api2", Type: TypeAlias, Target: "web.internal", TTL: 600},
	}
	d.Orgs = []Org{o}
	return d, o
}

// nsdProgram finds NSD: installed, or unpacked by `make deps`.
func nsdProgram(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("nsd"); err == nil {
		return path
	}
	path, err := filepath.Abs("../build/nsd/usr/sbin/nsd")
	if _, statErr := os.Stat(path); err == nil && statErr == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("NSD is not here: make deps unpacks it")
	}
	t.Skip("NSD is not here: make deps unpacks it")
	return ""
}

// startNSD serves zones (name: file) of z and returns where.
func startNSD(t *testing.T, program string, z *nsdZone, zones map[string]string) netip.AddrPort {
	t.Helper()
	dir := t.TempDir()
	udp, tcp, err := bindBoth(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	at := addrPortOf(udp.LocalAddr())
	udp.Close()
	tcp.Close()
	config := fmt.Sprintf(`server:
	ip-address: 127.0.0.1@%d
	server-count: 1
	username: ""
	zonesdir: "%[2]s"
	database: ""
	pidfile: ""
	xfrdfile: ""
	zonelistfile: "%[2]s/zone.list"
	xfrdir: "%[2]s"
	verbosity: 1
	rrl-ratelimit: 0
remote-control:
	control-enable: no
`, at.Port(), dir)
	for name, file := range zones {
		f, err := os.Create(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		w := bufio.NewWriter(f)
		if err := z.write(w, name); err != nil || w.Flush() != nil || f.Close() != nil {
			t.Fatal("zone file not written", err)
		}
		config += fmt.Sprintf("zone:\n\tname: %s\n\tzonefile: %s\n", name, file)
	}
	path := filepath.Join(dir, "nsd.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var log strings.Builder
	cmd := exec.CommandContext(ctx, program, "-d", "-c", path)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdout, cmd.Stderr = &log, &log
	if dir := filepath.Join(filepath.Dir(program), "../lib/x86_64-linux-gnu"); filepath.Dir(program) != "/usr/sbin" {
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+dir)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			t.Logf("NSD:\n%s", log.String())
		}
	})
	waitFor(t, "NSD to answer", func() bool {
		conn, err := net.Dial("udp", at.String())
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
		packet, _ := new(dns.Msg).SetQuestion("internal.", dns.TypeSOA).Pack()
		conn.Write(packet)
		n, err := conn.Read(make([]byte, 512))
		return err == nil && n > 12
	})
	return at
}

// askNSD asks over UDP, over TCP if the answer was cut.
func askNSD(t *testing.T, conn net.Conn, at netip.AddrPort, q *dns.Msg) *dns.Msg {
	t.Helper()
	packet, err := q.Pack()
	if err != nil {
		t.Fatalf("%s: %v", q.Question[0].String(), err)
	}
	buf := make([]byte, 4096)
	for range 3 { // a datagram can get lost
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Write(packet); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		m := new(dns.Msg)
		if err != nil || m.Unpack(buf[:n]) != nil || m.Id != q.Id {
			continue
		}
		if m.Truncated {
			c := &dns.Client{Net: "tcp", Timeout: deadline}
			if m, _, err = c.Exchange(q, at.String()); err != nil {
				t.Fatalf("ask NSD over TCP: %v", err)
			}
		}
		return m
	}
	t.Fatalf("NSD does not answer %s", q.Question[0].String())
	return nil
}
