package agent

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftmesh/weft/dns"
)

// plainLog writes lines without their time.
func plainLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

func TestQueryLogLines(t *testing.T) {
	var out bytes.Buffer
	q := newQueryLog(plainLog(&out))
	source := netip.MustParseAddr("fd00::1")
	q.tell(dns.Asked{Source: source, Name: "web.internal.", Type: dns.TypeAAAA, Took: 90 * time.Microsecond})
	q.tell(dns.Asked{Source: source, Name: "a\"b\n.", Type: dns.TypeTXT, Rcode: dns.NameError, Took: time.Millisecond})
	q.tell(dns.Asked{Source: source, Rcode: dns.FormatError})
	q.close()
	want := `level=INFO msg="dns query" source=fd00::1 name=web.internal. type=AAAA rcode=NOERROR took=90µs
level=INFO msg="dns query" source=fd00::1 name="a\"b\n." type=TXT rcode=NXDOMAIN took=1ms
level=INFO msg="dns query" source=fd00::1 name="" type="" rcode=FORMERR took=0s
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A flood is not written: so many lines a second, and how many are missing.
func TestQueryLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		q := newQueryLog(plainLog(&out))
		for range 3 * queryLogRate {
			q.tell(dns.Asked{})
			synctest.Wait() // the writer keeps up
		}
		time.Sleep(1100 * time.Millisecond) // on the bubble's clock
		q.tell(dns.Asked{Name: "later."})
		synctest.Wait()
		q.close()
		if n := strings.Count(out.String(), "dns query\""); n != queryLogRate+1 {
			t.Errorf("%d lines of a flood, want %d", n, queryLogRate+1)
		}
		if want := fmt.Sprintf("level=WARN msg=\"dns queries not logged: there were too many\" count=%d\n", 2*queryLogRate); !strings.Contains(out.String(), want) {
			t.Errorf("the lost ones are not told of: %.500s", out.String()[max(0, out.Len()-500):])
		}
	})
}

// blocked is a log that cannot be written.
type blocked struct {
	once sync.Once
	in   chan struct{} // closed when somebody writes
	free chan struct{}
}

func (b *blocked) Write(p []byte) (int, error) {
	b.once.Do(func() { close(b.in) })
	<-b.free
	return len(p), nil
}

// The resolver never waits for its log.
func TestQueryLogNeverBlocks(t *testing.T) {
	b := &blocked{in: make(chan struct{}), free: make(chan struct{})}
	q := newQueryLog(plainLog(b))
	q.tell(dns.Asked{})
	<-b.in
	for range 10 * queryLogWaiting {
		q.tell(dns.Asked{})
	}
	if lost := q.lost.Load(); lost != 9*queryLogWaiting {
		t.Errorf("%d lost, want %d", lost, 9*queryLogWaiting)
	}
	close(b.free)
	q.close()
}
