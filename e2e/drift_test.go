package e2e

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weftmesh/weft/e2e/world"
)

// drifted is a mesh of three hosts of which one is tampered with.
type drifted struct {
	*testing.T
	*world.World
	fra      *world.Host
	machine  *world.Machine // on fra1
	link     string         // its
	ams, nrt string         // keys of the other hosts
	read     int            // bytes of fra1's log
}

// plane runs a command in fra1's data plane.
func (d *drifted) plane(args ...string) string {
	d.Helper()
	out, err := d.fra.Run(d.Context(), "ip", append([]string{"netns", "exec", "weft"}, args...)...)
	if err != nil {
		d.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return out
}

// state is what the plane holds, as the tools print it, without what changes by
// itself.
func (d *drifted) state() (string, error) {
	var all []string
	for _, c := range [][]string{
		{"wg", "show", "weft0", "allowed-ips"}, {"ip", "-6", "-o", "route", "show", "table", "main"}, {"ip", "-6", "-o", "addr", "show"}, {"ip", "-6", "rule"},
		{"ip", "-o", "link", "show"}, {"nft", "-s", "list", "table", "inet", "weft"},
		{"cat", "/proc/sys/net/ipv6/conf/all/forwarding"},
	} {
		out, err := d.fra.Run(d.Context(), "ip", append([]string{"netns", "exec", "weft"}, c...)...)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, " limit rate ") && !strings.Contains(line, "update @") {
				continue // what the kernel counts of endpoints comes and goes
			}
			// The tools number what is made anew, and a prefix list has no order.
			line = regexp.MustCompile(`^\d+: |\bindex \d+|@if\d+|link/ether \S+|link-netnsid \d+`).ReplaceAllString(line, "")
			words := strings.Fields(line)
			if c[0] == "wg" {
				slices.Sort(words)
			}
			all = append(all, strings.Join(words, " "))
		}
	}
	slices.Sort(all)
	return strings.Join(all, "\n"), nil
}

// changes are the lines about changes that fra1's agent has logged since the last
// call, as "what: change".
func (d *drifted) changes() (out []string) {
	d.Helper()
	log, err := os.ReadFile(d.fra.Agent.LogFile())
	if err != nil {
		d.Fatal(err)
	}
	end := strings.LastIndexByte(string(log), '\n') + 1
	for line := range strings.Lines(string(log[d.read:end])) {
		msg, change := logField(line, "msg"), logField(line, "change")
		switch {
		case change != "":
			out = append(out, msg+": "+change)
		case strings.HasPrefix(msg, "firewall: "):
			out = append(out, msg+logField(line, "why")+strings.TrimSuffix(" +"+logField(line, "added")+" -"+logField(line, "removed"), " + -"))
		case msg == "WireGuard link made", strings.Contains(msg, "is lost"):
			out = append(out, msg)
		}
	}
	d.read = end
	return out
}

// logField is a value of a line of slog's text.
func logField(line, key string) string {
	m := regexp.MustCompile(`(?:^| )` + key + `=("(?:[^"\\]|\\.)*"|\S+)`).FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	if text, err := strconv.Unquote(m[1]); err == nil {
		return text
	}
	return m[1]
}

// session is a peer's handshake and counters.
type session struct{ handshake, rx, tx int64 }

func (d *drifted) session(key string) (s session) {
	d.Helper()
	for line := range strings.Lines(d.plane("wg", "show", "weft0", "dump")) {
		if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) == 8 && f[0] == key {
			s.handshake, _ = strconv.ParseInt(f[4], 10, 64)
			s.rx, _ = strconv.ParseInt(f[5], 10, 64)
			s.tx, _ = strconv.ParseInt(f[6], 10, 64)
		}
	}
	return s
}

// drift is one thing that somebody does to a host, and what the agent does about it.
type drift struct {
	name string
	do   func(d *drifted)
	want []string // as changes has them; KEY is ams1's, LINK the machine's link
	// breaks: nothing of the host's own can go on meanwhile; anew: its sessions begin
	// again, too.
	breaks, anew bool
}

