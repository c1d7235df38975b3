package agent

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/dns"
)

// Bounds of the log of DNS queries: it must never be what a resolver waits for.
const (
	queryLogRate    = 1000 // lines a second
	queryLogWaiting = 256  // lines that wait to be written
)

// queryLog writes a line for each DNS query. Those that come faster than they can be
// written, or than queryLogRate, are counted, and told of once a second.
type queryLog struct {
	log   *slog.Logger
	lines chan dns.Asked
	lost  atomic.Uint64
	run   *running
}

func newQueryLog(log *slog.Logger) *queryLog {
	q := &queryLog{log: log, lines: make(chan dns.Asked, queryLogWaiting)}
	q.run = goRun(q.write)
	return q
}

// tell never blocks.
func (q *queryLog) tell(a dns.Asked) {
	select {
	case q.lines <- a:
	default:
		q.lost.Add(1)
	}
}

// close writes what is waiting, and ends.
func (q *queryLog) close() { q.run.stop() }

func (q *queryLog) write(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	left := queryLogRate
	line := func(a dns.Asked) {
		if left == 0 {
			q.lost.Add(1)
			return
		}
		left--
		q.log.Info("dns query", "source", a.Source.String(), "name", a.Name, "type", a.TypeText(), "rcode", a.Rcode.String(), "took", a.Took.String())
	}
	for {
		select {
		case a := <-q.lines:
			line(a)
		case <-second.C:
			q.tellLost()
			left = queryLogRate
		case <-ctx.Done():
			for len(q.lines) > 0 {
				line(<-q.lines)
			}
			q.tellLost()
			return
		}
	}
}

func (q *queryLog) tellLost() {
	if n := q.lost.Swap(0); n > 0 {
		q.log.Warn("dns queries not logged: there were too many", "count", n)
	}
}
