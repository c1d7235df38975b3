package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/mesh/agent/local"
)

// Looking into a running host's names: explained with the age of each fact, for the
// host and for a machine; logged; counted.
func TestNamesCanBeLookedInto(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c := newControl(t)
	a := newNode(t, c, "a")
	a.cfg.QueryLog, a.cfg.Metrics = true, "127.0.0.1:9551"
	upstream, asked := sinkhole(t)
	a.cfg.DNSRules = map[string][]netip.AddrPort{"corp.example": {upstream}}
	a.start()
	eventually(t, 10*time.Second, "a has joined", func() bool { return a.status().Connected })
	b := newNode(t, c, "b").start()
	eventually(t, 10*time.Second, "b has joined", func() bool { return b.status().Connected })
	newWorkload(t).attach(a, local.AttachRequest{Org: "acme", App: "web", ID: "web1"})
	newWorkload(t).attach(b, local.AttachRequest{Org: "acme", App: "web", ID: "web2"})
	db := newWorkload(t).attach(a, local.AttachRequest{Org: "acme", App: "db", ID: "db"})
	eventually(t, 10*time.Second, "a has measured b and knows web2", func() bool {
		return a.peer("b").State == local.PeerOK && len(a.digs("acme", "global.web.internal")) == 2
	})

	x, err := a.client().Explain(context.Background(), "acme", "", "global.web.internal", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(x.Machines) != 2 || x.Node != "host/a" || x.Rcode != "NOERROR" || !x.Connected || x.ViewAge > 10*time.Second || x.Source == db.stay.Address {
		t.Fatalf("%+v", x)
	}
	here, there := x.Machines[0], x.Machines[1]
	if here.Machine != "web1" || here.Basis != "here" || here.Position != 1 || there.Machine != "web2" || there.Host != "b" || there.Position != 2 {
		t.Errorf("order: %+v", x.Machines)
	}
	if there.Basis != "measured" || there.Distance <= 0 || there.HostState != local.PeerOK || there.AnsweredAge == nil || *there.AnsweredAge > 5*time.Second || there.SuspectAge != nil {
		t.Errorf("web2: %+v", there)
	}
	x, err = a.client().Explain(context.Background(), "acme", "db", "web.internal", "AAAA")
	if err != nil || x.As != "db" || x.Source != db.stay.Address || len(x.Machines) != 2 {
		t.Errorf("asked by db: %+v, %v", x, err)
	}
	eventually(t, 10*time.Second, "the coordinate is told", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		r := c.reports["host/a"]
		return r.Coordinate != nil && r.Coordinate.Validate() == nil
	})

	// A domain with a resolver of its own; the others are asked of nobody who answers.
	if got := db.lookup("x.corp.example"); len(got) == 0 || asked() == 0 {
		t.Errorf("x.corp.example: %v, asked %d times", got, asked())
	}
	before := asked()
	if db.lookup("x.example"); asked() != before {
		t.Error("x.example went to the resolver of corp.example")
	}

	eventually(t, 5*time.Second, "the queries are logged", func() bool {
		text := c.text.String()
		return strings.Contains(text, `msg="dns query" node=a source=`+db.stay.Address.String()+` name=x.corp.example. type=AAAA rcode=`)
	})
	top, err := a.client().Top(context.Background())
	if err != nil || !slices.ContainsFunc(top.Names, func(n local.TopName) bool { return n.Name == "x.corp.example." && n.Count > 0 }) {
		t.Errorf("top names: %v, %v", top, err)
	}
	for _, want := range []string{
		"weft_agent_dns_upstream_failures_total ", "weft_agent_dns_answer_duration_seconds_count{from=\"memory\"} ",
		"weft_agent_coordinate_error ", "weft_agent_dns_answers_total{rcode=\"NOERROR\"} ",
	} {
		if text := scrape(t, "http://127.0.0.1:9551/metrics"); !strings.Contains(text, "\n"+want) {
			t.Errorf("not in the metrics: %s", want)
		}
	}
}

// sinkhole takes DNS queries and answers none.
func sinkhole(t *testing.T) (at netip.AddrPort, asked func() int) {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	count, done := make(chan int, 1), make(chan struct{})
	count <- 0
	go func() {
		defer close(done)
		for {
			if _, _, err := conn.ReadFromUDPAddrPort(make([]byte, 512)); err != nil {
				return
			}
			count <- <-count + 1
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), func() int { n := <-count; count <- n; return n }
}

func scrape(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatal(fmt.Sprint(r.Status, err))
	}
	return string(b)
}
