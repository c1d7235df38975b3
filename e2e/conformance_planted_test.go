package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/errgroup"
)

// planted are mistakes of a DNS server, made in the answers of ours.
var planted = map[string]struct {
	spoil func(m *dnsmessage.Message, udp bool)
	by    []string // who of the clients and checks must notice
}{
	"every priority is 0": {
		spoil: func(m *dnsmessage.Message, _ bool) {
			for _, r := range m.Answers {
				if srv, ok := r.Body.(*dnsmessage.SRVResource); ok {
					srv.Priority = 0
				}
			}
		},
		by: []string{"dig", "kdig", "Go", "Node", "Erlang"},
	},
	"what is cut is not marked": {
		spoil: func(m *dnsmessage.Message, udp bool) { m.Truncated = m.Truncated && !udp },
		by:    []string{"dig", "Go", "Node", "getent", "Erlang", "truncation"},
	},
	"the question comes back in small letters": {
		spoil: func(m *dnsmessage.Message, _ bool) {
			for i, q := range m.Questions {
				m.Questions[i].Name = dnsmessage.MustNewName(strings.ToLower(q.Name.String()))
			}
		},
		by: []string{"0x20"},
	},
	"EDNS is not answered": {
		spoil: func(m *dnsmessage.Message, _ bool) {
			m.Additionals = slices.DeleteFunc(m.Additionals, func(r dnsmessage.Resource) bool { return r.Header.Type == dnsmessage.TypeOPT })
		},
		by: []string{"EDNS"},
	},
	"a name without that type is no name": {
		spoil: func(m *dnsmessage.Message, _ bool) {
			if len(m.Answers) == 0 {
				m.RCode = dnsmessage.RCodeNameError
			}
		},
		by: []string{"dig", "kdig", "Node", "Erlang"},
	},
	"an answer is left out": {
		spoil: func(m *dnsmessage.Message, _ bool) { m.Answers = m.Answers[min(len(m.Answers), 1):] },
		by:    []string{"dig", "kdig", "getent", "python3", "musl", "Go", "Go with C", "Node", "Node lookup", "Erlang", "EDNS", "NSS"},
	},
}

// spoiler changes what a server says, on its way out.
type spoiler struct {
	mistake atomic.Pointer[func(m *dnsmessage.Message, udp bool)]
}

func (s *spoiler) spoil(answer []byte, udp bool) []byte {
	mistake := s.mistake.Load()
	var m dnsmessage.Message
	if mistake == nil || m.Unpack(answer) != nil {
		return answer
	}
	(*mistake)(&m, udp)
	if out, err := m.Pack(); err == nil {
		return out
	}
	return answer
}

type spoiledPackets struct {
	net.PacketConn
	by *spoiler
}

func (s *spoiler) packets(c net.PacketConn) net.PacketConn { return spoiledPackets{c, s} }

func (c spoiledPackets) WriteTo(b []byte, to net.Addr) (int, error) {
	if _, err := c.PacketConn.WriteTo(c.by.spoil(b, true), to); err != nil {
		return 0, err
	}
	return len(b), nil
}

type spoiledStreams struct {
	net.Listener
	by *spoiler
}

func (s *spoiler) streams(l net.Listener) net.Listener { return spoiledStreams{l, s} }

func (l spoiledStreams) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return spoiledStream{c, l.by}, nil
}

type spoiledStream struct {
	net.Conn
	by *spoiler
}

// Write is given answers whole, each behind its length.
func (c spoiledStream) Write(b []byte) (int, error) {
	var out []byte
	for rest := b; len(rest) > 0; {
		if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
			return 0, errors.New("half an answer is written")
		}
		end := 2 + int(binary.BigEndian.Uint16(rest))
		answer := c.by.spoil(rest[2:end], false)
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(answer))), answer...)
		rest = rest[end:]
	}
	if _, err := c.Conn.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// judged is a reporter that keeps what it is told.
type judged struct {
	ctx  context.Context
	mu   sync.Mutex
	said []string // guarded by mu
}

func (j *judged) Context() context.Context { return j.ctx }
func (j *judged) Logf(string, ...any)      {}
func (j *judged) Errorf(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.said = append(j.said, fmt.Sprintf(format, args...))
}

// That TestConformance passes says something only if it can fail: each mistake is
// noticed by each of those who should, and without one all is well.
func TestConformanceNotices(t *testing.T) {
	need(t, "ip", "dig", "kdig", "getent", "python3", "musl-gcc", "node", "erl", "escript", "dbus-daemon")
	t.Parallel()
	var s spoiler
	b := newBox(t, &s)
	clients := map[string]nameClient{}
	for _, c := range nameClients {
		clients[c.name] = c
	}
	told := func(who string) []string {
		j := &judged{ctx: t.Context()}
		if check := directChecks[who]; check != nil {
			check(j, b)
		} else {
			clients[who].check(j, b, "udp")
		}
		return j.said
	}
	everyone := append(slices.Collect(maps.Keys(clients)), slices.Collect(maps.Keys(directChecks))...)
	all := map[string]bool{}
	for _, who := range everyone {
		all[who] = true
	}
	mistakes := slices.Sorted(maps.Keys(planted))
	for _, what := range append([]string{""}, mistakes...) {
		who := everyone
		if what == "" {
			s.mistake.Store(nil)
		} else {
			spoil := planted[what].spoil
			s.mistake.Store(&spoil)
			who = planted[what].by
		}
		var group errgroup.Group
		group.SetLimit(4)
		for _, w := range who {
			if !all[w] {
				t.Fatalf("%s: there is no %q", what, w)
			}
			group.Go(func() error {
				said := told(w)
				if noticed := len(said) > 0; noticed != (what != "") {
					t.Errorf("%q: %s noticed: %t %.300q", what, w, noticed, said)
				}
				return nil
			})
		}
		_ = group.Wait() // they report by t
	}
}
