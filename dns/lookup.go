package dns

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Reply is what a server answered to Lookup.
type Reply struct {
	Server  netip.AddrPort
	Rcode   string // NOERROR, NXDOMAIN, ...
	Answers []Record
	Elapsed time.Duration

	msg *dns.Msg
}

// Record is one resource record.
type Record struct {
	Name string `json:"name"`
	TTL  uint32 `json:"ttl"` // seconds
	Type string `json:"type"`
	Data string `json:"data"` // as in a zone file
}

// Lookup asks server one question, over UDP and, if the answer was cut, over TCP.
// name is taken as complete, with or without its final dot; qtype is a type's
// mnemonic such as AAAA. Any answer is a Reply, NXDOMAIN and SERVFAIL too; an error
// means that there was none before ctx ended.
func Lookup(ctx context.Context, dial Dial, server netip.AddrPort, name, qtype string) (*Reply, error) {
	if _, ok := splitName(name); !ok {
		return nil, fmt.Errorf("look up %q: not a domain name", name)
	}
	code, ok := dns.StringToType[strings.ToUpper(qtype)]
	if !ok {
		return nil, fmt.Errorf("look up %s: unknown record type %q", name, qtype)
	}
	query := new(dns.Msg)
	query.SetQuestion(dns.Fqdn(name), code)
	query.SetEdns0(udpSize, false)
	start := time.Now()
	m, err := exchangeAgain(ctx, dial, server, query)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	r := &Reply{Server: server, Rcode: dns.RcodeToString[m.Rcode], Elapsed: time.Since(start), msg: m}
	if r.Rcode == "" {
		r.Rcode = fmt.Sprintf("RCODE%d", m.Rcode)
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		r.Answers = append(r.Answers, Record{
			Name: h.Name, TTL: h.Ttl, Type: dns.TypeToString[h.Rrtype], Data: strings.TrimPrefix(rr.String(), h.String()),
		})
	}
	return r, nil
}

// resend is how long a datagram is waited for before it is sent again.
const resend = time.Second

// exchangeAgain sends again what seems lost, until ctx ends.
func exchangeAgain(ctx context.Context, dial Dial, server netip.AddrPort, query *dns.Msg) (*dns.Msg, error) {
	for {
		try, cancel := context.WithTimeout(ctx, resend)
		m, err := exchange(try, dial, server, query)
		timedOut := try.Err() != nil
		cancel()
		if err == nil || !timedOut || ctx.Err() != nil {
			return m, err
		}
		query.Id = dns.Id()
	}
}

// Short is the data of the answers, one a line, as `dig +short` prints it.
func (r *Reply) Short() string {
	var b strings.Builder
	for _, a := range r.Answers {
		b.WriteString(a.Data + "\n")
	}
	return b.String()
}

// String is the whole reply in dig's format.
func (r *Reply) String() string {
	text := strings.Replace(r.msg.String(), ";; opcode", ";; ->>HEADER<<- opcode", 1)
	text = strings.ReplaceAll(text, "\tIN\t ", "\tIN\t")
	return fmt.Sprintf("%s\n;; Query time: %d msec\n;; SERVER: %s#%d\n", text, r.Elapsed.Milliseconds(), r.Server.Addr(), r.Server.Port())
}