func drifts(mesh, own, ams, endpoint string) []drift {
	run := func(args ...string) func(d *drifted) { return func(d *drifted) { d.plane(args...) } }
	addRoutes := []string{"link: add route " + ams + " dev weft0"}
	return []drift{
		{name: "wg: peer removed", do: func(d *drifted) { d.plane("wg", "set", "weft0", "peer", d.ams, "remove") },
			want: []string{"tunnel: add KEY endpoint=… +… +" + ams}},
		{name: "wg: allowed IPs taken", do: func(d *drifted) { d.plane("wg", "set", "weft0", "peer", d.ams, "allowed-ips", "") },
			want: []string{"tunnel: move KEY +… +" + ams}},
		{name: "wg: a stranger added", do: func(d *drifted) {
			d.plane("wg", "set", "weft0", "peer", "c3RyYW5nZXIgc3RyYW5nZXIgc3RyYW5nZXIgc3RyYWE=", "allowed-ips", "fd77::/64")
		}, want: []string{"tunnel: drop c3RyYW5nZXIgc3RyYW5nZXIgc3RyYW5nZXIgc3RyYWE= -fd77::/64", "tunnel: remove c3RyYW5nZXIgc3RyYW5nZXIgc3RyYW5nZXIgc3RyYWE="}},
		{name: "ip route del", do: run("ip", "-6", "route", "del", ams, "dev", "weft0"), want: addRoutes},
		{name: "ip route add", do: run("ip", "-6", "route", "add", mesh+":77::/64", "dev", "weft0", "proto", "119"),
			want: []string{"link: drop route " + mesh + ":77::/64 dev weft0"}},
		{name: "ip route del unreachable", do: run("ip", "-6", "route", "del", "unreachable", mesh+"::/48"), want: []string{"link: add unreachable " + mesh + "::/48"}},
		{name: "ip addr del", do: run("ip", "-6", "addr", "del", own+"/128", "dev", "lo"), want: []string{"link: set address " + own + "/128 on lo"}},
		{name: "ip addr add", do: run("ip", "-6", "addr", "add", mesh+":77::1/128", "dev", "lo", "nodad"), want: []string{"link: drop address " + mesh + ":77::1/128 on lo"}},
		{name: "ip rule add", breaks: true, do: run("ip", "-6", "rule", "add", "prio", "100", "unreachable"), want: []string{"link: drop rule 100 (of somebody else)"}},
		{name: "ip rule del", breaks: true, do: run("ip", "-6", "rule", "del", "prio", "32766"), want: []string{"link: add rule 32766 lookup main"}},
		// What is on it goes with it.
		{name: "ip link set lo down", do: run("ip", "link", "set", "lo", "down"), want: slices.Concat(
			[]string{"link: add unreachable " + mesh + "::/48", "link: set lo up"}, slices.Repeat([]string{"link: set address … on lo"}, 4))},
		{name: "ip netns del", do: func(d *drifted) {
			if _, err := d.fra.Run(d.Context(), "ip", "netns", "del", "weft"); err != nil {
				d.Fatal(err)
			}
		}, want: []string{"link: name namespace weft"}},
		{name: "ip link set name", breaks: true, do: run("ip", "link", "set", "weft0", "name", "other0"), want: []string{"link: name weft0 again"}},
		{name: "machine's link named", breaks: true, do: func(d *drifted) { d.plane("ip", "link", "set", d.link, "name", "other1") }, want: []string{"link: name LINK again"}},
		{name: "ip link set alias", do: run("ip", "link", "set", "weft0", "alias", "mine"), want: []string{"link: set alias \"weft device weft0\" on weft0"}},
		{name: "machine's alias", do: func(d *drifted) { d.plane("ip", "link", "set", d.link, "alias", "") },
			want: []string{"machine's link put right: set alias \"weft machine acme/web-fra1\" on LINK"}},
		{name: "ip link set mtu", do: run("ip", "link", "set", "weft0", "mtu", "1300"), want: []string{"link: set mtu 1420 on weft0"}},
		{name: "ip link set down", breaks: true, do: run("ip", "link", "set", "weft0", "down"), want: []string{"link: set weft0 up", "link: add route … dev weft0", "link: add route … dev weft0", "link: add route … dev weft0", "link: add route … dev weft0"}},
		// The process that holds the userspace device ends with it, and another one is started.
		{name: "ip link del", breaks: true, anew: true, do: run("ip", "link", "del", "weft0"), want: slices.Concat([]string{
			"the device's process is lost, and another one is started", "WireGuard link made", "tunnel: set-device port=51820", "tunnel: add … endpoint=… +…", "tunnel: add … endpoint=… +…", "link: set alias \"weft device weft0\" on weft0", "link: set weft0 up",
		}, slices.Repeat([]string{"link: add route … dev weft0"}, 4))},
		{name: "nft flush table", breaks: true, do: run("nft", "flush", "table", "inet", "weft"), want: []string{"firewall: replaced…"}},
		{name: "nft flush ruleset", breaks: true, do: run("nft", "flush", "ruleset"), want: []string{"firewall: replacedthere was none"}},
		{name: "nft delete rule", breaks: true, do: func(d *drifted) {
			m := regexp.MustCompile(`(?m)accept.*# handle (\d+)`).FindStringSubmatch(d.plane("nft", "-a", "list", "chain", "inet", "weft", "forward"))
			d.plane("nft", "delete", "rule", "inet", "weft", "forward", "handle", m[1])
		}, want: []string{"firewall: replacedchain forward had…"}},
		{name: "nft add element", do: run("nft", "add", "element", "inet", "weft", "links", `{ "stranger" }`), want: []string{"firewall: updated +0 -1"}},
		{name: "sysctl forwarding", breaks: true, do: run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"),
			want: []string{"link: set sysctl net/ipv6/conf/default/forwarding \"1\"", "link: set sysctl net/ipv6/conf/all/forwarding \"1\""}},
		{name: "machine's address gone", do: func(d *drifted) { d.plane("ip", "-6", "addr", "del", "fe80::1/64", "dev", d.link) },
			want: []string{"machine's link put right: set address fe80::1/64 on LINK"}},
		{name: "machine's route gone", breaks: true, do: func(d *drifted) { d.plane("ip", "-6", "route", "del", endpoint, "dev", d.link) },
			want: []string{"machine's link put right: add route " + endpoint + " dev LINK"}},
		{name: "machine's link down", breaks: true, do: func(d *drifted) { d.plane("ip", "link", "set", d.link, "down") },
			want: []string{"machine's link put right: set LINK up", "machine's link put right: set address fe80::1/64 on LINK", "machine's link put right: add route " + endpoint + " dev LINK"}},
		{name: "machine's MTU", do: func(d *drifted) { d.plane("ip", "link", "set", d.link, "mtu", "1290") },
			want: []string{"machine's link put right: set mtu 1420 on LINK"}},
		{name: "machine's link deleted", breaks: true, do: func(d *drifted) { d.plane("ip", "link", "del", d.link) },
			want: []string{"machine's link put right: attach LINK"}},
	}
}

