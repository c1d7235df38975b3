package churn

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weftmesh/weft/e2e/prober"
)

// Ports of the probers' echoes. A grant names one of them.
const (
	Port      = 7
	OtherPort = 9
)

// Scene is who is there, and what else there is to be tried.
type Scene struct {
	Endpoints []Endpoint
	Grants    []Grant // that hold
	Changing  []Grant // that were created or removed a moment ago: not everybody knows
	Hosts     map[string]HostAddresses
	Cordoned  string
	Apps      map[string][]string // by org, all that it ever had
}

// HostAddresses are a host's own, where endpoints have no business: each has a prober
// behind it, so that whoever gets through is noticed.
type HostAddresses struct {
	Underlay netip.Addr
	Plane    []netip.Addr // in the data plane
}

// Verdict is what must come of a Case.
type Verdict int

// Verdicts. Refused holds at any time, Reached and Ceased at quiet moments.
const (
	Either Verdict = iota
	Reached
	Refused
	Ceased // refused once everybody knows that a grant was removed
)

// Case is one question to one endpoint, and what must come of it.
type Case struct {
	From     Endpoint
	To       Endpoint // who is asked: somebody, a host, or, of a Name, an app
	Question prober.Question
	Want     Verdict
	Names    []netip.Addr // of a Name that must be Reached: exactly these, sorted
}

// allowed says whether from may begin a flow to to's org.
func allowed(from, to string, kind string, port uint16, grants []Grant) bool {
	return from == to || kind == prober.TCP && slices.Contains(grants, Grant{from, to, port})
}

// verdict is what must come of a flow from one org to another. A quiet moment is
// waited for until those who have to know of a grant do: a laptop whose router has
// forgotten its connections hears of it only after it has missed the controllers.
func (s Scene) verdict(from, to string, kind string, port uint16) Verdict {
	switch {
	case allowed(from, to, kind, port, s.Grants):
		return Reached
	case allowed(from, to, kind, port, s.Changing):
		return Ceased
	}
	return Refused
}

// Cases are all that an endpoint is asked to try: everybody else in every way, the
// hosts, and what it has no right to send.
func (s Scene) Cases(from Endpoint) (out []Case) {
	for _, to := range s.Endpoints {
		if to.Key == from.Key {
			continue
		}
		add := func(kind string, port uint16) {
			out = append(out, Case{From: from, To: to, Want: s.verdict(from.Org(), to.Org(), kind, port),
				Question: prober.Question{Kind: kind, To: netip.AddrPortFrom(to.Address, port)}})
		}
		add(prober.TCP, Port)
		add(prober.UDP, Port)
		add(prober.Echo, 0)
		if from.Org() != to.Org() {
			add(prober.TCP, OtherPort) // what is granted on one port is not on the next
		}
	}
	out = append(out, s.hostCases(from)...)
	return append(out, s.spoofs(from)...)
}

// hostCases: hosts are there for machines, and serve them nothing but names.
func (s Scene) hostCases(from Endpoint) (out []Case) {
	if from.Host == "" {
		return nil // a laptop is on the underlay itself, and has the hosts' addresses from its gateway alone
	}
	for _, host := range slices.Sorted(keys(s.Hosts)) {
		h := s.Hosts[host]
		for _, at := range append([]netip.Addr{h.Underlay}, h.Plane...) {
			for _, kind := range []string{prober.TCP, prober.UDP} {
				out = append(out, Case{From: from, To: Endpoint{Key: host, Host: host}, Want: Refused,
					Question: prober.Question{Kind: kind, To: netip.AddrPortFrom(at, Port)}})
			}
		}
	}
	return out
}

// spoofs: nobody speaks as somebody else, neither to his own org nor to others. The
// answer goes to that one, so there is nothing to hope for; it is who is heard that
// counts.
func (s Scene) spoofs(from Endpoint) (out []Case) {
	if from.Host == "" {
		return nil // a laptop's tunnel has one source
	}
	for _, as := range s.Endpoints {
		for _, to := range s.Endpoints {
			if as.Key == from.Key || to.Key == from.Key || as.Key == to.Key || as.Org() != to.Org() {
				continue
			}
			// One of own org and one of each other, not the square of all.
			if slices.ContainsFunc(out, func(c Case) bool { return c.To.Org() == to.Org() }) {
				break
			}
			out = append(out, Case{From: from, To: to, Want: Refused,
				Question: prober.Question{Kind: prober.UDP, To: netip.AddrPortFrom(to.Address, Port), Source: as.Address}})
		}
	}
	return out
}

