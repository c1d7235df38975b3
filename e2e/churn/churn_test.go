package churn

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftmesh/weft/e2e/prober"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

var (
	web1 = Endpoint{"acme/web-1", "web", "fra1", "", addr("fd00:0:0:1::2")}
	web2 = Endpoint{"acme/web-2", "web", "ams1", "", addr("fd00:0:0:1::12")}
	db   = Endpoint{"acme/db", "db", "fra1", "", addr("fd00:0:0:1::22")}
	shop = Endpoint{"globex/shop", "shop", "fra1", "", addr("fd00:0:0:2::2")}
	cart = Endpoint{"globex/cart", "web", "ams1", "", addr("fd00:0:0:2::12")}
	lap  = Endpoint{"acme/lap", "", "", "", addr("fd00:0:0:1::32")}
)

func scene() Scene {
	return Scene{
		Endpoints: []Endpoint{web1, web2, db, shop, cart, lap},
		Grants:    []Grant{{From: "acme", To: "globex", Port: Port}},
		Hosts:     map[string]HostAddresses{"fra1": {addr("192.0.2.1"), []netip.Addr{addr("fd00::1")}}},
		Apps:      map[string][]string{"acme": {"web", "db"}, "globex": {"shop", "web"}},
	}
}

// Who must reach whom, and who must not.
func TestCases(t *testing.T) {
	t.Parallel()
	s := scene()
	find := func(from Endpoint, to, kind string, port uint16) Verdict {
		t.Helper()
		for _, c := range s.Cases(from) {
			if c.To.Key == to && c.Question.Kind == kind && c.Question.To.Port() == port && !c.Question.Source.IsValid() {
				return c.Want
			}
		}
		t.Fatalf("%s has no question to %s", from, to)
		return Either
	}
	for _, tt := range []struct {
		from Endpoint
		to   string
		kind string
		port uint16
		want Verdict
	}{
		{web1, web2.Key, prober.TCP, Port, Reached}, {web1, lap.Key, prober.UDP, Port, Reached}, {lap, db.Key, prober.Echo, 0, Reached},
		{web1, shop.Key, prober.TCP, Port, Reached}, {web1, shop.Key, prober.TCP, OtherPort, Refused}, {web1, shop.Key, prober.UDP, Port, Refused},
		{shop, web1.Key, prober.TCP, Port, Refused}, {shop, web1.Key, prober.Echo, 0, Refused}, {shop, cart.Key, prober.Echo, 0, Reached},
		{web1, "fra1", prober.TCP, Port, Refused}, {shop, "fra1", prober.UDP, Port, Refused},
	} {
		if got := find(tt.from, tt.to, tt.kind, tt.port); got != tt.want {
			t.Errorf("%s to %s by %s %d: %v, want %v", tt.from, tt.to, tt.kind, tt.port, got, tt.want)
		}
	}
	s.Changing = s.Grants
	if got := find(web1, shop.Key, prober.TCP, Port); got != Reached {
		t.Errorf("a grant that was just created: %v", got)
	}
	s.Grants = nil
	if got := find(web1, shop.Key, prober.TCP, Port); got != Ceased {
		t.Errorf("a grant that is being removed: %v", got)
	}
	if got := find(web1, shop.Key, prober.UDP, Port); got != Refused {
		t.Errorf("beside a grant that is being removed: %v", got)
	}
	if got := find(shop, cart.Key, prober.TCP, Port); got != Reached {
		t.Errorf("within an org: %v", got)
	}
	spoofs := map[string]netip.Addr{}
	for _, c := range s.Cases(web1) {
		if c.Question.Source.IsValid() {
			spoofs[c.To.Key] = c.Question.Source
		}
	}
	if diff := cmp.Diff(map[string]netip.Addr{db.Key: web2.Address, cart.Key: shop.Address}, spoofs, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("spoofs (-want +got):\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		from     Endpoint
		cordoned string
		want     string
	}{
		{web1, "", "[db [fd00:0:0:1::22] 1] [shop [] 1] [web [fd00:0:0:1::2 fd00:0:0:1::12] 1]"},
		{shop, "", "[db [] 1] [shop [fd00:0:0:2::2] 1] [web [fd00:0:0:2::12] 1]"},
		{web1, "fra1", "[db [] 0] [shop [] 1] [web [fd00:0:0:1::12] 1]"},
	} {
		s := scene()
		s.Cordoned = tt.cordoned
		var got string
		for _, c := range s.NameCases(tt.from) {
			got += fmt.Sprintf(" [%s %v %d]", c.To.Key, c.Names, c.Want)
		}
		if got = got[1:]; got != tt.want {
			t.Errorf("%s, cordoned %q:\n got %s\nwant %s", tt.from, tt.cordoned, got, tt.want)
		}
	}
}

// What is allowed must work at quiet moments; what is not, never.
func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ok, silent := prober.Answer{OK: true, Began: now}, prober.Answer{Error: "nothing came back", Began: now}
	at := func(e Endpoint) prober.Question {
		return prober.Question{Kind: prober.UDP, To: netip.AddrPortFrom(e.Address, Port)}
	}
	name := Case{From: web1, To: Endpoint{Key: "db"}, Want: Reached, Names: []netip.Addr{db.Address}, Question: prober.Question{Kind: prober.Name, Name: "global.db.internal"}}
	unsure := name
	unsure.Want = Either
	flushed := []Window{{Host: "fra1", From: now.Add(-time.Second)}}
	moving := web2
	moving.Was = "fra1"
	healed := []Window{{Host: "fra1", From: now.Add(-time.Minute), To: now.Add(-time.Second)}}
	for _, tt := range []struct {
		name    string
		c       Case
		a       prober.Answer
		quiet   bool
		windows []Window
		want    string
	}{
		{"reached", Case{From: web1, To: db, Question: at(db), Want: Reached}, ok, true, nil, ""},
		{"not reached", Case{From: web1, To: db, Question: at(db), Want: Reached}, silent, true, nil, Unreached},
		{"not reached yet", Case{From: web1, To: db, Question: at(db), Want: Reached}, silent, false, nil, ""},
		{"refused", Case{From: web1, To: shop, Question: at(shop), Want: Refused}, silent, true, nil, ""},
		{"not refused", Case{From: web1, To: shop, Question: at(shop), Want: Refused}, ok, false, nil, Forbidden},
		{"no firewall", Case{From: web1, To: shop, Question: at(shop), Want: Refused}, ok, false, flushed, ""},
		{"firewall again", Case{From: web1, To: shop, Question: at(shop), Want: Refused}, ok, false, healed, Forbidden},
		{"no firewall elsewhere", Case{From: web1, To: cart, Question: at(cart), Want: Refused}, ok, false, flushed, Forbidden},
		{"moves from where there is no firewall", Case{From: moving, To: shop, Question: at(shop), Want: Refused}, ok, false, flushed, ""},
		{"host without a firewall", Case{From: web2, To: Endpoint{Key: "fra1", Host: "fra1"}, Question: at(web1), Want: Refused}, ok, false, flushed, ""},
		{"grant under way", Case{From: web1, To: shop, Question: at(shop), Want: Ceased}, ok, false, nil, ""},
		{"grant removed", Case{From: web1, To: shop, Question: at(shop), Want: Ceased}, silent, true, nil, ""},
		{"grant outlasts its removal", Case{From: web1, To: shop, Question: at(shop), Want: Ceased}, ok, true, nil, Outlasts},
		{"either", Case{From: web1, To: shop, Question: at(shop), Want: Either}, ok, true, nil, ""},
		{"name", name, prober.Answer{OK: true, Addresses: []netip.Addr{db.Address}}, true, nil, ""},
		{"name of a dead one", name, prober.Answer{OK: true, Addresses: []netip.Addr{db.Address, web2.Address}}, true, nil, Misnamed},
		{"empty name", name, prober.Answer{OK: true}, true, nil, Misnamed},
		{"no answer", name, silent, true, nil, Misnamed},
		{"no answer yet", name, silent, false, nil, ""},
		{"unsure", unsure, prober.Answer{OK: true}, true, nil, ""},
	} {
		var got string
		for _, f := range Judge([]Case{tt.c}, []prober.Answer{tt.a}, tt.quiet, tt.windows) {
			got += f.What
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestJudgeHeard(t *testing.T) {
	t.Parallel()
	s := scene()
	now := time.Now()
	addresses, where := map[string][]netip.Addr{}, map[string]Endpoint{}
	for _, e := range s.Endpoints {
		addresses[e.Key], where[e.Key] = []netip.Addr{e.Address}, e
	}
	from := func(who Endpoint, as netip.Addr, kind string, port uint16) prober.Heard {
		return prober.Heard{Kind: kind, Port: port, From: as, Who: who.Key, Count: 1, First: now, Last: now}
	}
	host := Endpoint{Key: "ams1", Host: "ams1"}
	for _, tt := range []struct {
		name string
		at   Endpoint
		h    prober.Heard
		want string
	}{
		{"own org", db, from(web1, web1.Address, prober.UDP, Port), ""},
		{"as another of the org", db, from(web1, web2.Address, prober.UDP, Port), Spoofed},
		{"another org", web2, from(shop, shop.Address, prober.UDP, Port), Forbidden},
		{"another org as the own", web2, from(shop, web1.Address, prober.UDP, Port), Spoofed},
		{"granted", cart, from(web1, web1.Address, prober.TCP, Port), ""},
		{"granted on another port", cart, from(web1, web1.Address, prober.TCP, OtherPort), Forbidden},
		{"a host", host, from(web1, web1.Address, prober.TCP, Port), Forbidden},
		{"somebody", web1, prober.Heard{Kind: prober.UDP, Port: Port, From: web2.Address}, Forbidden},
	} {
		var got string
		for _, f := range s.JudgeHeard(Listener{tt.at, []prober.Heard{tt.h}}, addresses, where, nil) {
			got += f.What
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	s.Changing, s.Grants = s.Grants, nil
	if got := s.JudgeHeard(Listener{cart, []prober.Heard{from(web1, web1.Address, prober.TCP, Port)}}, addresses, where, nil); got != nil {
		t.Errorf("by a grant that is being removed: %v", got)
	}
	flushed := []Window{{Host: "fra1", From: now.Add(-time.Second)}}
	spoof := Listener{db, []prober.Heard{from(web1, web2.Address, prober.UDP, Port)}}
	if got := s.JudgeHeard(spoof, addresses, where, flushed); got != nil {
		t.Errorf("without a firewall: %v", got)
	}
	spoof.Endpoint = web2
	if got := s.JudgeHeard(spoof, addresses, where, flushed); got != nil {
		t.Errorf("from a host without a firewall: %v", got)
	}
	spoof.Heard[0] = from(web2, web1.Address, prober.UDP, Port) // whose host has one
	if got := s.JudgeHeard(spoof, addresses, where, flushed); len(got) != 1 {
		t.Errorf("from a host with a firewall: %v", got)
	}
}

func state() State {
	s := State{Regions: map[string]string{"fra1": "fra", "ams1": "ams", "nrt1": "nrt"}, Orgs: map[string][]string{"acme": {"fra1", "ams1", "nrt1"}, "globex": {"fra1"}},
		Machines: map[string]Machine{}, Laptops: map[string]Laptop{"acme/lap": {Up: true}}, Agents: map[string]bool{},
		Controllers: map[string]bool{"ctl": true}, Members: map[string]bool{"etcd1": true, "etcd2": true, "etcd3": true}, Harmed: map[Pair]bool{}}
	for host := range s.Regions {
		s.Agents[host] = true
		s.Machines["acme/web-"+host] = Machine{App: "web", Host: host, Home: host, Runs: true}
	}
	s.Machines["globex/shop"] = Machine{App: "shop", Host: "fra1", Home: "fra1", Runs: true}
	return s
}

// The same seed draws the same; every kind comes; what is drawn can be done; and the
// way home leads home.
func TestDraw(t *testing.T) {
	t.Parallel()
	history := func(seed uint64, n int) (ops []Operation, s State) {
		s = state()
		r := rand.New(rand.NewPCG(seed, 0))
		for i := range n {
			op := Draw(r, s, nil)
			if m := s.Machines[op.On]; op.Kind == MoveMachine && (!m.Runs || m.Host == op.To || !s.Agents[op.To]) {
				t.Errorf("%s, in %+v", op, s)
			}
			if slices.Contains([]Kind{CreateOrg, RemoveOrg, CreateGrant, RemoveGrant, Cordon}, op.Kind) && (!s.Controllers["ctl"] || !s.Members["etcd1"]) {
				t.Errorf("%s without a controller or a member of etcd", op)
			}
			if op.Kind == KillMember && (!s.Members["etcd1"] || !s.Members["etcd2"] || !s.Members["etcd3"]) {
				t.Errorf("%s, in %+v", op, s)
			}
			ops, s = append(ops, op), s.After(op)
			if i%5 == 4 {
				s = s.Amends()
			}
		}
		return ops, s
	}
	seen := map[Kind]int{}
	for seed := range uint64(20) {
		ops, s := history(seed, 200)
		again, _ := history(seed, 200)
		if diff := cmp.Diff(ops, again); diff != "" {
			t.Fatalf("seed %d (-first +second):\n%s", seed, diff)
		}
		for _, op := range ops {
			seen[op.Kind]++
		}
		s = s.Amends()
		for _, op := range s.Homeward() {
			s = s.After(op)
		}
		s = s.Amends()
		want := state()
		want.Temporary = s.Temporary
		if diff := cmp.Diff(want, s, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("seed %d: at home (-want +got):\n%s", seed, diff)
		}
	}
	for _, w := range weights {
		if seen[w.kind] == 0 {
			t.Errorf("never drawn: %s", w.kind)
		}
	}
	without := map[Kind]bool{CreateGrant: true}
	for r := rand.New(rand.NewPCG(1, 1)); seen[KillAgent] > 0; seen[KillAgent]-- {
		if op := Draw(r, state(), without); op.Kind == CreateGrant {
			t.Fatal(op)
		}
	}
}

// A host's reboot ends its machines. One that was on its way there is to run where it
// was, whether it had arrived or not.
func TestReboot(t *testing.T) {
	t.Parallel()
	move := Operation{Kind: MoveMachine, On: "acme/web-fra1", To: "ams1"}
	reboot := func(host string) Operation { return Operation{Kind: RebootHost, On: host} }
	quiet := Operation{}
	for _, tt := range []struct {
		name string
		ops  []Operation
		want string
	}{
		{"its host", []Operation{reboot("fra1")}, "fra1 false"},
		{"another host", []Operation{reboot("ams1")}, "fra1 true"},
		{"where it goes", []Operation{move, reboot("ams1")}, "fra1 true"},
		{"from where it goes", []Operation{move, reboot("fra1")}, "ams1 true"},
		{"both", []Operation{move, reboot("ams1"), reboot("fra1")}, "fra1 false"},
		{"where it has arrived", []Operation{move, quiet, reboot("ams1")}, "ams1 false"},
	} {
		s := state()
		for _, op := range tt.ops {
			if s = s.After(op); op == quiet {
				s = s.Amends()
			}
		}
		m := s.Machines["acme/web-fra1"]
		if got := fmt.Sprint(m.Host, " ", m.Runs); got != tt.want {
			t.Errorf("%s reboots: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestGrown(t *testing.T) {
	t.Parallel()
	first := Census{"fra1 agent fds": 20, "fra1 links": 5, "fra1 agent rss": 100, "ams1 routes": 3}
	bounds := []Bound{{Of: " fds", Share: 0.1, Plus: 2}, {Of: " rss", Share: 0.5}}
	for _, tt := range []struct {
		name string
		now  Census
		want []string
	}{
		{"the same", first, nil},
		{"within bounds", Census{"fra1 agent fds": 24, "fra1 links": 5, "fra1 agent rss": 150, "ams1 routes": 3}, nil},
		{"less", Census{"fra1 agent fds": 1, "fra1 links": 5, "fra1 agent rss": 1, "ams1 routes": 3}, nil},
		{"more", Census{"fra1 agent fds": 25, "fra1 links": 6, "fra1 agent rss": 151, "ams1 routes": 3, "nrt1 files": 1}, []string{
			"fra1 agent fds: 25, was 20, and may be at most 24", "fra1 agent rss: 151, was 100, and may be at most 150",
			"fra1 links: 6, was 5", "nrt1 files: 1, was 0"}},
		{"gone", Census{"fra1 agent fds": 20, "fra1 links": 5, "fra1 agent rss": 100}, []string{"ams1 routes: 0, was 3"}},
	} {
		if diff := cmp.Diff(tt.want, Grown(first, tt.now, bounds)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
