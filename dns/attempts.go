package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
)

const (
	// hedge is how long one upstream is waited for before the next is asked as well.
	hedge = 500 * time.Millisecond
	// rounds is how often each upstream is asked over UDP before it counts as
	// unresponsive: a datagram can get lost (RFC 9520 section 3.1 allows three).
	rounds = 2
)

// errRemembered says that nobody was asked, because all have just failed.
var errRemembered = errors.New("all upstream resolvers failed a moment ago")

// upstreamQuery is one question as it is asked upstream.
type upstreamQuery struct {
	dns.Question
	do, cd bool
	key    string // what tells questions apart, in the cache and among failures
}

// attempt is what came of asking one server once.
type attempt struct {
	server netip.AddrPort
	msg    *dns.Msg
	err    error
}

// settles reports whether the question is answered: by records, or by the word that
// there are none.
func (a attempt) settles() bool {
	return a.err == nil && (a.msg.Rcode == dns.RcodeSuccess || a.msg.Rcode == dns.RcodeNameError)
}

// ask asks a route's servers, each a little after the one before it or as soon as
// that one has failed, and returns the first answer that settles the question. A
// server that answered an error is not asked again, and none that failed a moment
// ago: then the error is errRemembered.
func (f *Forwarder) ask(ctx context.Context, to *route, q upstreamQuery) (*dns.Msg, error) {
	servers := f.usable(to)
	if len(servers) == 0 {
		return nil, fmt.Errorf("forward %s: no upstream resolver", q.Name)
	}
	servers = slices.DeleteFunc(servers, func(s netip.AddrPort) bool { return f.failures.known(q.key, s) })
	if len(servers) == 0 {
		return nil, fmt.Errorf("forward %s: %w", q.Name, errRemembered)
	}
	asking, cancel := context.WithCancel(ctx)
	results := make(chan attempt, rounds*len(servers))
	queue, pending := slices.Repeat(servers, rounds), 0
	lame := map[netip.AddrPort]bool{} // they answered an error
	start := func() {
		for len(queue) > 0 {
			server := queue[0]
			if queue = queue[1:]; !lame[server] {
				pending++
				go func() { results <- f.attempt(asking, to, server, q) }()
				return
			}
		}
	}
	defer func() { // whoever is still asking ends with the context
		cancel()
		for ; pending > 0; pending-- {
			<-results
		}
	}()
	next := time.NewTicker(hedge)
	defer next.Stop()
	var second *dns.Msg // an error that a server did answer
	err := fmt.Errorf("forward %s: no answer", q.Name)
	for start(); pending > 0; {
		select {
		case <-next.C:
			start()
		case a := <-results:
			pending--
			if a.settles() {
				f.failures.forget(q.key, a.server)
				to.good.Store(&a.server)
				return a.msg, nil
			}
			if !errors.Is(ctx.Err(), context.Canceled) { // else the process ends
				f.upstreamErrors.Add(1)
				f.failures.note(q.key, a.server, to.failureMost())
			}
			if a.err == nil {
				second, lame[a.server] = a.msg, true
			} else {
				err = a.err
			}
			if len(queue) > (rounds-1)*len(servers) {
				start() // the others at once; again only after a pause
			}
		}
	}
	if second != nil {
		return second, nil
	}
	return nil, err
}

// attempt asks one server. One answer must not end the process, whatever is in it.
func (f *Forwarder) attempt(ctx context.Context, to *route, server netip.AddrPort, q upstreamQuery) (a attempt) {
	a = attempt{server: server, err: fmt.Errorf("ask %s: the answer could not be handled", server)}
	defer func() {
		if p := recover(); p != nil {
			f.cfg.Log.Error("handling an upstream's answer panicked", "addr", server, "err", fmt.Sprint(p))
		}
	}()
	msg, err := f.exchange(ctx, server, q.Question, q.do, q.cd)
	if err == nil {
		err = f.clean(msg, to.trusted)
	}
	a.msg, a.err = msg, err
	return a
}