// Whatever somebody does to a host's data plane is put right within seconds by the
// change that it takes and no other, told once, and nothing else is touched.
func TestDrift(t *testing.T) {
	t.Parallel()
	need(t, "ip", "wg", "nft", "ping", "nsenter", "curl")
	w := newWorld(t, world.Config{AgentFlags: []string{"--backend", "userspace"}}, "fra1", "ams1", "nrt1")
	web := map[string]*world.Machine{}
	for _, h := range []string{"fra1", "ams1", "nrt1"} {
		web[h] = start(t, w, h, "acme", "web", "web-"+h)
	}
	d := &drifted{T: t, World: w, fra: w.Hosts["fra1"], machine: web["fra1"]}
	await(t, "everybody reaches everybody", 20*time.Second, func(ctx context.Context) error {
		for _, a := range web {
			for _, b := range web {
				if err := reach(ctx, a, b); a != b && err != nil {
					return err
				}
			}
		}
		return nil
	})
	s, err := w.Status(t.Context(), d.fra)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Peers {
		switch p.Name {
		case "host/ams1":
			d.ams = p.Key
		case "host/nrt1":
			d.nrt = p.Key
		}
	}
	d.link = s.Machines[0].Link
	mesh := strings.TrimSuffix(s.Prefix.String(), "::/48")
	if d.ams == "" || d.nrt == "" || mesh == s.Prefix.String() {
		t.Fatalf("status: %+v", s)
	}
	calm := d.calm()
	d.changes()
	for _, x := range drifts(mesh, s.Address.String(), homeOf(web["ams1"].Address.String()), d.machine.Endpoint()) {
		d.row(x, calm, web)
	}
	d.fight(homeOf(web["ams1"].Address.String()))
}

// calm waits until the plane is the same twice.
func (d *drifted) calm() string {
	d.Helper()
	last := ""
	await(d.T, "the plane to be calm", 10*time.Second, func(context.Context) error {
		now, err := d.state()
		if err != nil || now == last {
			return err
		}
		last = now
		return fmt.Errorf("it is still changing")
	})
	return last
}

const healWithin = 6 * time.Second

