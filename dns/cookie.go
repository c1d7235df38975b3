package dns

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// cookies makes server cookies (RFC 7873), in the form of RFC 9018 with another
// hash: nobody else reads them. Sources are validated before a query gets here, so a
// cookie proves nothing that is not known, and none is ever demanded; clients that
// send one get theirs back, and know that an answer is not forged.
type cookies struct{ secret [32]byte }

func newCookies() *cookies {
	c := &cookies{}
	rand.Read(c.secret[:]) // it never fails
	return c
}

const (
	clientCookie = 8 // bytes
	minServer    = 8
	maxServer    = 32
)

// answer returns the option that answers the query's one: the client's cookie and
// the server's. ok is false if the query's has no possible length (FORMERR, RFC 7873
// section 5.2.2). Both nil and true: the query has none.
func (c *cookies) answer(o *dns.OPT, source netip.Addr, now time.Time) (option *dns.EDNS0_COOKIE, ok bool) {
	for _, x := range o.Option {
		cookie, is := x.(*dns.EDNS0_COOKIE)
		if !is {
			continue
		}
		b, err := hex.DecodeString(cookie.Cookie)
		server := len(b) - clientCookie
		if err != nil || server != 0 && (server < minServer || server > maxServer) {
			return nil, false
		}
		client := b[:clientCookie]
		head := binary.BigEndian.AppendUint32([]byte{1, 0, 0, 0}, uint32(now.Unix()))
		mac := hmac.New(sha256.New, c.secret[:])
		mac.Write(client)
		mac.Write(head)
		mac.Write(source.AsSlice())
		text := hex.EncodeToString(client) + hex.EncodeToString(head) + hex.EncodeToString(mac.Sum(nil)[:8])
		return &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: text}, true
	}
	return nil, true
}