// NameCases are the names that an endpoint asks for: all of every app of its org, and
// what others have.
func (s Scene) NameCases(from Endpoint) (out []Case) {
	asked := map[string]bool{}
	for org, apps := range s.Apps {
		for _, app := range apps {
			if asked[app] {
				continue
			}
			asked[app] = true
			want, sure := s.members(from.Org(), app)
			c := Case{From: from, To: Endpoint{Key: app}, Want: Reached, Names: want, Question: prober.Question{Kind: prober.Name, Name: "global." + app + ".internal"}}
			if !sure && org == from.Org() {
				c.Want = Either
			}
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b Case) int { return strings.Compare(a.To.Key, b.To.Key) })
	return out
}

// members are the addresses of an app's machines that are in names, sorted. It is not
// sure when all of them are on a host that is cordoned.
func (s Scene) members(org, app string) (out []netip.Addr, sure bool) {
	left := 0
	for _, e := range s.Endpoints {
		if e.Org() != org || e.App != app {
			continue
		}
		if e.Host == s.Cordoned {
			left++
			continue
		}
		out = append(out, e.Address)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, left == 0 || len(out) > 0
}

// Window is a time in which a host's firewall was not there, because somebody took it
// away: what passes then passes within the host alone.
type Window struct {
	Host     string
	From, To time.Time // To is zero while it lasts
}

func (w Window) touches(from, to time.Time) bool {
	return !to.Before(w.From) && (w.To.IsZero() || !from.After(w.To))
}

// excused says whether what passed between two moments did so where there was no
// firewall: within that host, or to the host itself. From there anybody may also have
// spoken as somebody else who is there, to anywhere. A laptop may have been a guest of
// any host, a machine that moves is on two.
func excused(windows []Window, what string, from, to Endpoint, began, ended time.Time) bool {
	return slices.ContainsFunc(windows, func(w Window) bool {
		there := func(e Endpoint) bool {
			return e.Host == w.Host || e.Was == w.Host || e.App == "" && e.Host == ""
		}
		return w.touches(began, ended) && (there(from) && (there(to) || what == Spoofed) || there(to) && to.IsHost())
	})
}

// Judge says what of the answers must not be. Only at quiet moments must what is
// allowed work.
func Judge(cases []Case, answers []prober.Answer, quiet bool, windows []Window) (out []Finding) {
	for i, c := range cases {
		a := answers[i]
		if f, bad := c.judge(a, quiet); bad && (quiet && f.What != Forbidden || !excused(windows, f.What, c.From, c.To, a.Began, a.Began.Add(a.Took))) {
			out = append(out, f)
		}
	}
	return out
}

func (c Case) judge(a prober.Answer, quiet bool) (Finding, bool) {
	q := c.Question
	f := Finding{From: c.From.String(), To: c.To.Key}
	what := fmt.Sprintf("%s to %s", q.Kind, q.To)
	switch {
	case q.Kind == prober.Name:
		what = q.Name
		got := slices.Clone(a.Addresses)
		slices.SortFunc(got, netip.Addr.Compare)
		f.What, f.Detail = Misnamed, fmt.Sprintf("%s is %v, want %v; %s", what, got, c.Names, a.Error)
		return f, c.Want == Reached && quiet && (!a.OK || !slices.Equal(got, c.Names))
	case q.Source.IsValid():
		what += fmt.Sprintf(" as %s", q.Source)
	}
	switch {
	case c.Want == Reached && !a.OK && quiet:
		f.What, f.Detail = Unreached, what+": "+a.Error
		return f, true
	case c.Want == Refused && a.OK:
		f.What, f.Detail = Forbidden, what+" was answered in "+a.Took.Round(time.Microsecond).String()
		return f, true
	case c.Want == Ceased && a.OK && quiet:
		f.What, f.Detail = Outlasts, what+" was answered in "+a.Took.Round(time.Microsecond).String()
		return f, true
	}
	return f, false
}

// Listener is somebody who has heard: an endpoint, or a host (with its name as key).
type Listener struct {
	Endpoint
	Heard []prober.Heard
}

// JudgeHeard says what was heard by somebody who must not hear it. Addresses are all
// that each endpoint ever had, and where was each of them at the time, as far as is
// known.
func (s Scene) JudgeHeard(l Listener, addresses map[string][]netip.Addr, where map[string]Endpoint, windows []Window) (out []Finding) {
	for _, h := range l.Heard {
		f := Finding{From: h.Who, To: l.String(), Detail: fmt.Sprintf("heard %d times from %s over %s at port %d", h.Count, h.From, h.Kind, h.Port)}
		switch {
		case l.IsHost(), h.Who == "":
			f.What = Forbidden // a host serves nobody; and who speaks to probers says who it is
		case !slices.Contains(addresses[h.Who], h.From):
			f.What = Spoofed
		case s.verdict(OrgOf(h.Who), l.Org(), h.Kind, h.Port) == Refused:
			f.What = Forbidden
		default:
			continue
		}
		if !excused(windows, f.What, where[h.Who], l.Endpoint, h.First, h.Last) {
			out = append(out, f)
		}
	}
	return out
}