func (d *drifted) row(x drift, calm string, web map[string]*world.Machine) {
	d.Helper()
	before := d.session(d.nrt)
	// Between two others, and, if anything of the host itself can go on, with the host
	// that nobody touches.
	streams := []func() error{d.stream(web["ams1"], web["nrt1"])}
	if !x.breaks {
		streams = append(streams, d.stream(web["fra1"], web["nrt1"]))
	}
	began := time.Now()
	x.do(d)
	tampered, err := d.state()
	if err == nil && tampered == calm {
		d.Logf("%s: put right before it was seen", x.name)
	}
	now := ""
	await(d.T, x.name+": to be put right", healWithin, func(context.Context) (err error) {
		if now, err = d.state(); err == nil && now != calm {
			err = fmt.Errorf("it is\n%s\nwant\n%s", now, calm)
		}
		return err
	})
	took := time.Since(began)
	for _, end := range streams {
		if err := end(); err != nil {
			d.Errorf("%s: a stream that it does not concern: %v", x.name, err)
		}
	}
	if x.breaks {
		await(d.T, x.name+": the way to another host", healWithin, func(ctx context.Context) error { return reach(ctx, web["fra1"], web["nrt1"]) })
	}
	after := d.session(d.nrt)
	if !x.anew && (after.handshake < before.handshake || after.rx < before.rx || after.tx < before.tx) {
		d.Errorf("%s: the session of another peer was %+v and is %+v", x.name, before, after)
	}
	var got []string
	await(d.T, x.name+": to be told", healWithin, func(context.Context) error {
		if got = append(got, d.changes()...); len(got) < len(x.want) {
			return fmt.Errorf("told: %q", got)
		}
		return nil
	})
	match := len(got) == len(x.want)
	for i := range min(len(got), len(x.want)) {
		match = match && told(got[i], x.want[i], d)
	}
	if !match {
		d.Errorf("%s: told\n  %s\nwant\n  %s", x.name, strings.Join(got, "\n  "), strings.Join(x.want, "\n  "))
	}
	d.Logf("%-26s put right after %4d ms: %s", x.name, took.Milliseconds(), strings.Join(got, "; "))
}

// told compares a line with a pattern, in which … stands for anything.
func told(got, want string, d *drifted) bool {
	want = strings.NewReplacer("KEY", d.ams, "LINK", d.link).Replace(want)
	want = strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".*")
	return regexp.MustCompile("^" + want + "$").MatchString(got)
}

// stream pings until the function that it returns is called, which tells of losses.
func (d *drifted) stream(from, to *world.Machine) (end func() error) {
	d.Helper()
	ctx, cancel := context.WithCancel(d.Context())
	done := make(chan error, 1)
	go func() {
		sent := 0
		for ctx.Err() == nil {
			// Until ten answers have come: without -w, ping waits for the last one as long as two
			// of the others took, which is not always enough on a busy machine.
			out, err := from.In(d.Context(), "ping", "-i", "0.02", "-c", "10", "-w", "3", to.Address.String())
			if sent += 10; err != nil || !allBack(out, 10) {
				done <- fmt.Errorf("%s to %s, after %d: %v %s", from.Address, to.Address, sent, err, out)
				return
			}
		}
		done <- nil
	}()
	return func() error { cancel(); return <-done }
}

// allBack reports whether each of the first n echoes of a ping has an answer.
func allBack(out string, n int) bool {
	for i := 1; i <= n; i++ {
		if !strings.Contains(out, fmt.Sprintf("icmp_seq=%d ", i)) {
			return false
		}
	}
	return true
}

// Somebody who keeps changing the same thing is told of, and costs little.
func (d *drifted) fight(route string) {
	d.Helper()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				d.fra.Run(d.Context(), "ip", "netns", "exec", "weft", "ip", "-6", "route", "del", route, "dev", "weft0")
			}
		}
	}()
	await(d.T, "somebody else to be told of", 10*time.Second, func(ctx context.Context) error {
		s, err := d.Status(ctx, d.fra)
		if err == nil && !strings.Contains(strings.Join(s.Problems, "\n"), "routes: something else keeps changing it") {
			err = fmt.Errorf("problems: %q", s.Problems)
		}
		return err
	})
	d.changes()
	began := time.Now()
	await(d.T, "some more of it", 10*time.Second, func(context.Context) error {
		if time.Since(began) < 3*time.Second {
			return fmt.Errorf("it goes on")
		}
		return nil
	})
	if n := len(d.changes()); n > 6 {
		d.Errorf("a fight took %d changes in 3 s", n)
	}
	close(stop)
	<-ended
	await(d.T, "the route to be there again", 15*time.Second, func(context.Context) error {
		if out := d.plane("ip", "-6", "route", "show", route); out == "" {
			return fmt.Errorf("no route %s", route)
		}
		return nil
	})
}
